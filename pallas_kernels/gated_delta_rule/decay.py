"""Decay inside a chunk, from log decays that may be -0.01 at one token and -60 or -inf at the next.

The decay between two tokens, exp(G_i - G_j) with G the cumulative sum of g, must be right in float32 to its last
digits whatever the other tokens' decays; and where decay is weak it must be exactly a ratio of one number per token,
since noise that differs from pair to pair is amplified by repeated keys. So each log decay is split in three:

    g = drop + mild + rest

rest is what a rounding of g to multiples of 2^-6 leaves; mild is that multiple, but at least -32 / C; drop is what is
then missing, 0 unless the decay is strong. Sums of drop and mild are exact in float32, those of rest are small. Mild
and rest make up `smooth`, which is applied to vectors as a change of variables (V / smooth in, O smooth out) and
stays above e^-33; the drops are applied to pairs of tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta_rule.layout import einsum

_STEP = 2.0**-6
_MILD_OVER_CHUNK = -32.0
# exp(-1000) is 0 even in float64, so the clamp changes nothing; 1000 * 2^6 * 128 tokens is exact in float32.
_LOWEST = -1000.0


class Decay(NamedTuple):
    """Factors of one chunk of C tokens; a token's own decay counts as before it."""

    drop_between: jax.Array  # [..., C, C] drops from token j to token i at [i, j]; 0 where j > i
    drop_before: jax.Array  # [..., C, 1] drops from the start of the chunk to each token
    drop_after: jax.Array  # [..., C, 1] drops from each token to the end of the chunk
    smooth: jax.Array  # [..., C, 1] the rest of the decay, from the start of the chunk to each token
    inverse_smooth: jax.Array  # [..., C, 1]


def chunk_decay(g: jax.Array) -> Decay:
    """Decay factors of one chunk with log decays `g` [..., C]."""
    chunk_size = g.shape[-1]
    g = jnp.maximum(g, _LOWEST)
    coarse = jnp.round(g / _STEP) * _STEP
    mild = jnp.maximum(coarse, _MILD_OVER_CHUNK / chunk_size)
    drop, mild, rest = _cumulative(coarse - mild), _cumulative(mild), _cumulative(g - coarse)

    difference = drop[..., :, None] - drop[..., None, :]
    causal = jnp.tri(chunk_size, dtype=bool)
    return Decay(
        drop_between=jnp.exp(jnp.where(causal, difference, -jnp.inf)),
        drop_before=jnp.exp(drop)[..., None],
        drop_after=jnp.exp(drop[..., -1:] - drop)[..., None],
        smooth=(jnp.exp(mild) * jnp.exp(rest))[..., None],
        inverse_smooth=(jnp.exp(-mild) * jnp.exp(-rest))[..., None],
    )


def log_decay_gradient(
    between: jax.Array, before: jax.Array, after: jax.Array, whole: jax.Array
) -> jax.Array:
    """Gradient [..., C] of the log decays from every decay factor times its own gradient.

    Token j's log decay is in each factor whose span contains j. Adding up just those keeps the gradient's relative
    accuracy where it is as small as e^-60, unlike the usual difference of row and column sums.

    Args:
        between: Terms of the decays between tokens [..., C, C], only those below the diagonal.
        before: Terms of the decays from the start of the chunk [..., C].
        after: Terms of the decays to the end of the chunk [..., C].
        whole: Term of the decay over the chunk [..., 1].
    """
    up_to = jnp.tri(between.shape[-1], dtype=between.dtype)
    earlier = jnp.tri(between.shape[-1], k=-1, dtype=between.dtype)
    crossing = jnp.where(up_to > 0, einsum("...im,jm->...ij", between, earlier), 0).sum(-2)
    return crossing + einsum("...i,ij->...j", before, up_to) + einsum("...i,ji->...j", after, earlier) + whole


def _cumulative(x: jax.Array) -> jax.Array:
    # As a product: XLA's CPU backend would inline a cumsum into each exp that reads it, and vectorise neither.
    return einsum("...j,ij->...i", x, jnp.tri(x.shape[-1], dtype=x.dtype))
