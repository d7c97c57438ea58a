"""Backward pass of the chunked gated delta rule, by hand: the chunks in reverse, each recomputed from its state.

Letters as in `chunked.py`, dX the gradient of X, dS that of the state that leaves the chunk, L = K K^T, P = Q K^T o D:

    dwrites = P^T dO + e o (K dS)
    dtarget = (I + (tril(L, -1) o D)^T diag(beta))^-1 dwrites
    dV      = beta o dtarget,   dbeta = rowsum(dtarget o delta)
    dP      = dO writes^T o D,  dL = -tril(dV writes^T, -1) o D
    dQ      = d o (dO S^T) + dP K
    dK      = -d o (dV S^T) + e o (writes dS^T) + dP^T Q + (dL + dL^T) K
    dS     <- decay dS + Q^T (d o dO) - K^T (d o dV)

dL is the adjoint of a triangular solve, so no gradient of an inverse appears. Here dO, dV and dS are kept multiplied
by the smooth part of the decay, as delta and writes are kept divided by it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gated_delta_rule.decay import chunk_decay, log_decay_gradient
from pallas_kernels.gated_delta_rule.layout import (
    einsum,
    read_chunk,
    to_key_heads,
    to_value_heads,
    write_chunk,
)
from pallas_kernels.gated_delta_rule.solve import Gram, gram, solve_transposed

Carry = tuple[jax.Array, tuple[jax.Array, ...]]


class Residuals(NamedTuple):
    """What the forward pass leaves for the backward pass: O(T), and one state per chunk."""

    q: jax.Array
    k: jax.Array
    g: jax.Array
    beta: jax.Array
    states: jax.Array  # [chunks, B, N, K, V] the state that enters each chunk
    deltas: jax.Array  # [chunks, B, N, C, V]


def backward(
    scale: float, chunk_size: int, residuals: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, ...]:
    """Gradients of q, k, v, g, beta and initial_state from those of the output and the final state."""
    q, k, g, beta, states, deltas = residuals
    d_o, d_final_state = cotangents
    num_key_heads, num_heads = q.shape[2], d_o.shape[2]
    strictly_lower = jnp.tri(chunk_size, k=-1, dtype=bool)

    def step(carry: Carry, saved: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Carry, None]:
        d_state, gradients = carry
        index, state, delta = saved
        qc, kc, gc, bc, do = (read_chunk(x, index, chunk_size, states.dtype) for x in (q, k, g, beta, d_o))
        qc, bc = qc * scale, bc[..., None]
        decay = chunk_decay(gc)
        between, before = decay.drop_between, decay.drop_before
        scores = to_value_heads(einsum("bhck,bhdk->bhcd", qc, kc), num_heads)
        products = Gram(*(to_value_heads(part, num_heads) for part in gram(kc)))
        qn, kn = to_value_heads(qc, num_heads), to_value_heads(kc, num_heads)
        writes, kept = bc * delta, decay.drop_after * bc * delta
        do, d_state = decay.smooth * do, decay.smooth[..., -1:, :] * d_state

        d_kept = einsum("bnck,bnkv->bncv", kn, d_state)
        d_writes = einsum("bndc,bndv->bncv", scores * between, do) + decay.drop_after * d_kept
        d_target = solve_transposed(Gram(*(part * between for part in products)), bc, d_writes)
        dv = bc * d_target
        d_scores = einsum("bncv,bndv->bncd", do, writes) * between
        d_products = jnp.where(strictly_lower, -einsum("bncv,bndv->bncd", dv, writes) * between, 0)

        dq_state = before * einsum("bncv,bnkv->bnck", do, state)
        dk_state = -before * einsum("bncv,bnkv->bnck", dv, state)
        dk_kept = einsum("bncv,bnkv->bnck", kept, d_state)
        ds, dl = to_key_heads(d_scores, num_key_heads), to_key_heads(d_products, num_key_heads)
        dq = to_key_heads(dq_state, num_key_heads) + einsum("bhcd,bhdk->bhck", ds, kc)
        dk = to_key_heads(dk_state + dk_kept, num_key_heads) + einsum("bhdc,bhdk->bhck", ds, qc)
        dk += einsum("bhcd,bhdk->bhck", dl, kc) + einsum("bhdc,bhdk->bhck", dl, kc)
        dg = log_decay_gradient(
            between=d_scores * scores + d_products * products.total(),
            before=(dq_state * qn + dk_state * kn).sum(-1),
            after=(d_kept * kept).sum(-1),
            whole=before[..., -1, :] * (d_state * state).sum((-2, -1))[..., None],
        )
        chunk_gradients = dq * scale, dk, decay.inverse_smooth * dv, dg, (d_target * delta).sum(-1)
        gradients = tuple(write_chunk(*pair, index) for pair in zip(gradients, chunk_gradients, strict=True))

        d_state = before[..., -1:, :] * d_state + einsum("bnck,bncv->bnkv", qn, before * do)
        d_state -= einsum("bnck,bncv->bnkv", kn, before * dv)
        return (d_state, gradients), None

    carry = d_final_state, tuple(jnp.zeros_like(x) for x in (q, k, d_o, g, beta))
    saved = jnp.arange(states.shape[0]), states, deltas
    (d_initial_state, gradients), _ = lax.scan(step, carry, saved, reverse=True)
    return *gradients, d_initial_state
