"""Being stopped politely: SIGINT and SIGTERM as a wish to end after the current step."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Context manager that remembers the first SIGINT or SIGTERM instead of dying of it.

    A second SIGINT interrupts at once. Outside the main thread, where Python allows no handlers, nothing is caught.
    With several processes a signal to one of them is a wish to end all: ``jax.distributed`` listens for SIGTERM and
    lets them agree on a step.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> bool:
        """Whether the run is to end after ``step``; to be asked after every step, and the same in every process."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def end_process(self) -> NoReturn:
        """End as the signal would have: KeyboardInterrupt for SIGINT, exit code 143 for SIGTERM."""
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
