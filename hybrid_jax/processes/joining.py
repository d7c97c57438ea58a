"""How the processes of a run find each other, one on each host, and work as one."""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax

from hybrid_jax.errors import InputError
from hybrid_jax.processes.ending import Ending
from hybrid_jax.processes.exchange import meet


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How the processes of a run find each other. Under SLURM and in Kubernetes Jobs nothing needs to be said.

    Attributes:
        coordinator_address: HOST:PORT at which process 0 can be reached by all.
        num_processes: how many take part, one for each host; 1 runs alone, whatever a cluster says.
        process_id: the number of this one, from 0.
        initialization_timeout: seconds to wait for the others at the start.
        heartbeat_timeout: seconds without a sign of life after which a process counts as dead and all end.

    Raises:
        InputError: a field is out of its range, or one of the first three is given without the others.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    initialization_timeout: int = 300
    heartbeat_timeout: int = 30

    def __post_init__(self) -> None:
        for name, smallest in (
            ("num_processes", 1),
            ("process_id", 0),
            ("initialization_timeout", 1),
            ("heartbeat_timeout", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InputError(f"{name}: found {value}, expected at least {smallest}")
        if self.alone:
            return
        together = {
            name: getattr(self, name) for name in ("coordinator_address", "num_processes", "process_id")
        }
        missing = [name for name, value in together.items() if value is None]
        if 0 < len(missing) < len(together):
            given = ", ".join(name for name in together if name not in missing)
            raise InputError(f"{missing[0]}: found nothing, expected a value beside {given}")
        if self.coordinator_address is not None and not re.fullmatch(
            r"\[?[\w.:-]+\]?:\d+", self.coordinator_address
        ):
            raise InputError(
                f"coordinator_address: found {self.coordinator_address!r}, expected HOST:PORT of process 0"
            )
        if self.process_id is not None and self.num_processes is not None:
            last = self.num_processes - 1
            if self.process_id > last:
                raise InputError(f"process_id: found {self.process_id}, expected 0 to {last}")

    @property
    def alone(self) -> bool:
        """Whether this says that there is one process only."""
        return self.num_processes == 1


@contextmanager
def joined(config: DistributedConfig) -> Iterator[None]:
    """Run the block as one of the processes that ``config`` or the cluster names; alone, it changes nothing.

    To be entered before JAX looks at its devices. When the block fails in any process, all of them end: process 0
    prints the first failure, named by its process, and every one exits with that failure's code.

    Raises:
        InputError: process 0 cannot be reached, or a cluster was found that cannot be asked.
    """
    if not _initialize(config):
        yield
        return
    if jax.default_backend() == "cpu":
        _silence_libraries()
    ending = Ending()
    try:
        yield
        meet()
    except BaseException as error:
        ending.fail(error)
    ending.close()
    jax.distributed.shutdown()


def _initialize(config: DistributedConfig) -> bool:
    """Join the other processes, if there are any."""
    if config.alone:
        return False
    if config.coordinator_address is not None:
        arguments: dict[str, Any] = {
            "coordinator_address": config.coordinator_address,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
            "cluster_detection_method": "deactivate",
        }
    elif _in_slurm_step():
        arguments = {"cluster_detection_method": "slurm"}
        if os.environ["SLURM_NTASKS"] == os.environ.get("SLURM_STEP_NUM_NODES"):
            arguments["local_device_ids"] = ()  # one task on each host has all of its devices
    elif "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        if find_spec("kubernetes") is None:
            raise InputError(
                "distributed: found an indexed Kubernetes Job, but the package kubernetes is missing: "
                "pip install 'hybrid-jax[k8s]', or give coordinator_address, num_processes and process_id"
            )
        arguments = {}
    else:
        return False
    if config.process_id is not None:
        _check_coordinator(config)
    # It would swallow every SIGTERM until the first step, and agree on step numbers that a continued run has passed.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=config.initialization_timeout,
            heartbeat_timeout_seconds=config.heartbeat_timeout,
        )
    except Exception as error:  # of jax, its coordination service, or the client of Kubernetes
        raise InputError(
            f"distributed: cannot join the other processes: {str(error).partition(chr(10))[0]}"
        ) from None
    return True


def _check_coordinator(config: DistributedConfig) -> None:
    """Where process 0 cannot be reached, or its port is taken, jax would abort with a stack of C++ frames."""
    host, _, port = str(config.coordinator_address).rpartition(":")
    if config.process_id == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise InputError(
                f"distributed.coordinator_address: port {port} cannot be opened: {error.strerror or error}"
            ) from None
        return
    until = time.monotonic() + config.initialization_timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise InputError(
                    f"distributed.coordinator_address: process 0 cannot be reached at "
                    f"{config.coordinator_address} within {config.initialization_timeout} s: {error.strerror or error}"
                ) from None
        time.sleep(0.5)


def _silence_libraries() -> None:
    """Keep Python's own output but not that of C++ code: Gloo, which joins CPUs, tells of every connection it makes."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _in_slurm_step() -> bool:
    """Whether srun started this process as one of several."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and all(name in os.environ for name in needed)
