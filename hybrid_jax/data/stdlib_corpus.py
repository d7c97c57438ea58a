"""A corpus every Python already has: the source files of its own standard library."""

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from hybrid_jax.errors import InputError

# Tests: many distributions strip them, and the corpus should not depend on who packaged Python.
# encodings: generated tables that hardly differ, so that held-out ones would have their twins in the train split.
_EXCLUDED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "encodings",
}

# Written while Python was built, with the paths of that machine in them.
_EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")

_HELD_OUT_PERCENT = 4


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """One document: its text and its path relative to the corpus root, with forward slashes."""

    path: str
    text: str


def read_stdlib(root: Path | None = None) -> list[TextFile]:
    """Read the ``.py`` files of the running interpreter's standard library, ordered by relative path.

    Empty files and files that are not UTF-8 are left out, as are packages installed beside the library and what
    ``_EXCLUDED_FOLDERS`` and ``_EXCLUDED_PREFIXES`` name. Line ends are kept as they are.

    Args:
        root: another folder to read in place of the standard library's.

    Raises:
        InputError: no source file is found (a Python that runs from a zip file has none).
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    files = [TextFile(path=path.relative_to(root).as_posix(), text=text) for path, text in _texts(root)]
    if not files:
        raise InputError(f"{root}: found no Python source files, expected the standard library's .py files")
    return sorted(files, key=lambda file: file.path)


def is_held_out(path: str) -> bool:
    """Whether the file at this relative path is kept from training: about one in 25, the same on every machine."""
    digest = hashlib.sha256(path.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < _HELD_OUT_PERCENT


def split_corpus(files: list[TextFile]) -> tuple[list[TextFile], list[TextFile]]:
    """Split into (train, held out), each in the given order."""
    train = [file for file in files if not is_held_out(file.path)]
    held_out = [file for file in files if is_held_out(file.path)]
    return train, held_out


def _texts(root: Path) -> list[tuple[Path, str]]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _EXCLUDED_FOLDERS and _is_source(name)]
        for name in names:
            path = Path(folder, name)
            if not (name.endswith(".py") and _is_source(name) and path.is_file()):
                continue
            try:
                text = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue
            if text:
                found.append((path, text))
    return found


def _is_source(name: str) -> bool:
    return not name.startswith(_EXCLUDED_PREFIXES)
