"""The quickstart's data folder: the standard library's source as a tokenizer, a train shard and held-out texts."""

import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import NamedTuple

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.data.stdlib_corpus import TextFile, read_stdlib, split_corpus
from hybrid_jax.data.token_shards import write_shard
from hybrid_jax.data.tokenizer import (
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    encode_documents,
    save_tokenizer,
    special_token_id,
    train_tokenizer,
)
from hybrid_jax.errors import InputError

_TRAIN_SHARD = "train.npy"
_HELD_OUT = "held_out.jsonl"
_MANIFEST = "manifest.json"

# Raise it when the same texts come to give other files, so that folders made before are made anew.
_FORMAT = 1


class PreparedCorpus(NamedTuple):
    """What a prepared folder holds.

    Attributes:
        folder: holds ``tokenizer.json``, ``tokenizer_config.json`` and the two files below.
        train_path: the train shard, one document per file, in path order.
        held_out_path: JSON lines of ``{"path": ..., "text": ...}``; see ``read_held_out``.
        num_train_files: documents in the train shard.
        num_train_bytes: their size as UTF-8.
        num_train_tokens: tokens in the train shard, end-of-text tokens included.
        num_held_out_files: held-out documents.
        num_held_out_bytes: their size as UTF-8.
    """

    folder: Path
    train_path: Path
    held_out_path: Path
    num_train_files: int
    num_train_bytes: int
    num_train_tokens: int
    num_held_out_files: int
    num_held_out_bytes: int


def prepare_stdlib_corpus(folder: Path, vocab_size: int, root: Path | None = None) -> PreparedCorpus:
    """Make a folder of training data from the Python standard library, or keep it if already complete.

    The manifest is written last and holds a hash of all that decides the result, so an interrupted or outdated folder
    is made anew. Files in it with other names are left alone.

    Args:
        folder: where the files go.
        vocab_size: of the tokenizer to train, which sees the train split only.
        root: another folder of Python files to take in place of the standard library.

    Raises:
        InputError: no source file is found, none falls to one of the splits, or ``vocab_size`` is too small.
        OSError: the folder cannot be written to.
    """
    files = read_stdlib(root)
    train, held_out = split_corpus(files)
    if not train or not held_out:
        raise InputError(
            f"corpus: found {len(train)} train and {len(held_out)} held-out files, expected at least one of each"
        )
    key = _key(files, vocab_size)
    counts = _complete_counts(folder, key)
    if counts is None:
        counts = _write(folder, train, held_out, vocab_size, key)
    return PreparedCorpus(
        folder=folder, train_path=folder / _TRAIN_SHARD, held_out_path=folder / _HELD_OUT, **counts
    )


def read_held_out(path: Path) -> list[TextFile]:
    """Read the held-out texts of a prepared folder.

    Raises:
        InputError: the file is missing or a line is not ``{"path": ..., "text": ...}``.
    """
    if not path.is_file():
        raise InputError(f"{path}: found no such file, expected held-out texts (JSON lines)")
    files = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            files.append(TextFile(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(
                f'{path}: line {number}: expected {{"path": ..., "text": ...}}: {error}'
            ) from error
    return files


def _write(
    folder: Path, train: list[TextFile], held_out: list[TextFile], vocab_size: int, key: str
) -> dict[str, int]:
    manifest_path = folder / _MANIFEST
    manifest_path.unlink(missing_ok=True)
    texts = [file.text for file in train]
    tokenizer = train_tokenizer(texts, vocab_size)
    save_tokenizer(tokenizer, folder)
    with write_then_rename(folder / _HELD_OUT) as temporary:
        lines = [json.dumps(dataclasses.asdict(file)) + "\n" for file in held_out]
        temporary.write_text("".join(lines), encoding="utf-8")
    documents = encode_documents(tokenizer, texts)
    num_tokens = write_shard(folder / _TRAIN_SHARD, documents, vocab_size, special_token_id(tokenizer))
    counts = {
        "num_train_files": len(train),
        "num_train_bytes": _num_bytes(train),
        "num_train_tokens": num_tokens,
        "num_held_out_files": len(held_out),
        "num_held_out_bytes": _num_bytes(held_out),
    }
    names = [_TRAIN_SHARD, _HELD_OUT, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE]
    sizes = {name: (folder / name).stat().st_size for name in names}
    with write_then_rename(manifest_path) as temporary:
        manifest = {"key": key, "counts": counts, "sizes": sizes}
        temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return counts


def _complete_counts(folder: Path, key: str) -> dict[str, int] | None:
    """The counts of a folder made from the same texts, all of whose files are there; else None."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["key"] != key:
            return None
        if any((folder / name).stat().st_size != size for name, size in manifest["sizes"].items()):
            return None
        return dict(manifest["counts"])
    except (OSError, ValueError, KeyError):
        return None


def _key(files: list[TextFile], vocab_size: int) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([_FORMAT, vocab_size, importlib.metadata.version("tokenizers")]).encode())
    for file in files:
        digest.update(json.dumps([file.path, file.text]).encode())
    return digest.hexdigest()


def _num_bytes(files: list[TextFile]) -> int:
    return sum(len(file.text.encode()) for file in files)
