"""The gated delta rule chunk by chunk in plain JAX: matrix products inside chunks, a scan from chunk to chunk.

For a chunk of C tokens entered by state S, with D the decay between its tokens, d from its start and e to its end,

    delta  = (I + (tril(K K^T, -1) o D) diag(beta))^-1 (V - d o K S)
    writes = beta o delta
    O      = d o Q S + (Q K^T o D) writes
    S     <- decay S + K^T (e o writes)

which is the WY form of arXiv 2406.06484 and 2412.06464 with beta on the right, so that the solution is each token's
prediction error delta = v - S^T k: all that the backward pass needs beside the states. Decay is split as `decay.py`
says; delta, writes and what they are computed from are kept divided by the smooth part.

One chunk of all rows and heads at a time: temporaries do not grow with T, and stay in cache.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.gated_delta_rule.chunked_vjp import Residuals, backward
from pallas_kernels.gated_delta_rule.decay import chunk_decay
from pallas_kernels.gated_delta_rule.layout import (
    compute_dtype,
    einsum,
    read_chunk,
    to_value_heads,
    write_chunk,
)
from pallas_kernels.gated_delta_rule.solve import Gram, gram, solve

CHUNK_SIZES = (16, 32, 64, 128)
# The name under which jax.checkpoint policies know what the op computed and its backward pass needs.
SAVED_FOR_BACKWARD = "gated_delta_rule"

Outputs = tuple[jax.Array, jax.Array]
Carry = tuple[jax.Array, jax.Array]


def chunked_gated_delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    initial_state: jax.Array,
    scale: float,
    chunk_size: int,
) -> Outputs:
    """Output [B, T, N, V] in v's dtype and final state [B, N, K, V]; arguments as in `api.py`, all of them given."""
    num_tokens = q.shape[1]
    chunk_size = min(chunk_size, *(size for size in CHUNK_SIZES if size >= num_tokens), CHUNK_SIZES[-1])
    padding = -num_tokens % chunk_size
    if padding:  # tokens of zeros neither decay nor write
        q, k, v, g, beta = (
            jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)) for x in (q, k, v, g, beta)
        )
    o, final_state = _chunked(q, k, v, g, beta, initial_state, scale, chunk_size)
    return o[:, :num_tokens], final_state


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _chunked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    initial_state: jax.Array,
    scale: float,
    chunk_size: int,
) -> Outputs:
    return _forward(q, k, v, g, beta, initial_state, scale, chunk_size, save=False)[0]


def _chunked_fwd(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    initial_state: jax.Array,
    scale: float,
    chunk_size: int,
) -> tuple[Outputs, Residuals]:
    outputs, saved = checkpoint_name(
        _forward(q, k, v, g, beta, initial_state, scale, chunk_size, save=True), SAVED_FOR_BACKWARD
    )
    return outputs, Residuals(q, k, g, beta, *saved)


_chunked.defvjp(_chunked_fwd, backward)


def _forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    initial_state: jax.Array,
    scale: float,
    chunk_size: int,
    save: bool,
) -> tuple[Outputs, tuple[jax.Array, ...]]:
    """Outputs and, to save, the state that enters each chunk and the chunk's delta."""
    num_heads = v.shape[2]
    dtype = compute_dtype(q, k, v, g, beta, initial_state)

    def step(carry: Carry, index: jax.Array) -> tuple[Carry, tuple[jax.Array, ...]]:
        state, o = carry
        qc, kc, vc, gc, bc = (read_chunk(x, index, chunk_size, dtype) for x in (q, k, v, g, beta))
        qc, bc = qc * scale, bc[..., None]
        decay = chunk_decay(gc)
        scores = to_value_heads(einsum("bhck,bhdk->bhcd", qc, kc), num_heads) * decay.drop_between
        lower = Gram(*(to_value_heads(part, num_heads) * decay.drop_between for part in gram(kc)))
        qc, kc = to_value_heads(qc, num_heads), to_value_heads(kc, num_heads)

        target = decay.inverse_smooth * vc - decay.drop_before * einsum("bnck,bnkv->bncv", kc, state)
        delta = solve(lower, bc, target)
        writes = bc * delta
        oc = decay.drop_before * einsum("bnck,bnkv->bncv", qc, state)
        oc = decay.smooth * (oc + einsum("bncd,bndv->bncv", scores, writes))
        new_state = decay.drop_before[..., -1:, :] * state
        new_state += einsum("bnck,bncv->bnkv", kc, decay.drop_after * writes)
        new_state *= decay.smooth[..., -1:, :]
        return (new_state, write_chunk(o, oc, index)), (state, delta) if save else ()

    carry = initial_state.astype(dtype), jnp.zeros_like(v)
    (final_state, o), saved = lax.scan(step, carry, jnp.arange(q.shape[1] // chunk_size))
    return (o, final_state), saved
