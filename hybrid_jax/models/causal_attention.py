"""Causal softmax attention over whole rows, block by block, with its own gradient (arXiv 2205.14135, 2307.08691).

Scores exist for one block of queries and one block of keys at a time, and only for pairs of blocks in which causality
and the window leave something to see. The backward pass computes them again from the saved log-sum-exp, so memory
grows with T and the work with what is visible.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hybrid_jax.models.tokens import Tokens

# Tokens per block: few skip more of the hidden half of the scores, many keep matrix products large.
_SMALLEST_BLOCK, _LARGEST_BLOCK = 128, 512
# A finite floor keeps rows that see nothing (padding) free of NaN.
_HIDDEN = -1e30
# The slot of padding: no query looks so far ahead.
_NOWHERE = 2**30


Gradients = tuple[Array, Array, Array]


class Places(NamedTuple):
    """Which tokens see which: those whose ``slot`` [B, T] lies between their ``first`` and their own."""

    first: Int[Array, "B T"]
    slot: Int[Array, "B T"]


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    q: Array
    k: Array
    v: Array
    places: Places
    y: Array
    log_total: Array


class _Sums(NamedTuple):
    """Online softmax of every query [B, G, T, M]: the largest score, sum of exp(score - it), and of that times v."""

    largest: Float[Array, "B G T M"]
    total: Float[Array, "B G T M"]
    weighted: Float[Array, "B G T M K"]


def causal_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    tokens: Tokens,
    window: int | None,
) -> Float[Array, "B T H K"]:
    """Attention of every token to those of its document before it; scores, softmax and sums in float32.

    Args:
        q: queries; head h uses key head h // (H / G).
        k, v: keys and values of the same tokens.
        tokens: where they stand; the output of padding is 0.
        window: how many slots back a query sees, its own included; None for all before it.
    """
    length = q.shape[1]
    block = block_size(length, window)
    padding = -length % block
    places = Places(
        *(jnp.pad(x, ((0, 0), (0, padding)), constant_values=_NOWHERE) for x in places_of(tokens, window))
    )
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
    y = _attention(heads_first(q, k), _swap12(k), _swap12(v), places, window, block)
    return silence_padding(tokens_first(y)[:, :length], tokens.documents)


def silence_padding(
    y: Float[Array, "B T H K"], documents: Int[Array, "B T"] | None
) -> Float[Array, "B T H K"]:
    """``y`` with 0 where there is padding: what attention gives there means nothing."""
    return y if documents is None else jnp.where((documents != 0)[..., None, None], y, 0)


def heads_first(q: Float[Array, "B T H K"], k: Float[Array, "B T G K"]) -> Float[Array, "B G T M K"]:
    """Queries that share a key head side by side: each block is one matmul per key head."""
    return _swap12(q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3]))


def tokens_first(y: Float[Array, "B G T M K"]) -> Float[Array, "B T H K"]:
    """The inverse of ``heads_first``."""
    y = _swap12(y)
    return y.reshape(*y.shape[:2], -1, y.shape[4])


def places_of(tokens: Tokens, window: int | None) -> Places:
    """What the tokens of a batch see of each other within document and window; padding sees and shows nothing."""
    first = tokens.document_start
    slot = jnp.broadcast_to(tokens.slots, first.shape)
    if window is not None:
        first = jnp.maximum(first, slot - window + 1)
    if tokens.documents is not None:
        slot = jnp.where(tokens.documents != 0, slot, _NOWHERE)
    return Places(first, slot)


def block_size(length: int, window: int | None) -> int:
    """Tokens per block: a quarter of what there is to see within limits (measured on CPU), all of a short row."""
    seen = length if window is None else min(length, 2 * window)
    return min(length, max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, seen // 4)))


def visible_pairs(length: int, block: int, window: int | None, offset: int = 0) -> np.ndarray:
    """Starts [pairs, 2] of the (query, key) blocks that see each other, the queries ``offset`` tokens further on.

    A query's own block comes first: from then on its largest score is a real one, and hidden scores weigh exactly 0.
    """
    starts = range(0, length, block)
    return np.array(
        [
            (i, j)
            for i in starts
            for j in reversed(starts)
            if j <= i + offset + block - 1 and (window is None or i + offset - (j + block - 1) < window)
        ],
        np.int32,
    ).reshape(-1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q: Array, k: Array, v: Array, places: Places, window: int | None, block: int) -> Array:
    return _attention_forward(q, k, v, places, window, block)[0]


def _attention_forward(
    q: Array, k: Array, v: Array, places: Places, window: int | None, block: int
) -> tuple[Array, Saved]:
    pairs = jnp.asarray(visible_pairs(q.shape[2], block, window))
    sums = add_pairs(empty_sums(q), q, k, v, places, places, pairs, block)
    y, log_total = finish(sums, q.dtype)
    return y, Saved(q, k, v, places, y, log_total)


def _attention_backward(
    window: int | None, block: int, saved: Saved, dy: Array
) -> tuple[Array, Array, Array, None]:
    q, k, v, places, y, log_total = saved
    pairs = jnp.asarray(visible_pairs(q.shape[2], block, window))
    shared = shared_gradient(y, dy)
    gradients = add_pair_gradients(
        empty_gradients(q, k, v), q, k, v, dy, log_total, shared, places, places, pairs, block
    )
    return *finish_gradients(gradients, q.dtype), None


_attention.defvjp(_attention_forward, _attention_backward)


def empty_sums(q: Float[Array, "B G T M K"]) -> _Sums:
    """Of queries that have seen nothing yet."""
    zeros = jnp.zeros_like(q, dtype=jnp.float32)
    return _Sums(largest=zeros[..., 0] + _HIDDEN, total=zeros[..., 0], weighted=zeros)


def finish(sums: _Sums, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Outputs [B, G, T, M, K], and the logarithm of each query's sum of exponentials [B, G, T, M]."""
    total = jnp.where(sums.total > 0, sums.total, 1.0)
    return (sums.weighted / total[..., None]).astype(dtype), sums.largest + jnp.log(total)


