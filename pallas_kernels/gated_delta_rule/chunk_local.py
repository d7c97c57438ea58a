"""What one chunk can compute without knowing the state that enters it: its decays and its triangular inverse.

C is the number of tokens in the chunk; everything works on any leading dims.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gated_delta_rule.layout import einsum

# exp(-1000) is 0 in float32 and float64: the clamp changes no factor and keeps sums of log decays finite.
_LOWEST_LOG_DECAY = -1000.0
# Multiples of 2^-6 down to -1000 add up exactly in float32 over 256 tokens, as 1000 * 2^6 * 256 < 2^24.
_LOG_DECAY_STEP = 2.0**-6
CHUNK_SIZES = (16, 32, 64, 128, 256)


class Decay(NamedTuple):
    """Factors by which the state decays between points of a chunk, all in [0, 1] for log decays <= 0."""

    between: jax.Array  # [..., C, C]: from token j to token i, at [i, j]; 0 where j > i
    since_start: jax.Array  # [..., C, 1]: from the start of the chunk to token i
    until_end: jax.Array  # [..., C, 1]: from token i to the end of the chunk
    whole: jax.Array  # [..., 1, 1]: over the chunk


def decay_factors(g: jax.Array) -> Decay:
    """Decay factors of a chunk from its log decays [..., C], -inf (decay 0) included.

    Differences of plain float32 cumulative sums lose a step of -0.01 that follows one of -60. Each log decay is
    therefore split into a multiple of 2^-6, whose sums are exact, and a remainder, whose sums are small.
    """
    g = jnp.maximum(g, _LOWEST_LOG_DECAY)
    coarse = jnp.round(g / _LOG_DECAY_STEP) * _LOG_DECAY_STEP
    causal = jnp.tri(g.shape[-1], dtype=bool)
    # Sums as products: XLA's CPU backend would inline a cumsum into every exp below and compute both unvectorised.
    coarse_sum = einsum("...j,ij->...i", coarse, causal.astype(g.dtype))
    fine_sum = einsum("...j,ij->...i", g - coarse, causal.astype(g.dtype))
    fine, inverse_fine = jnp.exp(fine_sum), jnp.exp(-fine_sum)

    log_between = jnp.where(causal, coarse_sum[..., :, None] - coarse_sum[..., None, :], -jnp.inf)
    between = jnp.exp(log_between) * (fine[..., :, None] * inverse_fine[..., None, :])
    since_start = jnp.exp(coarse_sum) * fine
    until_end = jnp.exp(coarse_sum[..., -1:] - coarse_sum) * (fine[..., -1:] * inverse_fine)
    return Decay(between, since_start[..., None], until_end[..., None], since_start[..., -1:, None])


def log_decay_gradient(
    between: jax.Array, since_start: jax.Array, until_end: jax.Array, whole: jax.Array
) -> jax.Array:
    """Gradient [..., C] of the log decays from each factor of `Decay` times its own gradient.

    Token j's log decay is in every factor that crosses j. Adding up just those, rather than taking differences of
    row and column sums, leaves the gradient its relative accuracy where it is as small as e^-60.
    """
    up_to = jnp.tri(between.shape[-1], dtype=bool)
    crossing = einsum("...im,jm->...ij", between, jnp.tri(between.shape[-1], k=-1, dtype=between.dtype))
    crossing = jnp.where(up_to, crossing, 0).sum(-2)
    after = einsum("...i,ij->...j", since_start, up_to.astype(between.dtype))
    before = einsum("...i,ji->...j", until_end, jnp.tri(between.shape[-1], k=-1, dtype=between.dtype))
    return crossing + after + before + whole


def unit_lower_inverse(matrix: jax.Array) -> jax.Array:
    """Inverse of I + tril(matrix, -1) for `matrix` [..., C, C], whose upper part is not read.

    Forward substitution on small diagonal blocks, then exact merging of neighbours. All intermediates are parts of
    the inverse itself, so nothing overflows; a product of powers does, for repeated keys with beta near 2.
    """
    size = CHUNK_SIZES[0]
    starts = range(0, matrix.shape[-1], size)
    blocks = _substitute(jnp.stack([matrix[..., s : s + size, s : s + size] for s in starts], axis=-3))
    inverses = [blocks[..., i, :, :] for i in range(len(starts))]
    while len(inverses) > 1:
        inverses = [
            _merge(
                inverses[i],
                inverses[i + 1],
                matrix[..., (i + 1) * size : (i + 2) * size, i * size :][..., :size],
            )
            for i in range(0, len(inverses), 2)
        ]
        size *= 2
    return inverses[0]


def _substitute(matrix: jax.Array) -> jax.Array:
    """Inverse of I + tril(matrix, -1), one row after the other."""
    size = matrix.shape[-1]
    lower = jnp.where(jnp.tri(size, k=-1, dtype=bool), matrix, 0)
    identity = jnp.eye(size, dtype=matrix.dtype)

    def step(i: jax.Array, inverse: jax.Array) -> jax.Array:
        coefficients = lax.dynamic_index_in_dim(lower, i, axis=-2)
        unit = lax.dynamic_index_in_dim(identity, i, axis=0)
        row = unit - einsum("...ij,...jk->...ik", coefficients, inverse)
        return lax.dynamic_update_slice_in_dim(inverse, row, i, axis=-2)

    return lax.fori_loop(0, size, step, jnp.zeros_like(lower))


def _merge(upper: jax.Array, lower: jax.Array, below: jax.Array) -> jax.Array:
    """Inverse of [[a, 0], [below, b]] from upper = a^-1 and lower = b^-1."""
    corner = -einsum("...ij,...jk->...ik", lower, einsum("...ij,...jk->...ik", below, upper))
    first_rows = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1)
    return jnp.concatenate([first_rows, jnp.concatenate([corner, lower], axis=-1)], axis=-2)
