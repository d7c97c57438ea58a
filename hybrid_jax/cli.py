"""How every script ends: a clear error and exit code 1, never a traceback, for what a user can mend."""

import sys
import traceback
from collections.abc import Callable

from hybrid_jax.errors import InputError


def run_script(main: Callable[[], None]) -> None:
    """Run ``main`` and turn user-level failures into one line on stderr and exit code 1.

    ``InputError`` is bad input; ``OSError`` covers missing files, permissions and a full disk. Ctrl-C exits with
    130, as a shell expects. Anything else is a fault of ours and keeps its traceback.
    """
    try:
        main()
    except (InputError, OSError, KeyboardInterrupt) as error:
        code, message = describe_failure(error)
        print(message, file=sys.stderr)
        sys.exit(code)
    except SystemExit as end:
        # tyro has said what is wrong with the flags; 2 is argparse's way of ending.
        sys.exit(1 if end.code == 2 else end.code)


def describe_failure(error: BaseException) -> tuple[int, str]:
    """Exit code of a script that ends with ``error``, and what it says on stderr: one line, or a traceback."""
    if isinstance(error, InputError | OSError):
        return 1, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        return error.code or 0, ""
    return 1, "".join(traceback.format_exception(error)).rstrip()
