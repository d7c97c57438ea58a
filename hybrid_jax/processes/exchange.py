"""What processes tell each other, through the key-value store and the barriers of ``jax.distributed``."""

import itertools
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from hybrid_jax.errors import InputError

_MEETING_SECONDS = 600.0
# Network file systems may keep saying for a while that a new file is missing.
_SHARING_SECONDS = 30.0

_meetings = itertools.count()


def is_primary() -> bool:
    """Whether this process is the one that talks, writes metrics and makes folders."""
    return jax.process_index() == 0


def from_primary(value: Any) -> Any:
    """What process 0 calls this with, as JSON makes it. All processes call it, in the same order."""
    if jax.process_count() == 1:
        return value
    key = f"hybrid_jax/value/{next(_meetings)}"
    if is_primary():
        client().key_value_set(key, json.dumps(value))
    return json.loads(client().blocking_key_value_get(key, int(1000 * _MEETING_SECONDS)))


def meet() -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        client().wait_at_barrier(f"hybrid_jax/meeting/{next(_meetings)}", int(1000 * _MEETING_SECONDS))


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
                    client().key_value_set(self._key, json.dumps(value))

    def current(self) -> Any:
        """What was proposed first; None as long as nothing was."""
        return self._own if self.alone else look_up(self._key)


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


def look_up(key: str) -> Any:
    """The value under ``key``; None if there is none or nobody can say."""
    try:
        return json.loads(client().key_value_try_get(key))
    except jax.errors.JaxRuntimeError:
        return None


def client() -> Any:
    """The store itself."""
    # jax has no public way to its key-value store; orbax and flax reach for it in the same place.
    from jax._src.distributed import global_state

    return global_state.client
