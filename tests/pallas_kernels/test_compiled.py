"""The kernels compiled for an H200 that is not there, with CUDA's wheels and nothing else."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11"),
    pytest.mark.skipif(
        find_spec("jax_cuda13_plugin") is None, reason="needs the plan extra: pip install 'hybrid-jax[plan]'"
    ),
]


def run(*command: str) -> str:
    # Whatever toolkit the machine has must not be needed.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=400, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_tuned_kernel_spills_and_none_wants_too_much_shared_memory():
    table = run(str(ROOT / "scripts/compile_kernels.py"))
    rows = re.findall(r"│ (.+?) +│ (\d+ / \d+) +│ (\d+) +│ (\d+) +│ ([\d.]+) +│", table)
    assert len(rows) == 18, table
    assert {shape for _, shape, *_ in rows} == {"96 / 192", "128 / 128", "256 / 256"}
    assert not any(int(spilled) for _, shape, _, spilled, _ in rows if shape != "256 / 256")


def test_whole_programs():
    """Shards gather nothing; remat, scan and vmap keep to the kernels; decoding leaves the state to them."""
    run("-m", "tests.pallas_kernels.compiled_programs")
