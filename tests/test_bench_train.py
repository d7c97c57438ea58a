"""The training benchmark runs and prints both models."""

import re
import subprocess
import sys

import pytest

from tests.environment import ROOT, child_environment


def bench(*flags: str) -> subprocess.CompletedProcess:
    environment = child_environment(num_devices=2, COLUMNS="140")
    command = [sys.executable, str(ROOT / "scripts/bench_train.py"), "--preset", "60m", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_both_models_are_measured():
    small = ("--vocab-size", "256", "--length", "64", "--steps", "1", "--rounds", "1", "--mesh.fsdp", "1")
    done = bench(*small, "--mesh.data", "2", "--batch-size", "2", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    for model in ("olmo_hybrid_60m", "olmo3_60m"):
        assert re.search(rf"{model} +│ +[\d,]+ │ +[\d,]+ │ +- │ +[\d.]+ │ +- │ +[\d.]+ ", done.stdout), (
            done.stdout
        )
    assert re.search(r"OLMo Hybrid / OLMo 3: [\d.]+x", done.stdout)


def test_bad_flags():
    done = bench("--steps", "0")
    assert done.returncode == 1
    assert "steps: found 0, expected at least 1" in done.stderr
    assert "Traceback" not in done.stderr
