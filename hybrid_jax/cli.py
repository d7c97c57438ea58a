"""How every script ends: a clear error and exit code 1, never a traceback, for what a user can mend."""

import sys
from collections.abc import Callable

from hybrid_jax.errors import InputError


def run_script(main: Callable[[], None]) -> None:
    """Run ``main`` and turn user-level failures into one line on stderr and exit code 1.

    ``InputError`` is bad input; ``OSError`` covers missing files, permissions and a full disk. Ctrl-C exits with
    130, as a shell expects. Anything else is a fault of ours and keeps its traceback.
    """
    try:
        main()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
