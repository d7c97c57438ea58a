"""The gated delta rule token by token: the specification of every other form, and the decode step."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gated_delta_rule.layout import compute_dtype, einsum, to_value_heads


def recurrent_gated_delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    initial_state: jax.Array,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Output [B, T, N, V] in v's dtype and final state [B, N, K, V]; arguments as in `api.py`, all of them given.

    Its gradient is that of the scan, which keeps one state per token: for checks, not for training.
    """
    num_heads = v.shape[2]
    dtype = compute_dtype(q, k, v, g, beta, initial_state)

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        qt, kt, vt, gt, bt = (x.astype(dtype) for x in token)
        qt, kt = to_value_heads(qt * scale, num_heads), to_value_heads(kt, num_heads)
        decay = jnp.exp(gt)[..., None, None]
        state = jnp.where(decay > 0, decay * state, 0)  # what is forgotten may have been infinite
        write = bt[..., None] * (vt - einsum("bnkv,bnk->bnv", state, kt))
        state = state + kt[..., :, None] * write[..., None, :]
        return state, einsum("bnkv,bnk->bnv", state, qt).astype(v.dtype)

    state = initial_state.astype(dtype)
    if q.shape[1] == 1:
        state, o = step(state, tuple(x[:, 0] for x in (q, k, v, g, beta)))
        return o[:, None], state
    state, o = lax.scan(step, state, tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, g, beta)))
    return jnp.moveaxis(o, 0, 1), state
