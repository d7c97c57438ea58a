"""The gated delta rule by kernels for Hopper GPUs, with its own backward pass; `mosaic/` holds the kernels.

Whole sequences take four: the inverse of each chunk's triangular system and the scan over chunks, and backward a scan
in reverse and what is left to each chunk. Between kernels lie only arrays that several read. What has one number for
each token and head (decay, write strength and their gradients) is left to XLA, which fuses it with what is around it.
Decoding takes a fifth.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.gated_delta_rule.chunked import SAVED_FOR_BACKWARD
from pallas_kernels.gated_delta_rule.layout import to_key_heads
from pallas_kernels.gated_delta_rule.mosaic.backward_states import scan_backward
from pallas_kernels.gated_delta_rule.mosaic.backward_tokens import TokenInputs, ValueInputs, token_gradients
from pallas_kernels.gated_delta_rule.mosaic.decode import decode_step
from pallas_kernels.gated_delta_rule.mosaic.forward import scan_forward
from pallas_kernels.gated_delta_rule.mosaic.inputs import Inputs
from pallas_kernels.gated_delta_rule.mosaic.inverse import chunk_inverses
from pallas_kernels.gated_delta_rule.mosaic.tables import (
    Tables,
    chunk_tables,
    decay_over_chunks,
    log_decay_gradient,
)
from pallas_kernels.gated_delta_rule.mosaic.tiles import CHUNK, KEY_UNIT, VALUE_TILE
from pallas_kernels.gated_delta_rule.recurrent import recurrent_gated_delta_rule

Outputs = tuple[jax.Array, jax.Array]


def fused_gated_delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    initial_state: jax.Array,
    scale: float,
    chunk_size: int,
) -> Outputs:
    """Output [B, T, N, V] in v's dtype and final state [B, N, K, V]; as `chunked.chunked_gated_delta_rule`.

    q, k and v are rounded to bfloat16, everything else is float32. Chunks have 64 tokens, whatever `chunk_size` says.
    """
    num_tokens, key_dim, value_dim = q.shape[1], q.shape[3], v.shape[3]
    # Zeros neither decay nor write, and what is written in their place stays zero.
    q, k = (_pad(x.astype(jnp.bfloat16), {1: CHUNK, 3: KEY_UNIT}) for x in (q, k))
    values = _pad(v.astype(jnp.bfloat16), {1: CHUNK, 3: VALUE_TILE})
    g, beta = (_pad(x, {1: CHUNK}).swapaxes(1, 2) for x in (g, beta))
    initial_state = _pad(initial_state, {2: KEY_UNIT, 3: VALUE_TILE}).swapaxes(2, 3)
    o, final_state = _fused(q, k, values, g, beta, initial_state, scale)
    final_state = final_state.swapaxes(2, 3)[:, :, :key_dim, :value_dim]
    return o[:, :num_tokens, :, :value_dim].astype(v.dtype), final_state


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def fused_decode_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    initial_state: jax.Array,
    scale: float,
) -> Outputs:
    """Output [B, 1, N, V] and new state for one token of every sequence; as `recurrent.recurrent_gated_delta_rule`.

    Its gradient is that of plain JAX: a kernel that writes over its input has none.
    """
    o, state = decode_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], initial_state, scale)
    return o[:, None], state


def _decode_fwd(*arguments: Any) -> tuple[Outputs, tuple[jax.Array, ...]]:
    return fused_decode_step(*arguments), arguments[:-1]


def _decode_bwd(scale: float, arrays: tuple[jax.Array, ...], cotangents: Outputs) -> tuple[jax.Array, ...]:
    return jax.vjp(functools.partial(recurrent_gated_delta_rule, scale=scale), *arrays)[1](cotangents)


fused_decode_step.defvjp(_decode_fwd, _decode_bwd)


class Residuals(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    q: jax.Array
    k: jax.Array
    g: jax.Array
    beta: jax.Array
    inverse: jax.Array
    delta: jax.Array
    states: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _fused(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    initial_state: jax.Array,
    scale: float,
) -> Outputs:
    inputs = _inputs(q, k, v, g, beta)
    o, final_state, _ = scan_forward(inputs, initial_state, scale, save=False)
    return o, final_state


def _fused_fwd(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    initial_state: jax.Array,
    scale: float,
) -> tuple[Outputs, Residuals]:
    inputs = _inputs(q, k, v, g, beta)
    o, final_state, saved = scan_forward(inputs, initial_state, scale, save=True)
    outputs, saved = checkpoint_name(((o, final_state), (inputs.inverse, *saved)), SAVED_FOR_BACKWARD)
    return outputs, Residuals(q, k, g, beta, *saved)


def _fused_bwd(scale: float, residuals: Residuals, cotangents: Outputs) -> tuple[jax.Array, ...]:
    q, k, g, beta, inverse, delta, states = residuals
    d_o, d_final_state = cotangents
    tables = chunk_tables(g, beta)
    inputs = Inputs(q, k, d_o, inverse, _stacked(tables))
    dv, d_states, written, d_initial_state = scan_backward(inputs, delta, d_final_state, scale)
    dq, dk, sums = token_gradients(
        TokenInputs(q, k, inputs.tables), ValueInputs(d_o, delta, dv, states, d_states), scale
    )

    rows, columns, state, key_rows, after, d_beta = (each.reshape(tables.beta.shape) for each in sums)
    until = rows - columns + key_rows + tables.beta * d_beta
    dg = log_decay_gradient(until, after, decay_over_chunks(tables) * state.sum(-1), g)
    dq, dk = (
        to_key_heads(each.swapaxes(1, 2).astype(jnp.float32), q.shape[2]).swapaxes(1, 2).astype(q.dtype)
        for each in (dq, dk)
    )
    return dq, dk, dv, dg, written.sum(2) - sums.beta, d_initial_state


_fused.defvjp(_fused_fwd, _fused_bwd)


def _inputs(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, beta: jax.Array) -> Inputs:
    return Inputs(q, k, v, chunk_inverses(k, beta), _stacked(chunk_tables(g, beta)))


def _stacked(tables: Tables) -> jax.Array:
    return jnp.stack(tables, axis=-2)


def _pad(x: jax.Array, multiples: dict[int, int]) -> jax.Array:
    """`x` with zeros at the end of dims that are no multiple of what they must be."""
    missing = [-size % multiples.get(dim, 1) for dim, size in enumerate(x.shape)]
    return jnp.pad(x, [(0, each) for each in missing]) if any(missing) else x
