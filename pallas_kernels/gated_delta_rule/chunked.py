"""The gated delta rule chunk by chunk in plain JAX: matrix products inside chunks, a scan from chunk to chunk.

For a chunk of C tokens entered by state S, with D the decay between its tokens, d from its start and e to its end,

    A      = (I + tril(K K^T, -1) diag(beta))^-1
    delta  = (D o A) (V - d o K S)
    writes = beta o delta
    O      = d o Q S + (Q K^T o D) writes
    S     <- decay S + K^T (e o writes)

which is the WY form of arXiv 2406.06484 and 2412.06464 in another order: A is the inverse without decay, since
(I + L o D)^-1 = D o (I + L)^-1, and beta stands on its right, so that the solution is each token's prediction error
delta = v - S^T k, which the backward pass takes instead of the values and the inverse's right-hand side.

One chunk of all rows and heads at a time: temporaries do not grow with T, and stay in cache.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gated_delta_rule.chunk_local import CHUNK_SIZES, decay_factors, unit_lower_inverse
from pallas_kernels.gated_delta_rule.chunked_vjp import Residuals, backward
from pallas_kernels.gated_delta_rule.layout import (
    compute_dtype,
    einsum,
    read_chunk,
    to_value_heads,
    write_chunk,
)

Outputs = tuple[jax.Array, jax.Array]


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
    # Tokens of zeros neither decay nor write.
    q, k, v, g, beta = (
        jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)) if padding else x
        for x in (q, k, v, g, beta)
    )
    o, final_state = _chunked(q, k, v, g, beta, initial_state, scale, chunk_size)
    return o[:, :num_tokens], final_state


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _chunked(q, k, v, g, beta, initial_state, scale, chunk_size):  # type: ignore[no-untyped-def]
    return _forward(q, k, v, g, beta, initial_state, scale, chunk_size, save=False)[0]


def _chunked_fwd(q, k, v, g, beta, initial_state, scale, chunk_size):  # type: ignore[no-untyped-def]
    outputs, (states, deltas) = _forward(q, k, v, g, beta, initial_state, scale, chunk_size, save=True)
    return outputs, Residuals(q, k, g, beta, states, deltas)


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
) -> tuple[Outputs, Any]:
    """Outputs and, to save, each chunk's entering state and its deltas (letters as in the file's docstring)."""
    num_heads = v.shape[2]
    dtype = compute_dtype(q, k, v, g, beta, initial_state)

    def step(carry: tuple[jax.Array, jax.Array], index: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
        state, o = carry
        qc, kc, vc, gc, bc = (read_chunk(x, index, chunk_size, dtype) for x in (q, k, v, g, beta))
        qc = qc * scale
        decay = decay_factors(gc)
        scores = to_value_heads(einsum("bhck,bhdk->bhcd", qc, kc), num_heads)
        gram = to_value_heads(einsum("bhck,bhdk->bhcd", kc, kc), num_heads)
        qc, kc = to_value_heads(qc, num_heads), to_value_heads(kc, num_heads)

        solve = decay.between * unit_lower_inverse(gram * bc[..., None, :])
        target = vc - decay.since_start * einsum("bnck,bnkv->bncv", kc, state)
        delta = einsum("bncd,bndv->bncv", solve, target)
        writes = bc[..., None] * delta
        oc = decay.since_start * einsum("bnck,bnkv->bncv", qc, state)
        oc += einsum("bncd,bndv->bncv", scores * decay.between, writes)
        new_state = decay.whole * state + einsum("bnck,bncv->bnkv", kc, decay.until_end * writes)
        return (new_state, write_chunk(o, oc, index)), (state, delta) if save else None

    carry = initial_state.astype(dtype), jnp.zeros_like(v)
    (final_state, o), saved = lax.scan(step, carry, jnp.arange(q.shape[1] // chunk_size))
    return (o, final_state), saved
