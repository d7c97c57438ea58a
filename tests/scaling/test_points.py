import json

import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.scaling import append_point, read_points
from hybrid_jax.scaling.points import ARCHITECTURES, by_architecture
from hybrid_jax.yaml_config import to_mapping
from tests.environment import ROOT
from tests.scaling.ladder import point, points


def test_what_is_appended_is_read_back(tmp_path):
    path = tmp_path / "ladder.jsonl"
    ladder = points(sizes={"60m": 57}) + points(sizes={"60m": 57}, architecture="gdn")
    for each in ladder:
        append_point(path, each)
    assert read_points(path) == tuple(ladder)
    assert [each.name for each in tmp_path.iterdir()] == ["ladder.jsonl"]


def test_a_last_line_without_an_end_is_ended(tmp_path):
    path = tmp_path / "ladder.jsonl"
    first, second = points(sizes={"60m": 57})[:2]
    path.write_text(json.dumps(to_mapping(first)))
    append_point(path, second)
    assert read_points(path) == (first, second)


def test_undecayed_checkpoints_are_left_out():
    before = point(decayed=False, tokens=7)
    assert by_architecture([point(), before, point(architecture="gdn")]) == {
        "olmo3": (point(),),
        "gdn": (point(architecture="gdn"),),
    }
    with pytest.raises(InputError, match="decayed: found false in all points"):
        by_architecture([before])


def line(**changes):
    return json.dumps(to_mapping(point()) | changes)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            line(architecture="rwkv"),
            "ladder.jsonl:2: architecture: found 'rwkv', expected one of olmo3, olmo_hybrid",
        ),
        (line(num_params=0), "ladder.jsonl:2: num_params: found 0, expected a finite number above 0"),
        (line(tokens=-5), "ladder.jsonl:2: tokens: found -5"),
        (line(loss=float("nan")), "ladder.jsonl:2: loss: found nan"),
        (line(loss="3.5"), "ladder.jsonl:2: loss: found '3.5'"),
        (line(tokens=1.5), "ladder.jsonl:2: tokens: found 1.5"),
        (line(los=3.5), "ladder.jsonl:2: unknown field 'los'; did you mean 'loss'"),
        ('{"architecture": "gdn"}', "ladder.jsonl:2: missing fields: size, num_params"),
        (line(tokens=7, corpus="c4"), "ladder.jsonl:2: corpus: found 'c4', expected 'dolma3' as in line 1"),
        (
            line(tokens=7, vocab_size=256),
            "ladder.jsonl:2: vocab_size: found 256, expected 100352 as in line 1",
        ),
        (line(tokens=7, tokenizer="gpt2"), "ladder.jsonl:2: tokenizer: found 'gpt2'"),
        (line(), "ladder.jsonl:2: found the checkpoint of line 1 again"),
        ("[1, 2]", "ladder.jsonl:2: found '.1, 2.', expected an object with architecture"),
        ('{"architecture": ', "ladder.jsonl:2: not readable as JSON"),
    ],
)
def test_bad_line_is_named(tmp_path, second, message, as_for_users):
    path = tmp_path / "ladder.jsonl"
    path.write_text(f"{line()}\n{second}\n")
    with pytest.raises(InputError, match=message):
        read_points(path)


def test_bad_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        read_points(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.jsonl: is empty"):
        read_points(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.jsonl: is no text"):
        read_points(tmp_path / "binary.jsonl")


def test_the_losses_in_the_documentation_are_those_of_the_results_beside_it():
    docs = ROOT / "docs"
    page = (docs / "scaling_laws.md").read_text(encoding="utf-8")
    runs: dict[tuple[str, str, int], dict[float, float]] = {}
    for each in read_points(docs / "results" / "ladder_cpu.jsonl"):
        if each.decayed:
            run = (each.size, ARCHITECTURES[each.architecture], each.num_params)
            runs.setdefault(run, {})[each.horizon] = each.loss
    assert len(runs) == 12
    for (size, name, num_params), losses in runs.items():
        cells = " | ".join(f"{losses[horizon]:.3f}" for horizon in (0.5, 1, 2))
        assert f"| {size} | {name} | {num_params:,} | {cells} |" in page