def shared_gradient(y: Array, dy: Array) -> Array:
    """What the softmax takes off every score's gradient: sum of y dy, float32 [B, G, T, M]."""
    # As a product: XLA's CPU compiler is ten times slower at this sum.
    return _product("bgtmk,bgtmk->bgtm", y.astype(jnp.float32), dy.astype(jnp.float32))


def empty_gradients(q: Array, k: Array, v: Array) -> Gradients:
    """Zeros for ``add_pair_gradients``: float32, those of k and v with tokens last."""
    return (
        jnp.zeros_like(q, dtype=jnp.float32),
        jnp.zeros_like(_swap(k), dtype=jnp.float32),
        jnp.zeros_like(_swap(v), dtype=jnp.float32),
    )


def finish_gradients(gradients: Gradients, dtype: jnp.dtype) -> Gradients:
    """What ``add_pair_gradients`` added up as gradients of q, k and v in their dtype and layout."""
    dq, *transposed = gradients
    # Barriers keep XLA's CPU compiler from folding the transposition into a product it has no bfloat16 code for, and
    # from reading the transposed arrays again and again where they are used.
    dk, dv = (_swap(x) for x in jax.lax.optimization_barrier(transposed))
    dk, dv = jax.lax.optimization_barrier((dk, dv))
    return dq.astype(dtype), dk.astype(dtype), dv.astype(dtype)


