"""What every test stands on: eight fake CPU devices, no network, and run-time checks of shapes and types.

Nothing here may import jax before the environment is set, nor our packages before the hook is installed.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from tests.environment import THREADS, xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}"
os.environ["NPROC"] = THREADS
os.environ["HF_HUB_OFFLINE"] = "1"

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


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of token ids, one for each time that reading on from a cache is traced to be compiled."""
    from hybrid_jax.models import CausalLM

    shapes: list[tuple[int, ...]] = []
    original = CausalLM.hidden_states_and_cache

    def counted(*arguments):
        shapes.append(arguments[1].shape)
        return original(*arguments)

    monkeypatch.setattr(CausalLM, "hidden_states_and_cache", counted)
    return shapes


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
