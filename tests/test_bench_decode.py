"""The benchmark of decoding reads and continues each context with both models, and compares them."""

import json
import re
import sys

import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.generation.api import cache_capacity
from hybrid_jax.models import count_parameters
from scripts import bench_decode

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
    slots = cache_capacity(20 + 7 - 1)
    attention = slots * (2 * 32 * 4 + 2 * 4)
    assert rows[0]["olmo3_cache_mib"] == pytest.approx(4 * attention / 2**20, rel=1e-3)
    assert rows[0]["hybrid_cache_mib"] > attention / 2**20
    assert re.search(r"20 │ +[\d.]+ │ +[\d.]+ │ +[\d.]+x │ +[\d.]+ MiB", capsys.readouterr().out)


@pytest.mark.parametrize("size", ["small", "7b"])
def test_both_models_have_as_many_parameters(size):
    olmo3, hybrid = map(count_parameters, bench_decode.Bench(size=size).configs())
    assert olmo3 == pytest.approx(hybrid, rel=0.005 if size == "small" else 0.02)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("burst", 0, "burst: found 0"),
        ("lengths", (), r"lengths: found \(\)"),
        ("lengths", (0,), "lengths: found"),
    ],
)
def test_bad_flags(field, value, message):
    with pytest.raises(InputError, match=message):
        bench_decode.Bench(**{field: value})
