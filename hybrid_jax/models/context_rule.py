"""The gated delta rule over rows whose tokens are spread over the devices of the mesh axis ``context``.

The state is affine in the state a part of the row begins with: S_end = M S_start + S_own. So every device runs its part
once from an empty state, with the identity as further columns of the state: they end as M, and what they answer to each
query is what the starting state adds to the output. Combining (M, S_own) over the devices before gives each device the
exact state it begins with, whatever their number.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from hybrid_jax.models.tokens import Tokens
from hybrid_jax.sharding.manual import axis_index, axis_size, shift
from pallas_kernels.gated_delta_rule import chunk_gated_delta_rule

_AXIS = "context"


def prefix_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T N V"],
    g: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    tokens: Tokens,
) -> Float[Array, "B T N V"]:
    """Output for this device's tokens, at any number of devices; arguments as ``chunk_gated_delta_rule``'s."""
    batch, _, num_heads, value_dim = v.shape
    key_dim = q.shape[-1]
    identity = jnp.zeros_like(v, shape=(batch, num_heads, key_dim, key_dim), dtype=jnp.float32)
    identity += jnp.eye(key_dim)
    empty = jnp.zeros_like(v, shape=(batch, num_heads, key_dim, value_dim), dtype=jnp.float32)
    wide = jnp.concatenate([v, jnp.zeros_like(v, shape=(*v.shape[:3], key_dim))], axis=-1)
    o, state = chunk_gated_delta_rule(
        q,
        k,
        wide,
        g,
        beta,
        initial_state=jnp.concatenate([empty, identity], axis=-1),
        segment_ids=tokens.documents,
        use_qk_l2norm=True,
    )
    # A row's part that begins with a new document takes nothing over.
    start = _state_before(state[..., value_dim:], state[..., :value_dim], tokens.open_is_first)
    added = jnp.einsum("btnk,bnkv->btnv", o[..., value_dim:], start, preferred_element_type=jnp.float32)
    return (o[..., :value_dim] + added).astype(v.dtype)


def heads_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T N V"],
    g: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    tokens: Tokens,
) -> Float[Array, "B T N V"]:
    """The same, by exchanging tokens for heads: each device runs whole rows of H / devices key heads."""

    def to_heads(x: Array) -> Array:
        return lax.all_to_all(x, _AXIS, split_axis=2, concat_axis=1, tiled=True)

    documents = lax.all_gather(jnp.asarray(tokens.documents), _AXIS, axis=1, tiled=True)
    q, k, v, g, beta = (to_heads(x) for x in (q, k, v, g, beta))
    o, _ = chunk_gated_delta_rule(q, k, v, g, beta, segment_ids=documents, use_qk_l2norm=True)
    return lax.all_to_all(o, _AXIS, split_axis=1, concat_axis=2, tiled=True)


def _state_before(
    transition: Float[Array, "B N K K"], state: Float[Array, "B N K V"], continues: Array
) -> Float[Array, "B N K V"]:
    """The state with which this device's part of each row begins.

    Args:
        transition: M of this part.
        state: S_own of this part.
        continues: [B] whether the part goes on with the document open before it.
    """
    keep = continues[:, None, None, None]
    transition = jnp.where(keep, transition, 0)
    distance = 1
    while distance < axis_size(_AXIS):
        # Where there is no device so far before, zeros arrive: an empty state, and a transition nobody reads.
        earlier_transition, earlier_state = shift((transition, state), _AXIS, distance)
        state = state + _product(transition, earlier_state)
        has_earlier = axis_index(_AXIS) >= distance
        transition = jnp.where(has_earlier, _product(transition, earlier_transition), transition)
        distance *= 2
    return jnp.where(keep, shift(state, _AXIS, 1), 0)


def _product(left: Array, right: Array) -> Array:
    return jnp.einsum("bnij,bnjv->bniv", left, right, precision=lax.Precision.HIGHEST)
