"""The command as people run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_jax.expressivity.results import read_results
from hybrid_jax.yaml_config import to_yaml
from tests.expressivity.small import small_sweep, small_task

ROOT = Path(__file__).parents[2]


def run_script(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "scripts/expressivity.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


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
def test_a_configuration_that_fits_nothing_is_one_line(tmp_path):
    (tmp_path / "sweep.yaml").write_text(to_yaml(small_sweep(tmp_path / "out")))
    failed = run_script(tmp_path / "sweep.yaml", "--model.max-position-embeddings", "4")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "whose programs have up to 7 tokens" in failed.stderr
    assert not (tmp_path / "out").exists()
