"""Gradients of the states and values, the chunks in reverse: one warpgroup for 64 values of one head, as forward.

With dS the gradient of the state that leaves a chunk, and T, P as in `forward.py`,

    dwrites = scale P^T dO + after o K dS
    dV      = T^T (beta o dwrites)
    dS     <- over dS + scale Q^T (before o dO) - K^T (before o dV)

Shared memory, in KB             K = 96   K = 128     Registers a thread
two chunks' q, k                   48       64        dS, a product of its size   K / 2 each
two chunks' dO, delta, inverse     64       64        dwrites or dV                   32
decay, beta                         1.5      1.5
dS, P, values, dV                  36       40
a chunk's sums, scratch for them    2.25     2.25
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gated_delta_rule.mosaic.inputs import (
    NUM_COPIES,
    Inputs,
    Place,
    chunk_in,
    copies_of_chunk,
    input_tiles,
    num_chunk_slots,
)
from pallas_kernels.gated_delta_rule.mosaic.tiles import (
    CHUNK,
    VALUE_TILE,
    Ref,
    along_rows,
    compiler_params,
    decay_after,
    decay_before,
    decay_between,
    decay_over,
    load,
    load_from_memory,
    over_columns,
    product,
    store,
    store_split,
    store_to_memory,
    tile,
    transposed,
    varying_as,
    vector,
)


def scan_backward(
    inputs: Inputs, delta: jax.Array, d_final_state: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients by what they are of, and what `backward_tokens.py` needs of them.

    Args:
        inputs: as forward, but v is the output's gradient.
        delta: as saved [B, T, N, V].
        d_final_state: [B, N, V, K] float32.
        scale: factor on the queries.

    Returns:
        dV [B, T, N, V] bfloat16; the gradient of the state that leaves each chunk [B, N, T / 64, V, K] bfloat16;
        sums of dwrites o delta over each 64 values [B, N, V / 64, T] float32; that of the initial state
        [B, N, V, K] float32.
    """
    batch, num_tokens, num_heads, value_dim = delta.shape
    num_key_heads, key_dim = inputs.q.shape[2:]
    num_chunks, num_value_tiles = num_tokens // CHUNK, value_dim // VALUE_TILE
    num_slots = num_chunk_slots(key_dim)
    new_tile = functools.partial(tile, key_dim=key_dim)
    kernel = plgpu.kernel(
        functools.partial(
            _body,
            num_chunks=num_chunks,
            num_slots=num_slots,
            scale=scale,
            heads_per_key=num_heads // num_key_heads,
        ),
        out_type=(
            jax.ShapeDtypeStruct(delta.shape, jnp.bfloat16),
            jax.ShapeDtypeStruct((batch, num_heads, num_chunks, value_dim, key_dim), jnp.bfloat16),
            jax.ShapeDtypeStruct((batch, num_heads, num_value_tiles, num_tokens), jnp.float32),
            jax.ShapeDtypeStruct(d_final_state.shape, jnp.float32),
        ),
        scratch_types=[
            input_tiles(key_dim),
            new_tile(num_slots, CHUNK, VALUE_TILE),
            new_tile(VALUE_TILE, key_dim),
            new_tile(CHUNK, CHUNK),
            new_tile(CHUNK, VALUE_TILE),
            new_tile(CHUNK, VALUE_TILE),
            vector(CHUNK),
            plgpu.Barrier(num_arrivals=NUM_COPIES + 1, num_barriers=num_slots),  # and delta
        ],
        grid=(batch, num_heads, num_value_tiles),
        grid_names=("row", "head", "values"),
        compiler_params=compiler_params(),
    )
    return varying_as(delta, kernel(inputs, delta, d_final_state))


def _body(
    memory: Inputs,
    delta_memory: Ref,
    d_final_memory: Ref,
    dv_memory: Ref,
    d_states_memory: Ref,
    sums_memory: Ref,
    d_initial_memory: Ref,
    arriving: Inputs,
    delta_arriving: Ref,
    d_state_tile: Ref,
    scores_tile: Ref,
    value_tile: Ref,
    dv_tile: Ref,
    sums_vector: Ref,
    arrived: Ref,
    *,
    num_chunks: int,
    num_slots: int,
    scale: float,
    heads_per_key: int,
) -> None:
    row, head, value_index = (lax.axis_index(name) for name in ("row", "head", "values"))
    values = pl.ds(value_index * VALUE_TILE, VALUE_TILE)
    place = Place(row, head, head // heads_per_key, values)

    def fetch(index: jax.Array | int) -> None:
        chunk = num_chunks - 1 - index
        tokens = pl.ds(chunk * CHUNK, CHUNK)
        slot = lax.rem(index, num_slots)
        copies = copies_of_chunk(memory, arriving, place, chunk, slot)
        copies.append((delta_memory.at[row, tokens, head, values], delta_arriving.at[slot]))
        for source, target in copies:
            plgpu.copy_gmem_to_smem(source, target, arrived.at[slot])

    def step(index: jax.Array, d_state: jax.Array) -> jax.Array:
        ahead = index + num_slots - 1
        pl.when(ahead < num_chunks)(lambda: fetch(ahead))
        slot = lax.rem(index, num_slots)
        chunk = num_chunks - 1 - index
        tokens = pl.ds(chunk * CHUNK, CHUNK)
        # The tiles that are written below may still be on their way out.
        plgpu.wait_smem_to_gmem(0)
        store(d_state_tile, d_state)
        plgpu.barrier_wait(arrived.at[slot])
        q, k, d_o, high, low, log, beta, start = chunk_in(arriving, slot)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(d_state_tile, d_states_memory.at[row, head, chunk, values])

        store(scores_tile, scale * product((q, transposed(k))) * decay_between(log, start))
        d_writes = over_columns(decay_after(log, start), VALUE_TILE) * product((k, transposed(d_state_tile)))
        d_writes += product((transposed(scores_tile), d_o))
        sums_vector[...] = (d_writes * load(delta_arriving.at[slot])).sum(axis=1)
        store(value_tile, d_writes * along_rows(beta, VALUE_TILE))
        store(d_o, scale * over_columns(decay_before(log, start), VALUE_TILE) * load(d_o))
        between = decay_between(log, start)
        store_split(high, low, (load(high) + load(low)) * between)
        dv = product((transposed(high), value_tile), (transposed(low), value_tile))
        store(dv_tile, dv)
        store(value_tile, -over_columns(decay_before(log, start), VALUE_TILE) * dv)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(dv_tile, dv_memory.at[row, tokens, head, values])
        plgpu.copy_smem_to_gmem(sums_vector, sums_memory.at[row, head, value_index, tokens])
        return d_state * decay_over(log, start) + product((transposed(d_o), q), (transposed(value_tile), k))

    for first in range(num_slots - 1):
        fetch(first)
    d_state = load_from_memory(d_final_memory.at[row, head, values])
    d_state = lax.fori_loop(0, num_chunks, step, d_state)
    store_to_memory(d_initial_memory.at[row, head, values], d_state)
    plgpu.wait_smem_to_gmem(0)
