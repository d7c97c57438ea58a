"""The command as people run it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybrid_jax.expressivity.config import StageConfig
from hybrid_jax.expressivity.results import read_results
from hybrid_jax.yaml_config import to_yaml
from tests.environment import ROOT, child_environment
from tests.expressivity.small import small_sweep, small_task

ENVIRONMENT = child_environment()


def command(*arguments):
    return [sys.executable, "scripts/expressivity.py", *map(str, arguments)]


def run_script(*arguments):
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def is_running(pid):
    """Whether there is such a process, and not only what is left of it until someone asks how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.slow
def test_two_processes_do_a_sweep_and_draw_it(tmp_path):
    sweep = small_sweep(
        tmp_path / "out",
        tasks={"state_tracking": small_task(architectures=("transformer", "gdn_neg"))},
        num_workers=2,
    )
    (tmp_path / "sweep.yaml").write_text(to_yaml(sweep))
    done = run_script(tmp_path / "sweep.yaml")
    assert done.returncode == 0, done.stderr
    names = ["config.yaml", "figure.png", "results.jsonl", "table.md"]
    assert sorted(path.name for path in sweep.output_folder.iterdir()) == names
    results = read_results(sweep.output_folder / "results.jsonl")
    assert {result.run.architecture for result in results} == {"transformer", "gdn_neg"}
    assert "state_tracking: 32 tokens" in done.stdout
    assert "| GDN (-) | 1 |" in done.stdout

    again = run_script(tmp_path / "sweep.yaml")
    assert again.returncode == 0
    assert " steps, " not in again.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_processes_of_a_killed_sweep_end(tmp_path):
    task = small_task(stages=(StageConfig(length=2, num_steps=10_000_000),))
    (tmp_path / "sweep.yaml").write_text(
        to_yaml(small_sweep(tmp_path / "out", tasks={"state_tracking": task}, num_workers=2))
    )
    sweep = subprocess.Popen(
        command(tmp_path / "sweep.yaml"), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    listed = []

    def has_worker():
        threads = Path(f"/proc/{sweep.pid}/task").glob("*/children")
        listed[:] = [pid for children in threads for pid in children.read_text().split()]
        return any("spawn_main" in Path(f"/proc/{pid}/cmdline").read_text() for pid in listed)

    try:
        wait_until(has_worker)
        time.sleep(5)  # it is importing or training
    finally:
        sweep.kill()
        sweep.wait()
    wait_until(lambda: not any(map(is_running, listed)), 30)


@pytest.mark.slow
def test_a_configuration_that_fits_nothing_is_one_line(tmp_path):
    (tmp_path / "sweep.yaml").write_text(to_yaml(small_sweep(tmp_path / "out")))
    failed = run_script(tmp_path / "sweep.yaml", "--model.max-position-embeddings", "4")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "whose programs have up to 7 tokens" in failed.stderr
    assert not (tmp_path / "out").exists()
