"""Softmax attention with QK-norm, grouped heads, sliding windows, documents and a cache (OLMo 3, OLMo Hybrid)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from hybrid_jax.config import LayerSpec, ModelConfig
from hybrid_jax.models.cache import KVCache
from hybrid_jax.models.causal_attention import causal_attention, silence_padding
from hybrid_jax.models.linear import Linear, flatten_rows
from hybrid_jax.models.norm import RMSNorm
from hybrid_jax.models.ring_attention import ring_attention
from hybrid_jax.models.rope import rotate
from hybrid_jax.models.tokens import Tokens
from hybrid_jax.sharding.manual import axis_size

# Scores are made for at most this many (query, key, head, row) tuples at a time: 256 MiB in float32.
_MAX_SCORES = 2**26
_MAX_QUERY_BLOCK = 512


class Attention(nnx.Module):
    """Causal attention; q and k are RMS-normalised over their full width, before the split into heads."""

    def __init__(self, config: ModelConfig, spec: LayerSpec, *, rngs: nnx.Rngs) -> None:
        hidden, stddev, dtype = config.hidden_size, config.initializer_range, config.dtype
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(hidden, q_width, stddev, dtype, rngs=rngs)
        self.k_proj = Linear(hidden, kv_width, stddev, dtype, rngs=rngs)
        self.v_proj = Linear(hidden, kv_width, stddev, dtype, rngs=rngs)
        self.o_proj = Linear(q_width, hidden, stddev, dtype, sum_axis="tensor", rngs=rngs)
        self.q_norm = RMSNorm(q_width, config.rms_norm_eps, split_axis="tensor")
        self.k_norm = RMSNorm(kv_width, config.rms_norm_eps, split_axis="tensor")
        self.head_dim = config.head_dim
        self.spec = spec

    def __call__(
        self, x: Float[Array, "B T D"], tokens: Tokens, cache: KVCache | None
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.head_dim)
        rows = flatten_rows(x)
        q = self.q_norm(self.q_proj(rows)).reshape(heads)
        k = self.k_norm(self.k_proj(rows)).reshape(heads)
        v = self.v_proj(rows).reshape(heads)
        if self.spec.rope is not None:
            q, k = rotate(q, tokens.positions, self.spec.rope), rotate(k, tokens.positions, self.spec.rope)
        documents = tokens.documents if tokens.documents is not None else jnp.ones((batch, length), jnp.int32)
        new = KVCache(
            k=jnp.swapaxes(k, 1, 2),
            v=jnp.swapaxes(v, 1, 2),
            index=tokens.index,
            documents=documents,
            in_place=False,
        )
        if axis_size("context") > 1:
            y = ring_attention(q, k, v, tokens, self.spec.window)
        elif cache is None:
            y = causal_attention(q, k, v, tokens, self.spec.window)
        else:
            new = cache.extend(new)
            y = attend_cache(q, new, tokens, self.spec.window)
        return _project(self.o_proj, y).reshape(x.shape), new


@jax.checkpoint  # the op keeps y already, in another layout
def _project(o_proj: Linear, y: Float[Array, "B T H K"]) -> Float[Array, "BT D"]:
    return o_proj(y.reshape(-1, y.shape[2] * y.shape[3]))


def attend_cache(
    q: Float[Array, "B T H K"], keys: KVCache, tokens: Tokens, window: int | None
) -> Float[Array, "B T H K"]:
    """Softmax attention of ``q`` over a cache within document, causality and window; scores in float32.

    Long inputs are taken a block of queries at a time, so that memory grows with T and not with its square.

    Args:
        q: queries, H a multiple of the keys' heads G; query head h uses key head h // (H / G).
        keys: keys, values and where they stand, those of the queries' own tokens among them.
        tokens: where the queries stand.
        window: most tokens a query sees, itself included; None for all before it.
    """
    batch, length, heads, _ = q.shape
    num_slots = keys.index.shape[1]
    block = _query_block(batch * heads, num_slots)
    if length <= block:
        return _attend_block(q, keys, tokens.index, tokens.documents, window)

    num_blocks = -(-length // block)
    padding = ((0, 0), (0, num_blocks * block - length))
    q = jnp.pad(q, (*padding, (0, 0), (0, 0)))
    index = jnp.pad(tokens.index, padding)
    documents = None if tokens.documents is None else jnp.pad(tokens.documents, padding)

    def one_block(start: Int[Array, ""]) -> Float[Array, "B b H K"]:
        def take(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, start, block, axis=1)

        own_documents = None if documents is None else take(documents)
        return _attend_block(take(q), keys, take(index), own_documents, window)

    blocks = jax.lax.map(one_block, jnp.arange(num_blocks) * block)
    return jnp.moveaxis(blocks, 0, 1).reshape(batch, num_blocks * block, heads, -1)[:, :length]


def _query_block(num_rows: int, num_slots: int) -> int:
    block = _MAX_QUERY_BLOCK
    while block > 16 and block * num_rows * num_slots > _MAX_SCORES:
        block //= 2
    return block


def _attend_block(
    q: Float[Array, "B T H K"],
    keys: KVCache,
    index: Int[Array, "B T"],
    documents: Int[Array, "B T"] | None,
    window: int | None,
) -> Float[Array, "B T H K"]:
    batch, length, _, head_dim = q.shape
    num_kv_heads = keys.k.shape[1]
    # Queries that share a key head are rows of one matmul per key head, which reads keys and values as they lie.
    rows = jnp.moveaxis(q.reshape(batch, length, num_kv_heads, -1, head_dim), 1, 3)
    split = rows.shape
    rows = rows.reshape(batch, num_kv_heads, -1, head_dim)
    scores = jnp.einsum("bgmk,bgsk->bgms", rows, keys.k, preferred_element_type=jnp.float32)
    scores = scores.reshape(*split[:4], -1)
    mask = _visible(index, documents, keys, window)[:, None, None]
    # A finite floor keeps rows that see nothing (padding) free of NaN.
    weights = jax.nn.softmax(jnp.where(mask, scores * head_dim**-0.5, -1e30), axis=-1).astype(q.dtype)
    weights = weights.reshape(*rows.shape[:3], -1)
    y = jnp.einsum("bgms,bgsk->bgmk", weights, keys.v)
    y = jnp.moveaxis(y.reshape(split), 3, 1).reshape(q.shape)
    return silence_padding(y, documents)


def _visible(
    index: Int[Array, "B T"], documents: Int[Array, "B T"] | None, keys: KVCache, window: int | None
) -> Bool[Array, "B T S"]:
    distance = index[:, :, None] - keys.index[:, None, :]
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    if documents is not None:
        visible &= (documents[:, :, None] == keys.documents[:, None, :]) & (documents != 0)[:, :, None]
    return visible
