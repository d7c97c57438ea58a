"""(I + tril(K K^T, -1) diag(beta))^-1 of every chunk: what solves for a chunk's prediction errors, decay left out.

By exact merging of diagonal blocks of 1, 2, 4, ... 64 tokens, X <- X - X E X with E the block below the diagonal: only
blocks of the true inverse appear on the way, where products of powers would overflow for repeated keys. All operands
are pairs of bfloat16, a high and a low part, and the result is one: with the high part alone, repeated keys written
with beta near 2 grow errors along the sequence without bound.

Shared memory, in KB               K = 96   K = 128    Registers a thread
a chunk's keys                       12       16       K K^T, X and a product, 32 each
high and low part of X, E and X E    48       48
beta                                  0.25     0.25
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gated_delta_rule.mosaic.tiles import (
    CHUNK,
    Ref,
    along_columns,
    compiler_params,
    product,
    row_and_column,
    store_split,
    tile,
    transposed,
    varying_as,
    vector,
)

_LEVELS = CHUNK.bit_length() - 1


def chunk_inverses(k: jax.Array, beta: jax.Array) -> jax.Array:
    """High and low part, bfloat16 [B, N, T / C, 2, C, C], of the inverse of each chunk of C tokens.

    Args:
        k: [B, T, H, K] bfloat16, T a multiple of C and K one of 32.
        beta: [B, N, T] float32.
    """
    batch, num_tokens, num_key_heads, key_dim = k.shape
    num_heads = beta.shape[1]
    num_chunks = num_tokens // CHUNK
    square = tile(CHUNK, CHUNK, key_dim=CHUNK)
    kernel = plgpu.kernel(
        functools.partial(_body, heads_per_key=num_heads // num_key_heads),
        out_type=jax.ShapeDtypeStruct((batch, num_heads, num_chunks, 2, CHUNK, CHUNK), jnp.bfloat16),
        scratch_types=[
            tile(CHUNK, key_dim, key_dim=key_dim),
            vector(CHUNK),
            *[square] * 6,
            plgpu.Barrier(num_arrivals=2),
        ],
        grid=(batch, num_heads, num_chunks),
        grid_names=("row", "head", "chunk"),
        compiler_params=compiler_params(),
    )
    return varying_as(k, kernel(k, beta))


def _body(
    k_memory: Ref,
    beta_memory: Ref,
    inverse_memory: Ref,
    k: Ref,
    beta: Ref,
    x_high: Ref,
    x_low: Ref,
    e_high: Ref,
    e_low: Ref,
    y_high: Ref,
    y_low: Ref,
    arrived: Ref,
    *,
    heads_per_key: int,
) -> None:
    row, head, chunk = (lax.axis_index(name) for name in ("row", "head", "chunk"))
    tokens = pl.ds(chunk * CHUNK, CHUNK)
    plgpu.copy_gmem_to_smem(k_memory.at[row, tokens, head // heads_per_key], k, arrived)
    plgpu.copy_gmem_to_smem(beta_memory.at[row, head, tokens], beta, arrived)
    plgpu.barrier_wait(arrived)

    lower = product((k, transposed(k))) * along_columns(beta, CHUNK)
    i, j = row_and_column()

    def merged(level: int) -> jax.Array:
        """Where blocks of 2^level tokens are merged: below the diagonal of blocks twice as large."""
        pair_i, pair_j = (lax.shift_right_logical(index, level + 1) for index in (i, j))
        block_i, block_j = (lax.shift_right_logical(index, level) for index in (i, j))
        return (pair_i == pair_j) & (block_i > block_j)

    x = jnp.where(i == j, 1.0, jnp.where(merged(0), -lower, 0.0))
    for level in range(1, _LEVELS):
        store_split(x_high, x_low, x)
        store_split(e_high, e_low, jnp.where(merged(level), lower, 0.0))
        y = product((x_high, e_high), (x_high, e_low), (x_low, e_high))
        store_split(y_high, y_low, y)
        x -= product((y_high, x_high), (y_high, x_low), (y_low, x_high))
    store_split(x_high, x_low, x)
    plgpu.commit_smem()
    for part, each in enumerate((x_high, x_low)):
        plgpu.copy_smem_to_gmem(each, inverse_memory.at[row, head, chunk, part])
    plgpu.wait_smem_to_gmem(0)
