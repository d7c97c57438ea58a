"""The kernels compiled for an H200 that is not there, with CUDA's wheels and nothing else."""

import re
import subprocess
import sys
from importlib.util import find_spec

import jax
import pytest

from hybrid_jax.errors import InputError
from scripts.compile_kernels import compile_kernel
from tests.environment import ROOT, child_environment

pytestmark = [
    pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11"),
    pytest.mark.skipif(
        find_spec("jax_cuda13_plugin") is None, reason="needs the plan extra: pip install 'hybrid-jax[plan]'"
    ),
]


def run(*command: str) -> str:
    # Whatever toolkit the machine has must not be needed.
    environment = child_environment(PATH="/usr/bin:/bin", JAX_DISABLE_MOST_OPTIMIZATIONS="0")
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=400, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_tuned_kernel_spills_and_none_wants_too_much_shared_memory():
    table = run(str(ROOT / "scripts/compile_kernels.py"))
    rows = re.findall(r"│ (.+?) +│ (\d+ / \d+) +│ (\d+) +│ (\d+) +│ ([\d.]+) +│", table)
    assert len(rows) == 19, table
    assert {shape for _, shape, *_ in rows} == {"96 / 192", "128 / 128", "256 / 256", "96 / 320"}
    spills = {(name, shape): int(spilled) for name, shape, _, spilled, _ in rows}
    assert not any(spilled for (_, shape), spilled in spills.items() if shape != "256 / 256")
    # That spills are counted at all shows where there is no room for everything.
    assert spills["backward, tokens", "256 / 256"] > 0
    shared = {name: float(kilobytes) for name, shape, *_, kilobytes in rows if shape == "96 / 192"}
    # A kernel that adds up over threads has 2 KB for it, beside arrays (none for decode) and barriers.
    assert 2 <= shared["decode"] < 3
    assert 143 < shared["backward, tokens"] < 227


def test_a_kernel_that_cannot_be_lowered_is_named():
    """As one that wants more shared memory than a block can have."""

    def too_large(x):
        raise ValueError("Mosaic GPU kernel exceeds available shared memory")

    with pytest.raises(InputError, match=r"^forward at 512 / 64: Mosaic GPU kernel exceeds"):
        compile_kernel("forward", "512 / 64", too_large, (jax.ShapeDtypeStruct((), "float32"),))


def test_whole_programs():
    """Shards gather nothing; remat, scan and vmap keep to the kernels; decoding leaves the state to them."""
    run("-m", "tests.pallas_kernels.compiled_programs")
