"""Token shards as OLMo-core writes them: headerless ``.npy`` files of raw little-endian token ids.

Every document is followed by the end-of-text token. The integer type is the smallest that holds the vocabulary
(OLMo-core ``data/utils.py`` and ``data/numpy_dataset.py``), so a file can only be read with the vocabulary size it was
written for.
"""

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Integer

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.errors import InputError

_NPY_MAGIC = b"\x93NUMPY"


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest little-endian unsigned integer type that holds ids ``0 ... vocab_size - 1``."""
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")


def write_shard(
    path: Path,
    documents: Iterable[Integer[np.ndarray, " _"]],
    vocab_size: int,
    eos_token_id: int,
) -> int:
    """Write documents to one shard, each followed by ``eos_token_id``; the file appears only when complete.

    Returns:
        The number of tokens written.

    Raises:
        InputError: a document holds an id outside the vocabulary, or ``eos_token_id`` is.
        OSError: the file cannot be written.
    """
    dtype = token_dtype(vocab_size)
    end = np.array([eos_token_id])
    _check_vocabulary(end, vocab_size, "eos_token_id")
    num_tokens = 0
    with write_then_rename(path) as temporary, temporary.open("wb") as file:
        for index, document in enumerate(documents):
            _check_vocabulary(document, vocab_size, f"{path}: document {index}")
            for tokens in (document, end):
                file.write(tokens.astype(dtype).tobytes())
                num_tokens += len(tokens)
    return num_tokens


def find_shards(paths: Sequence[str]) -> tuple[Path, ...]:
    """Resolve files and glob patterns (``**`` included) in the order given, each pattern's matches sorted.

    Raises:
        InputError: a file does not exist, a pattern matches nothing, or a file is named twice.
    """
    found: list[Path] = []
    for pattern in paths:
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise InputError(f"{pattern}: found no such file, expected token shards (.npy)")
        found.extend(Path(match) for match in matches)
    path, count = Counter(found).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: found {count} times in {list(paths)}, expected once")
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class TokenShard:
    """A memory-mapped shard; ``open_shard`` makes one."""

    path: Path
    tokens: np.ndarray
    vocab_size: int

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, stop: int) -> Int32[np.ndarray, " num_tokens"]:
        """Read tokens ``start ... stop - 1``.

        Raises:
            InputError: one of them is outside the vocabulary.
        """
        tokens = self.tokens[start:stop]
        _check_vocabulary(tokens, self.vocab_size, str(self.path), start)
        return tokens.astype(np.int32)


def open_shard(path: Path, vocab_size: int) -> TokenShard:
    """Memory-map a shard for reading. Ids are checked as they are read, not here.

    Raises:
        InputError: the path is no file, is empty, has a NumPy header, or is no whole number of tokens long.
    """
    if not path.is_file():
        raise InputError(f"{path}: found no such file, expected a token shard (.npy)")
    dtype = token_dtype(vocab_size)
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise InputError(f"{path}: found an empty file, expected tokens of {dtype.name}")
    if num_bytes % dtype.itemsize:
        raise InputError(
            f"{path}: found {num_bytes} bytes, expected a multiple of {dtype.itemsize} ({dtype.name}, the smallest "
            f"type for a vocabulary of {vocab_size})"
        )
    with path.open("rb") as file:
        if file.read(len(_NPY_MAGIC)) == _NPY_MAGIC:
            raise InputError(
                f"{path}: found a NumPy header, expected raw {dtype.name} without one (tofile, not save)"
            )
    return TokenShard(path=path, tokens=np.memmap(path, dtype=dtype, mode="r"), vocab_size=vocab_size)


def _check_vocabulary(tokens: np.ndarray, vocab_size: int, where: str, start: int = 0) -> None:
    if not len(tokens) or (tokens.max() < vocab_size and tokens.min() >= 0):
        return
    offset = int(np.flatnonzero((tokens >= vocab_size) | (tokens < 0))[0])
    raise InputError(
        f"{where}: found token id {tokens[offset]} at position {start + offset}, expected 0 to {vocab_size - 1} "
        f"(a vocabulary of {vocab_size})"
    )
