"""Where each token of a packed batch stands: its document, its place in the row, its position."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from hybrid_jax.models.cache import Cache
from hybrid_jax.sharding.manual import axis_index


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What every mixer needs to know of a batch [B, T] besides its activations.

    Attributes:
        documents: number of each token's document, counted along the row from 1; 0 is padding. None when the whole
            batch is one document per row without padding, so that nothing need be masked.
        index: place of each token in its row, counted over real tokens since the cache began; strictly
            increasing over the real tokens of a row.
        positions: position within the document, for rotary embeddings.
        slots: number of each slot of the batch in its row; other than 0, 1, 2, ... where this device has only a part.
        document_start: slot of this batch in which each token's document begins, 0 if it began before.
        open_document: [B] the document that the carried state belongs to (the cache's).
        open_is_first: [B] whether the row's first real token continues that document.
        last_slot: [B] slot of the row's last real token, -1 where it has none.
        last_document: [B] the document open after this batch.
    """

    documents: Int[Array, "B T"] | None
    index: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    slots: Int[Array, " T"]
    document_start: Int[Array, "B T"]
    open_document: Int[Array, " B"]
    open_is_first: Array
    last_slot: Int[Array, " B"]
    last_document: Int[Array, " B"]

    def documents_after_tail(self, size: int) -> Int[Array, "B S"] | None:
        """``documents`` preceded by ``size`` slots of the open document."""
        if self.documents is None:
            return None
        before = jnp.broadcast_to(self.open_document[:, None], (self.documents.shape[0], size))
        return jnp.concatenate([before, self.documents], axis=1)


def describe_tokens(
    shape: tuple[int, ...],
    segment_ids: Int[Array, "B T"] | None,
    positions: Int[Array, "B T"] | None,
    cache: Cache | None,
) -> tuple[Tokens, dict[str, Array]]:
    """Place a batch after what ``cache`` has seen.

    Args:
        shape: (B, T).
        segment_ids: id of each token's document, constant over a document and different from its neighbours';
            0 is padding. None continues the open document (or starts one) with every token.
        positions: positions to use for rotary embeddings; None counts from 0 in each document.
        cache: what the row has seen before; None at its start.

    Returns:
        The Tokens, and the fields of ``Cache`` that describe the row after this batch.
    """
    batch, length = shape
    zeros = jnp.zeros((batch,), jnp.int32)
    seen = cache.length if cache is not None else zeros
    document = cache.document if cache is not None else zeros
    open_segment = cache.segment_id if cache is not None else zeros
    start = cache.document_start if cache is not None else zeros

    if segment_ids is None:
        real = jnp.ones(shape, bool)
        documents = jnp.broadcast_to(jnp.maximum(document, 1)[:, None], shape)
        segment_now = jnp.maximum(open_segment, 1)
    else:
        real = segment_ids != 0
        # The id in force at each slot: padding keeps the one before it.
        in_force = jnp.concatenate([open_segment[:, None], segment_ids], axis=1)
        slots = jnp.where(jnp.pad(real, ((0, 0), (1, 0)), constant_values=True), jnp.arange(length + 1), 0)
        in_force = jnp.take_along_axis(in_force, jax.lax.cummax(slots, axis=1), axis=1)
        begins = in_force[:, 1:] != in_force[:, :-1]
        documents = document[:, None] + jnp.cumsum(begins, axis=1, dtype=jnp.int32)
        segment_now = in_force[:, -1]

    index = seen[:, None] + jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
    last_document = documents[:, -1]
    begins = documents != jnp.concatenate([document[:, None], documents[:, :-1]], axis=1)
    starts = jax.lax.cummax(jnp.where(begins, index, start[:, None]), axis=1)
    slot_numbers = jnp.arange(length, dtype=jnp.int32)
    last_slot = jnp.max(jnp.where(real, slot_numbers, -1), axis=1)
    first_real = jnp.argmax(real, axis=1)
    first_document = jnp.take_along_axis(documents, first_real[:, None], axis=1)[:, 0]
    tokens = Tokens(
        documents=None if segment_ids is None and cache is None else jnp.where(real, documents, 0),
        index=index,
        positions=positions if positions is not None else index - starts,
        slots=slot_numbers,
        document_start=jax.lax.cummax(jnp.where(begins, slot_numbers, 0), axis=1),
        open_document=document,
        open_is_first=first_document == document,
        last_slot=last_slot,
        last_document=last_document,
    )
    after = {
        "length": seen + jnp.sum(real, axis=1, dtype=jnp.int32),
        "document": last_document,
        "segment_id": segment_now,
        "document_start": starts[:, -1],
    }
    return tokens, after


def describe_part(segment_ids: Int[Array, "B T"], positions: Int[Array, "B T"] | None, axis: str) -> Tokens:
    """As ``describe_tokens`` without a cache, where this device has a contiguous part of each row.

    Args:
        segment_ids: of this device's tokens.
        positions: of this device's tokens.
        axis: the mesh axis over which rows are split.
    """
    num_tokens = segment_ids.shape[1]
    row_segments = jax.lax.all_gather(segment_ids, axis, axis=1, tiled=True)
    row, _ = describe_tokens(row_segments.shape, row_segments, None, None)
    offset = axis_index(axis) * num_tokens

    def part(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, offset, num_tokens, x.ndim - 1)

    row_documents = jnp.where(row_segments != 0, jnp.asarray(row.documents), 0)
    in_force = jax.lax.cummax(row_documents, axis=1)
    before = jnp.where(offset > 0, jnp.take(in_force, jnp.maximum(offset - 1, 0), axis=1), 0)
    documents = part(row_documents)
    first_real = jnp.argmax(documents != 0, axis=1)
    first_document = jnp.take_along_axis(part(in_force), first_real[:, None], axis=1)[:, 0]
    return replace(
        row,
        documents=documents,
        index=part(row.index),
        positions=part(row.positions) if positions is None else positions,
        slots=part(row.slots),
        document_start=part(row.document_start),
        open_document=before,
        open_is_first=first_document == before,
    )