def add_pairs(
    sums: _Sums,
    q: Float[Array, "B G T M K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    queries: Places,
    keys: Places,
    pairs: Int[Array, "P 2"],
    block: int,
) -> _Sums:
    """``sums`` with what the queries see of the keys in the given pairs of blocks."""
    q, queries, keys = _keep_masks_inside((q, queries, keys))

    def add(sums: _Sums, pair: Array) -> tuple[_Sums, None]:
        i, j = pair
        old = _Sums(*(_take(x, i, block) for x in sums))
        scores = _scores(_take(q, i, block), _take(k, j, block), queries, keys, pair)
        largest = jnp.maximum(old.largest, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - largest[..., None])
        kept = jnp.exp(old.largest - largest)
        seen = _product("bgtms,bgsk->bgtmk", weights.astype(v.dtype), _take(v, j, block))
        new = _Sums(
            largest=largest,
            total=kept * old.total + jnp.sum(weights, axis=-1),
            weighted=kept[..., None] * old.weighted + seen,
        )
        return _Sums(*(_put(x, part, i) for x, part in zip(sums, new, strict=True))), None

    return jax.lax.scan(add, sums, pairs)[0]


def add_pair_gradients(
    gradients: Gradients,
    q: Float[Array, "B G T M K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    dy: Float[Array, "B G T M K"],
    log_total: Float[Array, "B G T M"],
    shared: Float[Array, "B G T M"],
    queries: Places,
    keys: Places,
    pairs: Int[Array, "P 2"],
    block: int,
) -> Gradients:
    """Gradients with what flows through the given pairs of blocks added.

    Those of k and v are [B, G, K, S]: so no array of scores need be transposed.
    """
    q, queries, keys = _keep_masks_inside((q, queries, keys))

    def add(gradients: Gradients, pair: Array) -> tuple[Gradients, None]:
        i, j = pair
        q_block, k_block, v_block = _take(q, i, block), _take(k, j, block), _take(v, j, block)
        dy_block = _take(dy, i, block)
        scores = _scores(q_block, k_block, queries, keys, pair)
        weights = jnp.exp(scores - _take(log_total, i, block)[..., None])
        d_weights = _product("bgtmk,bgsk->bgtms", dy_block, v_block)
        d_scores = weights * (d_weights - _take(shared, i, block)[..., None]) * q.shape[-1] ** -0.5
        weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
        parts = (
            _product("bgtms,bgsk->bgtmk", d_scores, k_block),
            _product("bgtmk,bgtms->bgks", q_block, d_scores),
            _product("bgtmk,bgtms->bgks", dy_block, weights),
        )
        dq, dk, dv = gradients
        return (
            _put(dq, _take(dq, i, block) + parts[0], i),
            _put(dk, _take(dk, j, block, axis=3) + parts[1], j, axis=3),
            _put(dv, _take(dv, j, block, axis=3) + parts[2], j, axis=3),
        ), None

    return jax.lax.scan(add, gradients, pairs)[0]


# What only depends on places is the same in all layers: without a tie to q, differentiating the loop over layers moves
# the masks of all pairs of blocks out of it and keeps them.
_keep_masks_inside = jax.lax.optimization_barrier


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _scores(
    q: Float[Array, "B G t M K"],
    k: Float[Array, "B G s K"],
    queries: Places,
    keys: Places,
    pair: Int[Array, " 2"],
) -> Float[Array, "B G t M s"]:
    """Scaled scores of a pair of blocks; those that do not count are at the floor."""
    first, last = (
        jax.lax.dynamic_slice_in_dim(x, pair[0], q.shape[2], 1)[:, None, :, None, None] for x in queries
    )
    slot = jax.lax.dynamic_slice_in_dim(keys.slot, pair[1], k.shape[2], 1)[:, None, None, None, :]
    scores = _product("bgtmk,bgsk->bgtms", q, k) * q.shape[-1] ** -0.5
    return jnp.where((first <= slot) & (slot <= last), scores, _HIDDEN)


def _take(x: Array, start: Array, size: int, axis: int = 2) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _put(x: Array, part: Array, start: Array, axis: int = 2) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part, start, axis)


def _swap(x: Array) -> Array:
    return jnp.swapaxes(x, 2, 3)


def _swap12(x: Array) -> Array:
    return jnp.swapaxes(x, 1, 2)
