"""The benchmark of decoding reads and continues each context with both models, and compares them."""

import json
import re
import sys

import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.generation.api import cache_capacity
from hybrid_jax.models import count_parameters
from scripts import bench_decode
from tests.environment import ROOT

SMALLER = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}


def test_both_models_are_measured_at_each_length(tmp_path, monkeypatch, capsys):
    for name in ("_SMALL", "_SMALL_OLMO3"):
        monkeypatch.setattr(bench_decode, name, {**getattr(bench_decode, name), **SMALLER})
    output = tmp_path / "decode.jsonl"
    flags = f"--lengths 20 40 --burst 2 --rounds 2 --output {output}"
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", ["bench_decode.py", *flags.split()])
    bench_decode.main()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["context"] for row in rows] == [20, 40]
    for row in rows:
        assert row["olmo3_ms_per_token"] > 0
        assert row["hybrid_ms_per_token"] > 0
    # A slot: keys and values of 2 heads of 16, its place and document. One of the hybrid's four layers has such slots.
    slots = cache_capacity(20)
    attention = slots * (2 * 32 * 4 + 2 * 4)
    assert rows[0]["olmo3_cache_mib"] == pytest.approx(4 * attention / 2**20, rel=1e-3)
    assert rows[0]["hybrid_cache_mib"] > attention / 2**20
    assert re.search(r"20 │ +[\d.]+ │ +[\d.]+ │ +[\d.]+x │ +[\d.]+ MiB", capsys.readouterr().out)


def test_a_cache_has_room_for_the_context_and_no_more():
    bench = bench_decode.Bench()
    olmo3, hybrid = bench.configs()
    slot = 2 * 384 * 4 + 2 * 4
    # Windows of 4,096, and 511 tokens read with the last of them.
    expected = (2 * 65536 + 6 * (4096 + 511)) * slot
    assert bench_decode.cache_bytes(olmo3, bench, 65536) == pytest.approx(expected, rel=1e-3)
    assert 1 < bench_decode.cache_bytes(hybrid, bench, 65536) / (2 * 65536 * slot) < 1.01


def test_the_table_in_the_documentation_is_that_of_the_results_beside_it():
    docs = ROOT / "docs"
    page = (docs / "long_context.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (docs / "results/decode_cpu.jsonl").read_text().splitlines()]
    assert [row["context"] for row in rows] == list(bench_decode.Bench().lengths)
    for row in rows:
        times = row["olmo3_ms_per_token"], row["hybrid_ms_per_token"]
        caches = row["olmo3_cache_mib"], row["hybrid_cache_mib"]
        cells = [f"{row['context']:,}"]
        for (olmo3, hybrid), digits in ((times, 2), (caches, 1)):
            cells += [f"{olmo3:.{digits}f}", f"{hybrid:.{digits}f}", f"{olmo3 / hybrid:.2f}x"]
        paper = bench_decode.PAPER.get(row["context"])
        cells.append(f"{paper[1] / paper[0]:.2f}x" if paper else "")
        assert f"| {' | '.join(cells)} |" in page


@pytest.mark.parametrize("size", ["small", "7b"])
def test_both_models_have_as_many_parameters(size):
    olmo3, hybrid = map(count_parameters, bench_decode.Bench(size=size).configs())
    assert olmo3 == pytest.approx(hybrid, rel=0.005 if size == "small" else 0.02)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("burst", 0, "burst: found 0"),
        ("lengths", (), r"lengths: found \(\)"),
        ("lengths", (1024, 192), "lengths: found .*, expected one or more, of at least the 193 tokens"),
    ],
)
def test_bad_flags(field, value, message):
    with pytest.raises(InputError, match=message):
        bench_decode.Bench(**{field: value})
