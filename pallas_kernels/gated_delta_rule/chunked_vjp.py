"""Backward pass of the chunked gated delta rule, by hand: the chunks in reverse, each recomputed from its state.

Letters as in `chunked.py`; dX is the gradient of X, dS that of the state that leaves the chunk. With
B = (I + diag(beta) tril(K K^T, -1))^-1, so that diag(beta) A = B diag(beta), and P = Q K^T o D,

    dwrites = P^T dO + e o (K dS)
    dW      = (D o B)^T dwrites,   dV = beta o dW,   dbeta = rowsum(dW o delta)
    dP      = dO writes^T o D,     dL = -tril(dV writes^T, -1) o D,   with L = K K^T
    dQ      = d o (dO S^T) + dP K
    dK      = -d o (dV S^T) + e o (writes dS^T) + dP^T Q + (dL + dL^T) K
    dS     <- decay dS + Q^T (d o dO) - K^T (d o dV)

dL is the adjoint of a triangular solve: no product of three C x C matrices, and no inverse of a gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gated_delta_rule.chunk_local import decay_factors, log_decay_gradient, unit_lower_inverse
from pallas_kernels.gated_delta_rule.layout import (
    einsum,
    read_chunk,
    to_key_heads,
    to_value_heads,
    write_chunk,
)

Carry = tuple[jax.Array, tuple[jax.Array, ...]]


class Residuals(NamedTuple):
    """What the forward pass leaves for the backward pass: O(T), and one state per chunk."""

    q: jax.Array
    k: jax.Array
    g: jax.Array
    beta: jax.Array
    states: jax.Array  # [chunks, B, N, K, V]: the state that enters each chunk
    deltas: jax.Array  # [chunks, B, N, C, V]: v - S^T k of each token


def backward(
    scale: float, chunk_size: int, residuals: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, ...]:
    """Gradients of q, k, v, g, beta and initial_state from those of the output and the final state."""
    q, k, g, beta, states, deltas = residuals
    d_o, d_final_state = cotangents
    num_key_heads, num_heads = q.shape[2], d_o.shape[2]
    dtype = states.dtype
    strictly_lower = jnp.tri(chunk_size, k=-1, dtype=bool)

    def step(carry: Carry, xs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Carry, None]:
        d_state, gradients = carry
        index, state, delta = xs
        qc, kc, gc, bc, do = (read_chunk(x, index, chunk_size, dtype) for x in (q, k, g, beta, d_o))
        qc, bc = qc * scale, bc[..., None]
        decay = decay_factors(gc)
        scores = to_value_heads(einsum("bhck,bhdk->bhcd", qc, kc), num_heads)
        gram = to_value_heads(einsum("bhck,bhdk->bhcd", kc, kc), num_heads)
        solve = decay.between * unit_lower_inverse(gram * bc)
        qn, kn = to_value_heads(qc, num_heads), to_value_heads(kc, num_heads)
        writes = bc * delta

        d_kept = einsum("bnck,bnkv->bncv", kn, d_state)
        d_writes = einsum("bndc,bndv->bncv", scores * decay.between, do) + decay.until_end * d_kept
        dw = einsum("bndc,bndv->bncv", solve, d_writes)
        dv = bc * dw
        d_scores = einsum("bncv,bndv->bncd", do, writes) * decay.between
        d_gram = jnp.where(strictly_lower, -einsum("bncv,bndv->bncd", dv, writes) * decay.between, 0)

        kept = decay.until_end * writes
        q_inter = decay.since_start * einsum("bncv,bnkv->bnck", do, state)
        k_inter = -decay.since_start * einsum("bncv,bnkv->bnck", dv, state)
        k_kept = einsum("bncv,bnkv->bnck", kept, d_state)
        d_qk, d_kk = to_key_heads(d_scores, num_key_heads), to_key_heads(d_gram, num_key_heads)
        dq = to_key_heads(q_inter, num_key_heads) + einsum("bhcd,bhdk->bhck", d_qk, kc)
        dk = to_key_heads(k_inter + k_kept, num_key_heads) + einsum("bhdc,bhdk->bhck", d_qk, qc)
        dk += einsum("bhcd,bhdk->bhck", d_kk, kc) + einsum("bhdc,bhdk->bhck", d_kk, kc)

        dg = log_decay_gradient(
            between=d_scores * scores + d_gram * gram,
            since_start=(q_inter * qn + k_inter * kn).sum(-1),
            until_end=(d_kept * kept).sum(-1),
            whole=decay.whole[..., 0] * (d_state * state).sum((-2, -1))[..., None],
        )
        new_gradients = (dq * scale, dk, dv, dg, (dw * delta).sum(-1))
        gradients = tuple(write_chunk(x, y, index) for x, y in zip(gradients, new_gradients, strict=True))

        d_state = decay.whole * d_state + einsum("bnck,bncv->bnkv", qn, decay.since_start * do)
        d_state -= einsum("bnck,bncv->bnkv", kn, decay.since_start * dv)
        return (d_state, gradients), None

    carry = d_final_state, tuple(jnp.zeros_like(x) for x in (q, k, d_o, g, beta))
    xs = jnp.arange(states.shape[0]), states, deltas
    (d_initial_state, gradients), _ = lax.scan(step, carry, xs, reverse=True)
    return *gradients, d_initial_state
