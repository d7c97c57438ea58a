"""Ladders whose runs are made up (what is done, resumed, refused), and one that is trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from hybrid_jax.checkpoints import load_orbax
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation import Document
from hybrid_jax.ladder import plan_ladder, run_ladder, runner
from hybrid_jax.ladder.runner import RESULTS_NAME, held_out_loss
from hybrid_jax.models import create_model
from hybrid_jax.scaling import append_point, read_points
from hybrid_jax.sharding import MeshConfig
from hybrid_jax.training.optimizer import OptimizerConfig
from tests.ladder.small import NUM_HELD_OUT, small_ladder, small_size
from tests.training.toy import EOS, VOCAB_SIZE, write_tokens


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, str]]:
    """The runs that were trained; the third is killed, and so is the fifth evaluation."""
    runs: list[tuple[str, str]] = []
    evaluations: list[float] = []

    def train(run, devices):
        runs.append((run.output_folder.parent.name, run.output_folder.name))
        if len(runs) == 3:
            raise KeyboardInterrupt

    def loss(model, held_out, config):
        evaluations.append(3.0 + len(evaluations) / 8)
        if len(evaluations) == 6:
            raise KeyboardInterrupt
        return evaluations[-1]

    monkeypatch.setattr(runner, "train", train)
    monkeypatch.setattr(runner, "load_orbax", lambda folder, mesh: None)
    monkeypatch.setattr(runner, "held_out_loss", loss)
    return runs


def run(config) -> tuple:
    return run_ladder(config, lambda line: None, jax.devices()[: config.mesh.fsdp])


def run_to_the_end(config) -> tuple:
    while True:
        try:
            return run(config)
        except KeyboardInterrupt:
            pass


def test_a_killed_ladder_does_what_is_missing_and_nothing_twice(tmp_path, trained):
    config = small_ladder(tmp_path)
    path = config.output_folder / RESULTS_NAME
    with pytest.raises(KeyboardInterrupt):
        run(config)  # in the second evaluation of the second run
    assert trained == [("olmo3", "a"), ("gdn", "a")]
    kept = read_points(path)
    assert [(each.architecture, each.decayed) for each in kept] == [("olmo3", False), ("olmo3", True)] * 2 + [
        ("gdn", False)
    ]
    with pytest.raises(KeyboardInterrupt):
        run(config)  # while the second run, already complete, is looked at again
    points = run(config)
    assert trained[2:] == [("gdn", "a"), ("gdn", "a"), ("olmo3", "b"), ("gdn", "b")]
    assert read_points(path) == points
    assert points[:5] == kept
    planned = [(each.architecture, each.size) for each in plan_ladder(config) for _ in each.checkpoints]
    assert [(each.architecture, each.size) for each in points] == planned
    assert run(config) == points
    assert len(trained) == 6


def test_lines_are_told_for_runs_and_evaluations(tmp_path, trained):
    told: list[str] = []
    config = small_ladder(tmp_path, architectures=("gdn",))
    run_ladder(replace(config, sizes={"a": config.sizes["a"]}), told.append, jax.devices()[:1])
    run_to_the_end(config)
    run_ladder(config, told.append, jax.devices()[:1])
    assert len(told) == 1 + 4
    assert told[0].startswith("run 1 of 1: Gated DeltaNet, size a (N = 1,604): 37 steps of 128 tokens, ")
    assert told[1:3] == ["  horizon 0.1 before its decay: 3.0000", "  horizon 0.1: 3.1250"]


def test_sizes_architectures_and_later_horizons_may_be_added(tmp_path, trained):
    config = small_ladder(tmp_path, architectures=("olmo3",), sizes={"a": small_size(8)})
    first = run_to_the_end(config)
    assert len(first) == 4
    more = replace(
        config,
        architectures=("gdn", "olmo3"),
        sizes={"b": small_size(12), "a": small_size(8)},
        horizons=(0.1, 0.2, 0.4),
    )
    points = run_to_the_end(more)
    assert len(points) == 2 * 2 * 3 * 2
    assert set(first) < set(points)
    assert run(replace(more, architectures=("gdn",))) == tuple(
        each for each in points if each.architecture == "gdn"
    ), "points that are not asked for stay where they are"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"microbatch_size": 8}, "microbatch_size: found 8, the folder has 4"),
        (
            {"optimizer": OptimizerConfig(weight_decay=0.2)},
            "optimizer.weight_decay: found 0.2, the folder has 0.1",
        ),
        ({"sizes": {"a": small_size(16)}}, "sizes.a.hidden_size: found 16, the folder has 8"),
        ({"horizons": (0.1,)}, "horizons: found"),
        ({"horizons": (0.1, 0.3)}, "horizons: found .0.3. where the folder has .0.2."),
        ({"corpus": "c4"}, "corpus: found 'c4', the folder has 'random'"),
    ],
)
def test_results_of_another_ladder_are_refused(tmp_path, trained, changes, message):
    config = small_ladder(tmp_path, architectures=("olmo3",), sizes={"a": small_size(8)})
    points = run_to_the_end(config)
    with pytest.raises(
        InputError, match=rf"ladder\.yaml: results there are made from something else.*{message}"
    ):
        run(replace(config, **changes))
    assert run(config) == points


def test_other_data_are_refused(tmp_path, trained):
    config = small_ladder(tmp_path, architectures=("olmo3",), sizes={"a": small_size(8)})
    run_to_the_end(config)
    write_tokens(tmp_path / "tokens.npy", num_tokens=5000)
    with pytest.raises(
        InputError, match=r"shards.toy.shards: found \[\['tokens.npy', 5000\]\] where the folder has"
    ):
        run(config)


def test_other_texts_to_evaluate_on_are_refused(tmp_path, trained):
    config = small_ladder(tmp_path, architectures=("olmo3",), sizes={"a": small_size(8)})
    points = run_to_the_end(config)
    path = tmp_path / "held_out.npy"
    before = path.read_bytes()
    path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    with pytest.raises(InputError, match=r"held_out\..*held_out\.npy: found '[0-9a-f]{64}', the folder has"):
        run(config)
    path.write_bytes(before)
    assert run(config) == points


def test_a_ladder_that_came_to_nothing_keeps_no_folder(tmp_path, trained):
    config = small_ladder(tmp_path, sizes={"a": small_size(8)})
    trained += [("", "")] * 2  # the next one is killed
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert run_to_the_end(replace(config, microbatch_size=8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 7}, "size a, of another ladder, .*tokens: found 2176, the file has 7"),
        ({"horizon": 0.3}, "horizon: found 0.1, the file has 0.3"),
        (
            {"architecture": "gdn", "corpus": "c4"},
            "gdn, size a, .*corpus: found 'random', the file has 'c4'",
        ),
    ],
)
def test_points_that_came_from_elsewhere_are_refused(tmp_path, trained, changes, message):
    config = small_ladder(tmp_path, architectures=("olmo3",), sizes={"a": small_size(8)})
    point = run_to_the_end(config)[0]
    path = config.output_folder / RESULTS_NAME
    path.unlink()
    append_point(path, replace(point, **changes))
    with pytest.raises(InputError, match=rf"ladder\.jsonl: found a point of .*{message}"):
        run(config)


def test_a_damaged_record_is_named(tmp_path, trained):
    config = small_ladder(tmp_path)
    config.output_folder.mkdir()
    for content in ("{", "[]", json.dumps({"config": 3})):
        (config.output_folder / "ladder.yaml").write_text(content)
        (config.output_folder / RESULTS_NAME).touch()
        with pytest.raises(InputError, match=r"ladder\.yaml:.* expected"):
            run(config)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (None, r"held_out\.npy"),
        ([EOS, 5, EOS], r"held_out\.npy: document 0: found an empty document"),
        ([5, VOCAB_SIZE, EOS], rf"held_out\.npy: found token id {VOCAB_SIZE} at position 1"),
    ],
)
def test_bad_text_to_evaluate_on_is_named_before_anything_is_trained(tmp_path, trained, tokens, message):
    config, path = small_ladder(tmp_path), tmp_path / "held_out.npy"
    path.unlink()
    if tokens is not None:
        np.array(tokens, np.uint8).tofile(path)
    with pytest.raises(InputError, match=message):
        run(config)
    assert trained == []
    assert not config.output_folder.exists()


def test_a_ladder_that_is_trained(tmp_path, monkeypatch):
    """Killed before its last evaluation, it is completed from its checkpoints; on two devices that share the model."""
    ladder = {"architectures": ("olmo3",), "sizes": {"a": small_size(8)}}
    config = small_ladder(tmp_path, **ladder, mesh=MeshConfig(fsdp=2))
    evaluate, losses = runner.held_out_loss, []

    def killed_at_last(*arguments):
        if len(losses) == 3:
            losses.append(None)
            raise KeyboardInterrupt
        losses.append(evaluate(*arguments))
        return losses[-1]

    monkeypatch.setattr(runner, "held_out_loss", killed_at_last)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(runner, "held_out_loss", evaluate)
    points = run(config)
    assert [each.loss for each in points[:3]] == losses[:3]

    (planned,) = plan_ladder(config)
    folder = planned.config.output_folder / "checkpoints"
    assert sorted(int(each.name) for each in folder.iterdir()) == [step for step, _, _ in planned.checkpoints]
    texts = (
        np.fromfile(tmp_path / "held_out.npy", np.uint8).reshape(NUM_HELD_OUT, -1)[:, :-1].astype(np.int32)
    )
    rows = np.concatenate([np.full((NUM_HELD_OUT, 1), EOS, np.int32), texts[:, :-1]], axis=1)
    for point, checkpoint in zip(points, planned.checkpoints, strict=True):
        logits = np.asarray(load_orbax(folder / str(checkpoint.step))(rows).logits, np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = -np.take_along_axis(log_probs, texts[..., None], -1).mean()
        assert point.loss == pytest.approx(expected, rel=1e-5)
    shutil.rmtree(folder / str(planned.checkpoints[0].step))
    (config.output_folder / RESULTS_NAME).unlink()
    with pytest.raises(InputError, match="17"):
        run(config)


def test_the_loss_is_the_mean_over_texts_whatever_their_lengths(tmp_path):
    config = small_ladder(tmp_path)
    model = create_model(plan_ladder(config)[0].config.model)
    texts = [[Document(str(n), np.arange(3, 3 + n, dtype=np.int32), None)] for n in (2, 20)]
    alone = [held_out_loss(model, {Path("text"): text}, config) for text in texts]
    assert alone[0] != alone[1]
    both = held_out_loss(model, dict(zip((Path("a"), Path("b")), texts, strict=True)), config)
    assert both == pytest.approx(sum(alone) / 2)
