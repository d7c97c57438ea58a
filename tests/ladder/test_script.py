"""The command as people run it."""

import signal
import subprocess
import sys
import time

import pytest

from hybrid_jax.scaling import read_points
from hybrid_jax.yaml_config import to_yaml
from tests.environment import ROOT, child_environment
from tests.ladder.small import small_ladder, small_size

pytestmark = pytest.mark.slow


def start(*arguments) -> subprocess.Popen[str]:
    command = [sys.executable, "scripts/ladder.py", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_ladder_that_is_killed_is_continued_and_told(tmp_path):
    config = small_ladder(tmp_path, sizes={"a": small_size(8)})
    (tmp_path / "ladder.yaml").write_text(to_yaml(config))
    process, results = start(tmp_path / "ladder.yaml"), config.output_folder / "ladder.jsonl"
    while not results.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = read_points(results)
    assert len(before) < 8

    out, errors = start(tmp_path / "ladder.yaml").communicate(timeout=300)
    assert errors == ""
    points = read_points(results)
    assert (len(points), points[: len(before)]) == (8, before)
    assert "run 2 of 2: Gated DeltaNet, size a" in out
    assert f"{points[-1].loss:.4f}" in out.partition("held-out loss")[2]
    assert f"next: python scripts/fit_scaling.py {results}" in out

    process = start(tmp_path / "ladder.yaml", "--microbatch-size", "8")
    assert process.communicate(timeout=300)[1].startswith("error: ")
    assert process.returncode == 1
