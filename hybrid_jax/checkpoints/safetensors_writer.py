"""Writing safetensors tensor by tensor, sharded as Hugging Face shards.

The library's own ``save_file`` wants all tensors of a file in memory at once; the format itself does not: a length,
a JSON header, then the bytes of each tensor (https://github.com/huggingface/safetensors, "Format"). Files come out
as ``save_file`` writes them, byte for byte.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub.serialization import split_state_dict_into_shards_factory

from hybrid_jax.checkpoints.host_arrays import copy_into
from hybrid_jax.checkpoints.safetensors_reader import DTYPES, INDEX_FILE
from hybrid_jax.errors import InputError

_CODES = {dtype: code for code, dtype in DTYPES.items()}
# Rows of a tensor copied at a time.
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class LazyTensor:
    """A tensor to write: its shape and dtype now, its values (a view will do) when asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(folder: Path, tensors: Mapping[str, LazyTensor], max_shard_size: int | str) -> None:
    """Write ``model.safetensors``, or shards and their index where it would be larger than ``max_shard_size``.

    Args:
        folder: an existing folder.
        tensors: by name, in the order in which they fill the shards; float32, bfloat16 or float16.
        max_shard_size: bytes, or a string like "5GB" (10^9 bytes).

    Raises:
        InputError: ``max_shard_size`` cannot be understood.
        OSError: a file cannot be written.
    """
    try:
        split = split_state_dict_into_shards_factory(
            {name: tensor.num_bytes for name, tensor in tensors.items()},
            get_storage_size=int,
            get_storage_id=lambda _: None,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise InputError(f"max_shard_size: found {max_shard_size!r}: {error}") from None
    for file_name, names in split.filename_to_tensors.items():
        _write_file(folder / file_name, {name: tensors[name] for name in names})
    if split.is_sharded:
        num_parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
        index = {
            "metadata": {"total_parameters": num_parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX_FILE).write_text(text, encoding="utf-8")


def _write_file(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    # The library's order: wider dtypes first, so that every tensor is aligned; bfloat16 before float16.
    order = sorted(tensors, key=lambda name: (*_rank(tensors[name].dtype), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.num_bytes
        header[name] = {
            "dtype": _CODES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    try:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                file.writelines(_blocks(tensors[name]))
    except OSError as error:
        # Failed writes do not know their file's name.
        raise OSError(error.errno, error.strerror, str(path)) from None


def _rank(dtype: np.dtype) -> tuple[int, bool]:
    return -dtype.itemsize, dtype.name != "bfloat16"


def _blocks(tensor: LazyTensor) -> Iterator[memoryview]:
    """The tensor's bytes, in pieces where they must be copied."""
    values = tensor.values()
    if values.dtype == tensor.dtype and values.flags.c_contiguous:
        yield _bytes(values)
        return
    for start in range(0, len(values), _ROWS):
        rows = values[start : start + _ROWS]
        block = np.empty(rows.shape, tensor.dtype)
        copy_into(block, rows)
        yield _bytes(block)


def _bytes(values: np.ndarray) -> memoryview:
    return values.reshape(-1).view(np.uint8).data
