"""The files of a checkpoint: a list of them written with it, what counts as damage, and damaged folders put aside.

TensorStore notices what is wrong with a file only when it reads it, and the bytes of arrays carry no checksum. The list
finds what is cut off or gone by looking at sizes alone, so that one process can do it for all.
"""

import errno
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.errors import InputError
from hybrid_jax.orbax_failures import os_error_code, tell_failures_once

LIST_NAME = "files.json"
# Orbax writes these after the list; nothing is read from them.
_UNLISTED = (LIST_NAME, "_CHECKPOINT_METADATA", "commit_success.txt")
# What TensorStore and Orbax say after the reason.
_DETAILS = re.compile(r"\n| \[os_error_code=| \[tensorstore_spec|\. See full TensorStore")


class DamagedCheckpoint(InputError):
    """A checkpoint that cannot be read; says which and why."""


def write_file_list(folder: Path) -> None:
    """Write the size in bytes of every file in the complete ``folder`` to its ``files.json``.

    Raises:
        OSError: it cannot be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    listed = {name: size for name, size in sizes.items() if name not in _UNLISTED}
    with write_then_rename(folder / LIST_NAME) as temporary:
        temporary.write_text(json.dumps(listed), encoding="utf-8")


def check_files(folder: Path) -> str | None:
    """Compare the files in ``folder`` with its list. Without one, as older versions left it, nothing is known.

    Returns:
        The first file that is gone, has another size or lies outside, named with the folder, or that the list is none;
        None if all is well.
    """
    try:
        listed = json.loads((folder / LIST_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        listed = None
    if not isinstance(listed, dict) or not all(isinstance(size, int) for size in listed.values()):
        return f"{folder}: {LIST_NAME} is no list of files"
    for name, size in listed.items():
        if lies_outside(name):
            return f"{folder}: {LIST_NAME}: {name!r} lies outside the folder"
        try:
            found = (folder / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return f"{folder}: {name} is missing"
        if found != size:
            return f"{folder}: {name} has {found:,} bytes where {size:,} were written"
    return None


def lies_outside(name: str) -> bool:
    """Whether the name of a file, read from a checkpoint, may lead out of its folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what Orbax and TensorStore raise about the files of ``folder`` into one line that names it.

    Raises:
        DamagedCheckpoint: a file is gone, or has other content than was written.
        OSError: a file cannot be read for a reason that says nothing about its content: permissions, a failing
            disk, too many open files.
    """
    tell_failures_once()
    try:
        yield
    except (RuntimeError, MemoryError):  # of a device or this host, not of the file
        raise
    except Exception as error:  # Orbax raises bare ones for the bytes of arrays, from what TensorStore said
        cause = error.__cause__ or error
        message = f"{folder}: cannot be read: {_DETAILS.split(str(cause), maxsplit=1)[0]}"
        gone = isinstance(cause, FileNotFoundError | NotADirectoryError)
        if gone or os_error_code(cause) in (None, errno.ENOENT, errno.ENOTDIR):
            raise DamagedCheckpoint(message) from None
        raise OSError(message) from None


def put_aside(folder: Path) -> Path:
    """Rename the checkpoint ``folder`` so that it counts as one no more and its step can be saved again."""
    names = itertools.chain(
        [f"damaged-{folder.name}"], (f"damaged-{folder.name}-{n}" for n in itertools.count(2))
    )
    aside = next(path for path in map(folder.with_name, names) if not path.exists())
    return folder.rename(aside)
