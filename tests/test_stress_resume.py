"""A short version of the stress test: faults of processes, files, the disk and the figures, each once."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.stress_resume import INTERVAL, NUM_STEPS, Run, Wrong
from tests.environment import ROOT, child_environment

FAULTS = ("kill-saving", "worker", "truncated", "disk-full", "nan")


def stress(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts/stress_resume.py"), *map(str, flags)]
    # Optimised: they run for longer than they compile.
    return subprocess.run(
        command,
        env=child_environment(JAX_DISABLE_MOST_OPTIMIZATIONS="0"),
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stress")
    done = stress("--folder", folder, "--times", "1", "--faults", *FAULTS)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"^\| [^|]+ \| 1 \| 1 \| 1 \| [\d.]+ \|$", done.stdout, re.MULTILINE)) == len(
        FAULTS
    )
    return folder


@pytest.mark.slow
def test_what_recovers_leaves_nothing(workplace):
    found = {path.name for path in workplace.iterdir()}
    assert found == {"run.yaml", "tokens.npy", "compiled", "undisturbed"}


def changed(workplace: Path, name: str) -> Run:
    shutil.copytree(workplace / "undisturbed", workplace / name)
    return Run(workplace, name)


@pytest.mark.slow
def test_differences_are_seen(workplace):
    reference = Run(workplace, "undisturbed")
    run = changed(workplace, "same")
    run.check_same(reference)

    run = changed(workplace, "other arrays")
    shutil.rmtree(run.checkpoints / str(NUM_STEPS))
    shutil.copytree(run.checkpoints / str(NUM_STEPS - INTERVAL), run.checkpoints / str(NUM_STEPS))
    with pytest.raises(Wrong, match="differs"):
        run.check_same(reference)

    run = changed(workplace, "a step less")
    lines = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "metrics.jsonl").write_text("".join(lines[:100] + lines[101:]))
    with pytest.raises(Wrong, match=r"metrics\.jsonl differs"):
        run.check_same(reference)


def test_bad_flags():
    done = stress("--times", "0")
    assert done.returncode == 1
    assert "times: found 0, expected at least 1" in done.stderr
    assert "Traceback" not in done.stderr
