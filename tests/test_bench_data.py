"""The data benchmark runs and prints every way of reading."""

import subprocess
import sys

from tests.environment import ROOT, child_environment


def bench(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts/bench_data.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=child_environment(), timeout=240)


def test_prints_rates_beside_what_training_takes():
    small = "--num-tokens 50000 --num-shards 2 --sequence-length 256 --batch-size 4 --seconds 0.05"
    done = bench(*small.split(), "--threads", "1", "--processes", "1", "--step-tokens-per-second", "1000")
    assert done.returncode == 0, done.stderr
    for packing in ("chunk ", "chunk, filtered", "best fit"):
        assert done.stdout.count(f"│ {packing}") == 2
    assert done.stdout.rstrip().endswith("training takes 1,000 tokens/s")


def test_too_few_tokens_are_refused():
    done = bench("--num-tokens", "5")
    assert done.returncode == 1
    assert "num_tokens: found 5, expected at least 4194304" in done.stderr
