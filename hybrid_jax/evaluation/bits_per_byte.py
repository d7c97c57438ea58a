"""Bits per byte of held-out documents: comparable across tokenizers, and with gzip and xz."""

import gzip
import lzma
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from hybrid_jax.errors import InputError
from hybrid_jax.models import CausalLM


class TextScore(NamedTuple):
    """Sums over documents.

    Attributes:
        nats: -log p of every token but the one each document starts from.
        num_tokens: how many were scored.
        num_bytes: UTF-8 bytes of the text they stand for.
    """

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Pooled over all documents."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def cross_entropy(self) -> float:
        """Mean nats per token."""
        return self.nats / self.num_tokens


class _Window(NamedTuple):
    """A stretch of one document: its ids, and how many at its beginning are context scored already."""

    ids: Int[np.ndarray, " n"]
    num_context: int


def score_documents(
    model: CausalLM,
    documents: Sequence[Sequence[int]],
    num_bytes: int,
    start_token_id: int,
    window: int = 1024,
    batch_size: int = 8,
) -> TextScore:
    """Score every token of ``documents``, each given the document before it as far as the window reaches.

    Each document stands on its own behind ``start_token_id``. One longer than ``window`` is scored in windows that
    overlap by half: a token is scored once, with at least half a window before it where there is that much.

    Args:
        model: what is scored.
        documents: token ids, at least one document and none empty.
        num_bytes: UTF-8 bytes of all documents together.
        start_token_id: what the model knows as the border of documents (its end-of-text token).
        window: tokens seen at a time, the start token included.
        batch_size: windows computed at a time.

    Raises:
        InputError: no document, an empty one, or a token outside the vocabulary.
    """
    if not documents:
        raise InputError("documents: found none, expected at least one")
    windows: list[_Window] = []
    for number, document in enumerate(documents):
        if not len(document):
            raise InputError(f"documents: document {number} is empty")
        if not 0 <= min(document) <= max(document) < model.config.vocab_size:
            raise InputError(
                f"documents: document {number} has token ids {min(document)} to {max(document)}, "
                f"expected 0 <= id < vocab_size {model.config.vocab_size}"
            )
        windows.extend(_windows(np.array([start_token_id, *document], np.int32), window))
    # Like lengths together waste little on padding; two lengths of batch are compiled.
    windows.sort(key=lambda each: len(each.ids))
    nats = 0.0
    for first in range(0, len(windows), batch_size):
        nats += float(_batch_nats(model, *_pad(windows[first : first + batch_size], batch_size, window)))
    return TextScore(nats=nats, num_tokens=sum(map(len, documents)), num_bytes=num_bytes)


def compressed_bits_per_byte(data: bytes) -> dict[str, float]:
    """Bits per byte of general-purpose compressors at their strongest on ``data``."""
    sizes = {
        "gzip": len(gzip.compress(data, 9)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * size / len(data) for name, size in sizes.items()}


def _windows(ids: Int[np.ndarray, " n"], window: int) -> Iterator[_Window]:
    stride = max(window // 2, 1)
    scored = 1
    for start in range(0, max(len(ids) - window, 0) + stride, stride):
        stop = min(start + window, len(ids))
        if stop > scored:
            yield _Window(ids[start:stop], scored - start)
            scored = stop


def _pad(
    windows: Sequence[_Window], batch_size: int, window: int
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, "B T"], Int32[np.ndarray, "B T"]]:
    """Ids, segment ids and labels (-1: not scored) of one batch, padded to half a window or a whole one."""
    longest = max(len(each.ids) for each in windows)
    length = window if longest > window // 2 else max(window // 2, longest)
    ids, segments, labels = (np.zeros((batch_size, length), np.int32) for _ in range(3))
    labels -= 1
    for row, each in enumerate(windows):
        size = len(each.ids)
        ids[row, :size] = each.ids
        segments[row, :size] = 1
        labels[row, each.num_context - 1 : size - 1] = each.ids[each.num_context :]
    return ids, segments, labels


@jax.jit
def _batch_nats(
    model: CausalLM, ids: Int32[Array, "B T"], segments: Int32[Array, "B T"], labels: Int32[Array, "B T"]
) -> Float32[Array, ""]:
    hidden = model.hidden_states(ids, segments)

    def row_nats(row: tuple[Array, Array]) -> Array:
        hidden, labels = row
        log_probabilities = jax.nn.log_softmax(model.logits(hidden))
        scored = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        return -jnp.sum(jnp.where(labels >= 0, scored, 0.0))

    # A row at a time: logits of a whole batch would be the largest array by far.
    return jnp.sum(jax.lax.map(row_nats, (hidden, labels)))
