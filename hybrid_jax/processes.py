"""Several processes as one run, one on each host: how they find each other, who talks, and that they end together.

``jax.distributed`` does the work. What it leaves open is here: every process learns of the first failure of any of
them, process 0 tells it, and all end with the same exit code instead of waiting for one that is gone.
"""

import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import jax

from hybrid_jax.cli import describe_failure
from hybrid_jax.errors import InputError

_FAILURE, _LEFT = "hybrid_jax/failure", "hybrid_jax/left"
_POLL_SECONDS = 1.0
# How long a process may go on after another's failure: enough to see its own end of it, or to finish writing.
_GRACE_SECONDS = 5.0
# How long process 0, whose end would cut the others off, stays for them.
_STAY_SECONDS = _GRACE_SECONDS + 5.0
_MEETING_SECONDS = 600.0
# Network file systems may keep saying for a while that a new file is missing.
_SHARING_SECONDS = 30.0
# What Gloo, NCCL and jax's coordination service say of a peer that is gone.
_LOST = re.compile(
    r"closed by peer|reset by peer|remote process exited|remote error|heartbeat timeout|task is set to ERROR",
    re.IGNORECASE,
)

_meetings = itertools.count()


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
    ending = _Ending()
    try:
        yield
        meet()
    except BaseException as error:
        ending.fail(error)
    ending.close()
    jax.distributed.shutdown()


def is_primary() -> bool:
    """Whether this process is the one that talks, writes metrics and makes folders."""
    return jax.process_index() == 0


def from_primary(value: Any) -> Any:
    """What process 0 calls this with, as JSON makes it. All processes call it, in the same order."""
    if jax.process_count() == 1:
        return value
    key = f"hybrid_jax/value/{next(_meetings)}"
    if is_primary():
        _client().key_value_set(key, json.dumps(value))
    return json.loads(_client().blocking_key_value_get(key, int(1000 * _MEETING_SECONDS)))


def meet() -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"hybrid_jax/meeting/{next(_meetings)}", int(1000 * _MEETING_SECONDS))


class Agreement:
    """Something that any process may propose once, and all can look up; the first proposal stands.

    All processes make their agreements in the same order.
    """

    def __init__(self) -> None:
        self.alone = jax.process_count() == 1
        self._key = f"hybrid_jax/agreement/{next(_meetings)}"
        self._own: Any = None

    def propose(self, value: Any) -> None:
        """Propose ``value`` (as JSON has it), unless this process has proposed before; known to all on return."""
        if self._own is None:
            self._own = value
            if not self.alone:
                with suppress(jax.errors.JaxRuntimeError):  # another was first
                    _client().key_value_set(self._key, json.dumps(value))

    def current(self) -> Any:
        """What was proposed first; None as long as nothing was."""
        return self._own if self.alone else _look_up(self._key)


def check_shared(path: Path) -> None:
    """Refuse a folder that hosts do not share: all processes call this once process 0 has written the file ``path``.

    Raises:
        InputError: this process does not find the file.
    """
    meet()
    until = time.monotonic() + _SHARING_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise InputError(
                f"{path}: process {jax.process_index()} does not find what process 0 has written, "
                "expected a folder that all hosts share"
            )
        time.sleep(0.1)


class _Ending:
    """Ends this process when another one fails, and the others when this one does."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._told = False
        self._watcher = threading.Thread(target=self._watch, name="failures of other processes", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Watch no longer."""
        self._done.set()
        self._watcher.join()

    def fail(self, error: BaseException) -> NoReturn:
        """End all processes for what happened in this one, unless another failed before."""
        code, message = describe_failure(_lost_process(error) or error)
        index = jax.process_index()
        own = {"code": code, "message": f"process {index}: {message}" if index and message else message}
        first = _first_failure(own)
        if is_primary() or first is None:
            self._tell(first or own)
        self._leave(first or own)

    def _watch(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            first = _first_failure()
            if first is not None:
                if is_primary():
                    self._tell(first)
                # The main thread may notice by itself, or hang in a computation without the one that failed.
                self._done.wait(_GRACE_SECONDS)
                self._leave(first)

    def _tell(self, failure: dict[str, Any]) -> None:
        with self._lock:
            if failure["message"] and not self._told:
                print(failure["message"], file=sys.stderr)
            self._told = True

    def _leave(self, failure: dict[str, Any]) -> NoReturn:
        """Exit without unwinding: what would be unwound waits for processes that are gone."""
        with self._lock:  # for good: the other thread has nothing left to do
            sys.stdout.flush()
            sys.stderr.flush()
            with suppress(jax.errors.JaxRuntimeError):
                _client().key_value_set(f"{_LEFT}/{jax.process_index()}", "")
                until = time.monotonic() + _STAY_SECONDS
                while is_primary() and time.monotonic() < until:
                    if len(_client().key_value_dir_get(_LEFT)) == jax.process_count():
                        break
                    time.sleep(0.1)
            os._exit(failure["code"])


def _lost_process(error: BaseException) -> InputError | None:
    """What to say instead of ``error`` if it comes of a connection that another process has dropped."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or not _LOST.search(str(error)):
        return None
    reason = str(error).partition("\n")[0]
    return InputError(
        f"lost another process of the run: {reason}. Its own output or the scheduler's log says why it ended"
    )


def _first_failure(own: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The failure that was first, ``own`` if there was none before; None if there is none or nobody can say."""
    if own is not None:
        with suppress(jax.errors.JaxRuntimeError):  # another was before
            _client().key_value_set(_FAILURE, json.dumps(own))
    return _look_up(_FAILURE)


def _look_up(key: str) -> Any:
    """The value under ``key``; None if there is none or nobody can say."""
    try:
        return json.loads(_client().key_value_try_get(key))
    except jax.errors.JaxRuntimeError:
        return None


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


def _client() -> Any:
    # jax has no public way to its key-value store; orbax and flax reach for it in the same place.
    from jax._src.distributed import global_state

    return global_state.client
