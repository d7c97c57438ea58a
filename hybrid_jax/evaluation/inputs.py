"""Documents to score, of texts and of token shards."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from hybrid_jax.config import ModelConfig
from hybrid_jax.data.documents import check_input, read_texts
from hybrid_jax.data.token_shards import TokenShard, open_shard
from hybrid_jax.data.tokenizer import encode_documents, vocabulary_size
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.bits_per_byte import Document

# Tokens of a shard looked through at a time for the ends of documents.
_BLOCK = 2**20


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Refuse a tokenizer that makes tokens the model does not have.

    Raises:
        InputError: its vocabulary is the larger one.
    """
    if vocabulary_size(tokenizer) > config.vocab_size:
        raise InputError(
            f"tokenizer: found {vocabulary_size(tokenizer)} ids, expected at most the model's vocab_size "
            f"{config.vocab_size}"
        )


def border_token_id(config: ModelConfig) -> int:
    """The token that a model knows as the border of documents: its end of text.

    Raises:
        InputError: the configuration names none.
    """
    if not config.eos_token_ids:
        raise InputError(
            "eos_token_id: found none in the model's config, expected the token that ends documents"
        )
    return config.eos_token_ids[0]


def read_documents(
    path: Path,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    *,
    text_field: str = "text",
    suffixes: Sequence[str] = (".txt",),
) -> Iterator[Document]:
    """Read what is to be scored.

    Args:
        path: a text file, JSON lines (also compressed) or Parquet, a folder of text files, or a token shard (.npy).
        config: of the model: its vocabulary, and the end-of-text token that ends a shard's documents.
        tokenizer: makes a text's tokens; for a shard, counts the bytes of each document by decoding it. May be None
            for shards, whose number of bytes is then not known.
        text_field: the field of JSON lines and Parquet that holds the text.
        suffixes: how the names of text files end.

    Raises:
        InputError: at once where the path does not exist or is of no known kind, or a text comes without tokenizer
            or the tokenizer has ids that the model has not; later as ``read_texts`` and ``TokenShard.read``, or
            where a document is empty.
    """
    if tokenizer is not None:
        check_tokenizer(tokenizer, config)
    if path.is_file() and path.suffix == ".npy":
        return _shard_documents(open_shard(path, config.vocab_size), border_token_id(config), tokenizer)
    is_text = path.is_file() and path.name.endswith(tuple(suffixes))
    if not is_text:
        try:
            check_input(path)
        except InputError as error:
            if not path.exists():
                raise
            raise InputError(
                f"{error}, text ({', '.join(suffixes)}; suffixes names others), or a token shard (.npy)"
            ) from error
    if tokenizer is None:
        raise InputError(f"{path}: found text and no tokenizer, expected one to make tokens with")
    texts = iter([_read_text(path)]) if is_text else read_texts(path, text_field, suffixes)
    return _text_documents(path, texts, tokenizer)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text: {error}") from error


def _text_documents(path: Path, texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[Document]:
    sizes: list[int] = []

    def measured() -> Iterator[str]:
        for number, text in enumerate(texts):
            if not text:
                raise InputError(f"{path}: document {number}: found an empty document, expected text")
            sizes.append(len(text.encode()))
            yield text

    for number, ids in enumerate(encode_documents(tokenizer, measured())):
        yield Document(f"{path}: document {number}", ids, sizes[number])


def _shard_documents(shard: TokenShard, eos_token_id: int, tokenizer: Tokenizer | None) -> Iterator[Document]:
    """What lies between end-of-text tokens, and what comes after the last."""
    start = number = 0
    for first in range(0, len(shard), _BLOCK):
        block = shard.read(first, min(first + _BLOCK, len(shard)))
        stops = (np.flatnonzero(block == eos_token_id) + first).tolist()
        if first + _BLOCK >= len(shard) and block[-1] != eos_token_id:
            stops.append(len(shard))
        for stop in stops:
            name = f"{shard.path}: document {number}"
            ids = shard.read(start, stop)
            num_bytes = None if tokenizer is None or stop == start else _num_bytes(tokenizer, ids)
            yield Document(name, ids, num_bytes)
            start, number = stop + 1, number + 1


def _num_bytes(tokenizer: Tokenizer, ids: np.ndarray) -> int:
    return len(tokenizer.decode(ids.tolist(), skip_special_tokens=False).encode())
