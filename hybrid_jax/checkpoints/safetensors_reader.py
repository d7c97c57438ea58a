"""Reading a folder of safetensors, one part of one tensor at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy learns bfloat16 from it, without which safetensors refuses such tensors
import numpy as np
from safetensors import SafetensorError, safe_open

from hybrid_jax.checkpoints.checkpoint_files import lies_outside
from hybrid_jax.errors import InputError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# safetensors' names of the dtypes a model may be stored in.
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor is, its shape, and its dtype in safetensors' spelling (``BF16``)."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor, or the part of it that ``index`` names.

        The file is opened for each read: memory mapped for longer would count as this process's own.

        Raises:
            InputError: the file cannot be read.
        """
        with _open(self.file) as file:
            return file.get_slice(self.name)[index or ...]


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of ``model.safetensors``, or else of the files in ``model.safetensors.index.json``, by name.

    Only headers are read.

    Raises:
        InputError: no weights, a file that is missing, truncated or outside the folder, a tensor in two files.
    """
    found: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        with _open(file) as opened:
            for name in opened.keys():  # noqa: SIM118  not a mapping
                if name in found:
                    raise InputError(
                        f"{folder}: tensor {name} is in both {found[name].file.name} and {file.name}"
                    )
                part = opened.get_slice(name)
                found[name] = StoredTensor(
                    file=file, name=name, shape=tuple(part.get_shape()), dtype=part.get_dtype()
                )
    return found


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.exists():
        others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
        pickles = f" (pickled files are never read: {', '.join(others)})" if others else ""
        raise InputError(f"{folder}: no weights: expected {SINGLE_FILE} or {INDEX_FILE}{pickles}")
    names = _names_in_index(index)
    for name in names:
        if lies_outside(name):
            raise InputError(f"{index}: weight_map: {name!r} lies outside the folder")
        if not (folder / name).is_file():
            raise InputError(f"{index}: weight_map: found {name!r}, but there is no such file in {folder}")
    return [folder / name for name in names]


def _names_in_index(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: expected JSON with a weight_map from tensor to file name") from None
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{index}: weight_map: expected file names, found {names!r}")
    return names


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise InputError(f"{path}: truncated, or not a safetensors file: {error}") from None
