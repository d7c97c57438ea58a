"""Between the caller's layout, tokens before heads, and that of the matrix products, heads before tokens."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Repeated keys make large terms cancel: TF32 or bf16 passes would leave nothing of the difference.
einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Float32, or float64 if any of the arrays is."""
    return jnp.promote_types(jnp.float32, jnp.result_type(*arrays))


def read_chunk(x: jax.Array, index: jax.Array, chunk_size: int, dtype: jnp.dtype) -> jax.Array:
    """Chunk `index` of `x` [B, T, heads, ...] as [B, heads, C, ...] in `dtype`."""
    chunk = lax.dynamic_slice_in_dim(x, index * chunk_size, chunk_size, axis=1)
    return jnp.swapaxes(chunk, 1, 2).astype(dtype)


def write_chunk(buffer: jax.Array, chunk: jax.Array, index: jax.Array) -> jax.Array:
    """`buffer` [B, T, heads, ...] with its chunk `index` set to `chunk` [B, heads, C, ...]."""
    chunk = jnp.swapaxes(chunk, 1, 2).astype(buffer.dtype)
    return lax.dynamic_update_slice_in_dim(buffer, chunk, index * chunk.shape[1], axis=1)


def to_value_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """Repeat key heads [B, H, ...] for the value heads that use them [B, N, ...]."""
    batch, num_key_heads, *rest = x.shape
    if num_heads == num_key_heads:
        return x
    shape = (batch, num_key_heads, num_heads // num_key_heads, *rest)
    return jnp.broadcast_to(x[:, :, None], shape).reshape(batch, num_heads, *rest)


def to_key_heads(x: jax.Array, num_key_heads: int) -> jax.Array:
    """Sum over the value heads [B, N, ...] of each key head [B, H, ...]: the transpose of `to_value_heads`."""
    batch, num_heads, *rest = x.shape
    if num_heads == num_key_heads:
        return x
    return x.reshape(batch, num_key_heads, num_heads // num_key_heads, *rest).sum(axis=2)
