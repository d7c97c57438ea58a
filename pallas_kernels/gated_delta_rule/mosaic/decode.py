"""One token of every sequence, its state updated in place: a warpgroup for 64 values of one head.

    S <- exp(g) S;   u = beta (v - S^T k);   S <- S + k u^T;   o = scale S^T q

The state is read and written once, straight from and to memory, which bounds the time: all else is small beside it. It
is held transposed ([64 values, K]), so that sums over K stay within four threads.

Shared memory, in KB      any K     Registers a thread
scratch for sums            2       state, and k or q along its columns, K / 2 each
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gated_delta_rule.mosaic.tiles import (
    VALUE_TILE,
    Ref,
    compiler_params,
    over_columns,
    store_to_memory,
)
from pallas_kernels.gated_delta_rule.recurrent import recurrent_gated_delta_rule

# Threads hold neighbours along the values, as they lie in memory.
_MATRIX = plgpu.Layout.WGMMA_TRANSPOSED
_ROWS, _COLUMNS = _MATRIX.reduce(1), _MATRIX.reduce(0)


def decode_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    state: jax.Array,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Output [B, N, V] in v's dtype and the new state, which takes the place of ``state``.

    Args:
        q, k: [B, H, K], K a multiple of 8.
        v: [B, N, V], V a multiple of 8 from 64 on; what is over a multiple of 64 is left to XLA.
        g, beta: [B, N] float32.
        state: [B, N, K, V] float32.
        scale: factor on the queries.
    """
    batch, num_heads, value_dim = v.shape
    kernel = plgpu.kernel(
        functools.partial(_body, scale=scale, heads_per_key=num_heads // q.shape[1]),
        out_type=jax.ShapeDtypeStruct(v.shape, v.dtype),
        grid=(batch, num_heads, value_dim // VALUE_TILE),
        grid_names=("row", "head", "values"),
        compiler_params=compiler_params(),
    )
    in_place = jax.new_ref(state)
    o = kernel(in_place, q, k, v, g, beta)
    if value_dim % VALUE_TILE:
        rest = slice(value_dim - value_dim % VALUE_TILE, None)
        qt, kt, vt, gt, bt = (x[:, None] for x in (q, k, v[..., rest], g, beta))
        rest_o, rest_state = recurrent_gated_delta_rule(qt, kt, vt, gt, bt, in_place[..., rest], scale)
        in_place[..., rest] = rest_state
        o = o.at[..., rest].set(rest_o[:, 0])
    return o, jax.freeze(in_place)


def _body(
    state_memory: Ref,
    q_memory: Ref,
    k_memory: Ref,
    v_memory: Ref,
    g_memory: Ref,
    beta_memory: Ref,
    o_memory: Ref,
    *,
    scale: float,
    heads_per_key: int,
) -> None:
    row, head, value_index = (lax.axis_index(name) for name in ("row", "head", "values"))
    key_head = head // heads_per_key
    values = pl.ds(value_index * VALUE_TILE, VALUE_TILE)
    key_dim = k_memory.shape[2]

    def load(memory: Ref, layout: Any) -> jax.Array:
        return plgpu.load(memory, layout=layout, optimized=False).astype(jnp.float32)

    def columns(memory: Ref) -> jax.Array:
        return lax.broadcast_in_dim(load(memory, _COLUMNS), (VALUE_TILE, key_dim), (1,))

    state = load(state_memory.at[row, head, :, values].transpose((1, 0)), _MATRIX)
    decay = jnp.exp(g_memory[row, head])
    state = jnp.where(decay > 0, state * decay, 0.0)  # what is forgotten may have been infinite
    k = columns(k_memory.at[row, key_head])
    u = load(v_memory.at[row, head, values], _ROWS) - (state * k).sum(axis=1)
    u *= beta_memory[row, head]
    state += k * over_columns(u, key_dim)
    store_to_memory(state_memory.at[row, head, :, values].transpose((1, 0)), state)
    o = scale * (state * columns(q_memory.at[row, key_head])).sum(axis=1)
    store_to_memory(o_memory.at[row, head, values], o.astype(o_memory.dtype))
