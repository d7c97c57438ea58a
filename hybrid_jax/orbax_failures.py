"""Failures of Orbax's background threads, told once: by the exception raised, not by tracebacks of every thread."""

import errno
import logging
import re
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from functools import cache
from pathlib import Path
from types import CoroutineType
from typing import Any

# The last failure of a background thread that nobody has asked about.
_errors: deque[BaseException] = deque(maxlen=1)


@cache
def tell_failures_once() -> None:
    """Keep from stderr what threads of Orbax and TensorStore say about errors that Orbax also raises.

    For good: they go on after the error has been raised, some until the process ends.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_orbax_traceback)
    warnings.filterwarnings("ignore", r"coroutine '.*write_fragment' was never awaited", RuntimeWarning)
    report = sys.unraisablehook

    def hook(problem: Any) -> None:
        # Once one array has failed, TensorStore finds the event loop closed when it reports on the others.
        late = (
            isinstance(problem.exc_value, RuntimeError) and str(problem.exc_value) == "Event loop is closed"
        )
        left = isinstance(problem.object, CoroutineType) and "orbax" in problem.object.cr_code.co_filename
        if not late and not left:
            report(problem)

    sys.unraisablehook = hook


def background_error() -> BaseException | None:
    """What a thread of Orbax has failed with, once; None if nothing happened since the last call.

    With several processes Orbax raises it only after a barrier to which the others come late or never.
    """
    return _errors.pop() if _errors else None


def os_error_code(error: BaseException) -> int | None:
    """The errno behind ``error``, None if there is none. TensorStore raises ValueErrors that name it in their text."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    named = re.search(r"os_error_code='(\d+)'", str(error))
    return int(named[1]) if named else None


def remove_half_written(folder: Path, name: str = "*") -> None:
    """Remove unfinished checkpoints called ``name`` from a folder, if there is one.

    Waits until this process writes to them no more; another's are not to be among them.
    """
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            threading.Thread.join(thread, timeout=60)  # Orbax's own join raises the thread's error once more
    unfinished = f"{name}.orbax-checkpoint-tmp*"
    for _ in range(20):
        if not any(folder.glob(unfinished)):
            return
        for path in folder.glob(unfinished):
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)  # TensorStore's own threads cannot be waited for.


def _is_not_orbax_traceback(record: logging.LogRecord) -> bool:
    if not record.exc_info:
        return True
    _, error, trace = record.exc_info
    named = "os_error_code=" in str(error)
    if not named and not any("orbax" in frame.filename for frame in traceback.extract_tb(trace)):
        return True
    if error is not None and record.levelno >= logging.ERROR:
        _errors.append(error)
    return False
