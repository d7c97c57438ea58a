"""What a layer remembers between calls, and the row's bookkeeping. Caches are returned, never mutated."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from hybrid_jax.config import LayerSpec, ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of one attention layer.

    ``in_place`` caches have their full capacity from the start: token ``index`` is written to slot
    ``index % S``, so a windowed layer needs only its window. The others grow by each call's tokens.

    Attributes:
        k, v: [B, G, S, head_dim] after norm and rotation, in the compute dtype; heads first, so that a matmul
            reads them as they lie.
        index: [B, S] place in the row of the token in each slot.
        documents: [B, S] document of the token in each slot, 0 for an empty slot.
    """

    k: Float[Array, "*r B G S K"]
    v: Float[Array, "*r B G S K"]
    index: Int[Array, "*r B S"]
    documents: Int[Array, "*r B S"]
    in_place: bool = field(metadata={"static": True})

    def extend(self, new: "KVCache") -> "KVCache":
        """This cache with the tokens of ``new`` added; padding is not written to in-place caches."""
        if not self.in_place:
            return KVCache(
                k=jnp.concatenate([self.k, new.k], axis=2),
                v=jnp.concatenate([self.v, new.v], axis=2),
                index=jnp.concatenate([self.index, new.index], axis=1),
                documents=jnp.concatenate([self.documents, new.documents], axis=1),
                in_place=False,
            )
        batch, heads, capacity = self.k.shape[:3]
        slots = jnp.where(new.documents != 0, new.index % capacity, capacity)
        rows = jnp.arange(batch)[:, None]
        # One head's vector at a time: XLA's CPU compiler copies the cache around a write of a single slice.
        place = (rows[..., None], jnp.arange(heads), slots[..., None])
        return KVCache(
            k=self.k.at[place].set(jnp.swapaxes(new.k, 1, 2).astype(self.k.dtype), mode="drop"),
            v=self.v.at[place].set(jnp.swapaxes(new.v, 1, 2).astype(self.v.dtype), mode="drop"),
            index=self.index.at[rows, slots].set(new.index, mode="drop"),
            documents=self.documents.at[rows, slots].set(new.documents, mode="drop"),
            in_place=True,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LinearCache:
    """State of one Gated DeltaNet layer.

    Attributes:
        q_tail, k_tail, v_tail: [B, W - 1, channels] last inputs of the short convolutions.
        state: [B, N, K, V] recurrent state, float32.
    """

    q_tail: Float[Array, "*r B W1 Ck"]
    k_tail: Float[Array, "*r B W1 Ck"]
    v_tail: Float[Array, "*r B W1 Cv"]
    state: Float[Array, "*r B N K V"]


LayerCache = KVCache | LinearCache


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Everything a model remembers of B rows; a pytree that can be kept, copied and forked.

    Attributes:
        layers: per layer group, per layer of its pattern, a LayerCache whose leaves have a leading dimension
            of the group's repeats; for ``CausalLM.unstacked`` one LayerCache per layer, without it.
        length: [B] real tokens seen.
        document: [B] documents begun.
        segment_id: [B] the open document's id as the caller named it.
        document_start: [B] index of the open document's first token.
    """

    layers: tuple[tuple[LayerCache, ...] | LayerCache, ...]
    length: Int[Array, " B"]
    document: Int[Array, " B"]
    segment_id: Int[Array, " B"]
    document_start: Int[Array, " B"]

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def init_cache(config: ModelConfig, batch_size: int, capacity: int, max_tokens_per_call: int) -> Cache:
    """An empty cache with room for ``capacity`` tokens a row, written in place.

    Args:
        config: the model.
        batch_size: number of rows.
        capacity: most tokens a row will ever hold; more would overwrite the oldest.
        max_tokens_per_call: longest T of a later call; windowed layers keep their window and this much more.
    """
    layers = []
    for group in config.layer_groups:
        caches = [
            _init_layer(config, spec, batch_size, capacity, max_tokens_per_call) for spec in group.specs
        ]
        stacked = jax.tree.map(
            lambda x, r=group.num_repeats: jnp.broadcast_to(x, (r, *x.shape)), tuple(caches)
        )
        layers.append(stacked)
    zeros = jnp.zeros((batch_size,), jnp.int32)
    return Cache(layers=tuple(layers), length=zeros, document=zeros, segment_id=zeros, document_start=zeros)


def fork_rows(cache: Cache, rows: Int[Array, " B"]) -> Cache:
    """Copies of the given rows of a stacked cache, each of which goes on by itself."""
    # In a layer's cache the dimension of repeats comes first.
    layers = jax.tree.map(lambda leaf: leaf[:, rows], cache.layers)
    row = {
        name: getattr(cache, name)[rows] for name in ("length", "document", "segment_id", "document_start")
    }
    return replace(cache, layers=layers, **row)


def _init_layer(
    config: ModelConfig, spec: LayerSpec, batch: int, capacity: int, max_tokens: int
) -> LayerCache:
    dtype: DTypeLike = config.dtype
    if spec.layer_type == "linear_attention":
        tail = config.linear_conv_kernel_dim - 1
        key_width = config.linear_num_key_heads * config.linear_key_head_dim
        heads, value_dim = config.linear_num_value_heads, config.linear_value_head_dim
        return LinearCache(
            q_tail=jnp.zeros((batch, tail, key_width), dtype),
            k_tail=jnp.zeros((batch, tail, key_width), dtype),
            v_tail=jnp.zeros((batch, tail, heads * value_dim), dtype),
            state=jnp.zeros((batch, heads, config.linear_key_head_dim, value_dim), jnp.float32),
        )
    slots = capacity if spec.window is None else min(capacity, spec.window + max_tokens - 1)
    shape = (batch, config.num_key_value_heads, slots, config.head_dim)
    empty = jnp.zeros((batch, slots), jnp.int32)
    return KVCache(
        k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype), index=empty, documents=empty, in_place=True
    )
