"""The triangular systems of a chunk: each token's prediction error depends on those of the tokens before it.

Where a key repeats and beta is near 2, large terms of alternating sign cancel along the chunk. With an inverse of the
whole chunk, or K K^T rounded to float32, the result was measured 30 to 100 times as wrong as the token-by-token rule's
(and products of powers overflow); substitution by small blocks with K K^T to twice the precision stays within 10.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gated_delta_rule.layout import einsum

BLOCK_SIZE = 16
# Keys of unit length rounded to 11 bits have exact float32 products, sums over the key dim included.
_KEY_STEP = 2.0**-11


class Gram(NamedTuple):
    """K K^T [..., C, C] as a sum of two float32 matrices, of which the first is exact."""

    coarse: jax.Array
    rest: jax.Array

    def total(self) -> jax.Array:
        return self.coarse + self.rest


def gram(k: jax.Array) -> Gram:
    """Products of the keys [..., C, K] with each other."""
    coarse = jnp.round(k / _KEY_STEP) * _KEY_STEP
    rest = k - coarse
    pairs = "...ck,...dk->...cd"
    return Gram(einsum(pairs, coarse, coarse), einsum(pairs, coarse, rest) + einsum(pairs, rest, k))


def solve(lower: Gram, beta: jax.Array, rhs: jax.Array) -> jax.Array:
    """Solution x [..., C, V] of (I + tril(lower, -1) diag(beta)) x = rhs, for beta [..., C, 1]."""
    blocks = _blocks(rhs.shape[-2])
    inverse = _unit_lower_inverse(_diagonal_blocks(lower.total() * jnp.swapaxes(beta, -1, -2)))
    solution: list[jax.Array] = []
    for i, block in enumerate(blocks):
        remaining = rhs[..., block, :]
        if i:
            done = slice(0, block.start)
            written = beta[..., done, :] * jnp.concatenate(solution, axis=-2)
            for part in lower:
                remaining -= einsum("...ij,...jv->...iv", part[..., block, done], written)
        solution.append(einsum("...ij,...jv->...iv", inverse[..., i, :, :], remaining))
    return jnp.concatenate(solution, axis=-2)


def solve_transposed(lower: Gram, beta: jax.Array, rhs: jax.Array) -> jax.Array:
    """Solution x of (I + tril(lower, -1)^T diag(beta)) x = rhs: as `solve`, from the last token to the first."""
    blocks = _blocks(rhs.shape[-2])
    inverse = _unit_lower_inverse(_diagonal_blocks(beta * lower.total()))
    solution: list[jax.Array] = []
    for i, block in reversed(list(enumerate(blocks))):
        remaining = rhs[..., block, :]
        if solution:
            done = slice(block.stop, None)
            written = beta[..., done, :] * jnp.concatenate(solution[::-1], axis=-2)
            for part in lower:
                remaining -= einsum("...ji,...jv->...iv", part[..., done, block], written)
        solution.append(einsum("...ji,...jv->...iv", inverse[..., i, :, :], remaining))
    return jnp.concatenate(solution[::-1], axis=-2)


def _blocks(num_tokens: int) -> list[slice]:
    return [slice(start, start + BLOCK_SIZE) for start in range(0, num_tokens, BLOCK_SIZE)]


def _diagonal_blocks(matrix: jax.Array) -> jax.Array:
    """[..., C, C] -> [..., blocks, 16, 16]."""
    return jnp.stack([matrix[..., block, block] for block in _blocks(matrix.shape[-1])], axis=-3)


def _unit_lower_inverse(matrix: jax.Array) -> jax.Array:
    """(I + tril(matrix, -1))^-1, one row after the other."""
    size = matrix.shape[-1]
    lower = jnp.where(jnp.tri(size, k=-1, dtype=bool), matrix, 0)
    identity = jnp.eye(size, dtype=matrix.dtype)

    def step(i: jax.Array, inverse: jax.Array) -> jax.Array:
        coefficients = lax.dynamic_index_in_dim(lower, i, axis=-2)
        unit = lax.dynamic_index_in_dim(identity, i, axis=0)
        row = unit - einsum("...ij,...jk->...ik", coefficients, inverse)
        return lax.dynamic_update_slice_in_dim(inverse, row, i, axis=-2)

    return lax.fori_loop(0, size, step, jnp.zeros_like(lower))
