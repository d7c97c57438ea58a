"""Documents packed into one row, expressed by the rule's own terms: a decay of 0 forgets all that came before."""

import jax
import jax.numpy as jnp
from jax import lax


def separate_documents(
    q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, beta: jax.Array, segment_ids: jax.Array
) -> tuple[jax.Array, ...]:
    """q, k, v, g and beta with which the plain rule keeps the documents of `segment_ids` [B, T] apart.

    The first token of every document but a row's first decays the state to exactly 0. Padding (id 0) neither decays,
    writes nor reads, whatever it holds, and gets no gradient.
    """
    real = segment_ids != 0
    q, k, v = (jnp.where(real[..., None, None], x, 0) for x in (q, k, v))
    g = jnp.where(real[..., None], g, 0)
    g = jnp.where(document_starts(segment_ids)[..., None], -jnp.inf, g)
    return q, k, v, g, jnp.where(real[..., None], beta, 0)


def document_starts(segment_ids: jax.Array) -> jax.Array:
    """True [B, T] where a token's id differs from that of the last token before it that is not padding."""
    real = segment_ids != 0
    last_real = lax.cummax(jnp.where(real, jnp.arange(segment_ids.shape[1]), -1), axis=1)
    previous = jnp.pad(last_real[:, :-1], [(0, 0), (1, 0)], constant_values=-1)
    previous_ids = jnp.take_along_axis(segment_ids, jnp.maximum(previous, 0), axis=1)
    return real & (previous >= 0) & (segment_ids != previous_ids)
