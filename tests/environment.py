"""How programs of tests are compiled, and what the processes that tests start find in their environment.

``tests/conftest.py`` needs this before anything else: nothing here may import jax or our packages.
"""

import os
from pathlib import Path

import jaxlib

ROOT = Path(__file__).parents[1]
# A device that waits in a collective holds a thread of XLA's pool. As many threads as devices, the default here, have
# been seen to wait for each other for good; NPROC is how XLA is told to have more.
THREADS = "32"


def xla_flags(num_devices: int) -> str:
    """XLA_FLAGS for so many fake CPU devices, and quick compiling where there is a flag for it."""
    # Devices share the cores there are: on a busy machine one may come to a collective a minute after another, and XLA
    # ends the process after 40 seconds.
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=300"
    # In jaxlib 0.10 an older code generator can be had, with which compiling takes half as long.
    if jaxlib.version.__version_info__ < (0, 11):
        flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    return flags


def child_environment(num_devices: int = 1, compiled: Path | None = None, **variables: str) -> dict[str, str]:
    """For a process on fake CPU devices that compiles as quickly as the tests' own.

    Args:
        num_devices: of that process.
        compiled: a folder for the compiled programs, which several processes share.
        variables: others, or other values.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(num_devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
    }
    if num_devices == 1:  # steps are quicker with a thread for each core
        del environment["NPROC"]
    if compiled is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return environment | variables
