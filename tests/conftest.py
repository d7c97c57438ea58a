"""What every test stands on: eight fake CPU devices, no network, and run-time checks of shapes and types.

Nothing here may import jax before the environment is set, nor our packages before the hook is installed.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices share the cores there are: on a busy machine one may come to a collective a minute after another, and
# XLA ends the process after 40 seconds.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
)
# A device that waits in a collective holds a thread of XLA's pool. As many threads as devices, the default here, have
# been seen to wait for each other for good; NPROC is how XLA is told to have more.
os.environ["NPROC"] = "32"
os.environ["HF_HUB_OFFLINE"] = "1"

import jaxlib

# In jaxlib 0.10 an older code generator can be had, with which compiling takes half as long.
if jaxlib.version.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

import jax
import jaxtyping
import pytest
from hypothesis import settings

# Shapes and types do not depend on jax's version: a second run on another one may leave out some of the checks.
CHECKED = os.environ.get("CHECKED_PACKAGES", "hybrid_jax pallas_kernels").split()
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

# Most of what tests take is compiling programs that run once: to optimise those takes longer than it saves.
jax.config.update("jax_disable_most_optimizations", True)

# Derandomised, so that a failure seen once is seen again; no deadline, as a first example pays for compiling.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")


@pytest.fixture
def as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the run-time checks, which would be first to refuse a wrong type; users have only our own errors."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def optimized() -> Iterator[None]:
    """Compiled as for users, where what runs takes longer than what compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def room_for_programs() -> Iterator[None]:
    """Compiled programs are freed, after a module that leaves many.

    Each takes memory maps, of which Linux gives a process 65,530 (vm.max_map_count); beyond them XLA ends it with a
    segmentation fault. Freed after every module, what modules share would be compiled anew in each.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
