"""Being stopped politely: SIGINT and SIGTERM as a wish to end after the current step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn


class StopRequest:
    """Context manager that remembers the first SIGINT or SIGTERM instead of dying of it.

    A second SIGINT interrupts at once. Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        """Whether the run has been asked to stop."""
        return self._received is not None

    def end_process(self) -> NoReturn:
        """End as the signal would have: KeyboardInterrupt for SIGINT, exit code 143 for SIGTERM."""
        if self._received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
