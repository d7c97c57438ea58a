"""Gradients of queries, keys, decay and write strength: every chunk by itself, by two warpgroups.

With dS the gradient of the state that leaves the chunk and E = dV delta^T,

    dP = scale (dO writes^T) o between
    dL = -tril(dV writes^T, -1) o between
    dQ = scale before o dO S^T + dP K
    dK = -before o dV S^T + after o writes dS^T + dP^T Q + (dL + dL^T) K
    dbeta_j = sum_v (dwrites o delta)_j - sum_i (K K^T o between o E)_ij        (the first sum by `backward_states.py`)

and for the logarithm G of the decay up to a token, with R = dP o Q K^T + dL o K K^T,

    dG = rowsum R - colsum R + before rowsum (scale dO S^T o Q - dV S^T o K)

beside terms of the decay to the end of the chunk, after rowsum (writes dS^T o K), and over it, over <S, dS>. The sums
over R nearly cancel, so they are float32 from the same registers. The first warpgroup takes what belongs to the
queries, the second the rest.

Shared memory, in KB                  K = 96   K = 128    Registers a thread
q, k                                    24       32       first: dO writes^T 32, dO S^T K / 2, a product
two tiles of dO, delta, dV, S, dS       96      112       second: E 32, dV S^T and writes dS^T K / 2 each, a product
dP, dL                                  16       16
decay, beta, sums, scratch for them      4.5      4.5
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gated_delta_rule.mosaic.tables import Tables
from pallas_kernels.gated_delta_rule.mosaic.tiles import (
    CHUNK,
    VALUE_TILE,
    Ref,
    accumulator,
    along_columns,
    along_rows,
    compiler_params,
    decay_after,
    decay_before,
    decay_between,
    load,
    multiply,
    over_columns,
    product,
    row_and_column,
    store,
    tile,
    transposed,
    varying_as,
    vector,
)


class TokenInputs(NamedTuple):
    """What a chunk needs whole: arrays; inside the kernel, their memory or their tiles.

    Attributes:
        q, k: [B, T, H, K] bfloat16.
        tables: [B, N, T / 64, 3, 64] float32, see `Tables`.
    """

    q: Any
    k: Any
    tables: Any


class ValueInputs(NamedTuple):
    """What a chunk needs 64 values at a time, bfloat16; as `TokenInputs`.

    Attributes:
        d_o, delta, dv: [B, T, N, V].
        states, d_states: [B, N, T / 64, V, K], entering a chunk and leaving it.
    """

    d_o: Any
    delta: Any
    dv: Any
    states: Any
    d_states: Any


class Sums(NamedTuple):
    """Terms of the gradients of decay and write strength, one for each token: [B, N, T] float32.

    Attributes:
        query_rows, key_rows: of log decay up to a token, to be added.
        query_columns: of the same, to be subtracted.
        after: of the decay from a token to the end of the chunk.
        state: parts of <S, dS>: their sum times the decay over the chunk is the term of that.
        beta: of write strength, to be subtracted; times beta, of log decay up to a token, to be added.
    """

    query_rows: Any
    query_columns: Any
    state: Any
    key_rows: Any
    after: Any
    beta: Any


def token_gradients(
    tokens: TokenInputs, values: ValueInputs, scale: float
) -> tuple[jax.Array, jax.Array, Sums]:
    """Gradients dQ and dK of every value head [B, T, N, K] bfloat16, and terms of the other gradients."""
    batch, num_tokens, num_heads, value_dim = values.d_o.shape
    num_key_heads, key_dim = tokens.q.shape[2:]
    # Tiles of long keys leave room for one slot only.
    num_slots = 2 if key_dim <= 128 and value_dim > VALUE_TILE else 1
    new_tile = functools.partial(tile, key_dim=key_dim)
    by_token = jax.ShapeDtypeStruct((batch, num_tokens, num_heads, key_dim), jnp.bfloat16)
    sums = Sums(*[jax.ShapeDtypeStruct((batch, num_heads, num_tokens), jnp.float32)] * len(Sums._fields))
    chunk_tiles = TokenInputs(
        q=new_tile(CHUNK, key_dim),
        k=new_tile(CHUNK, key_dim),
        tables=vector(len(Tables._fields), CHUNK),
    )
    value_tiles = ValueInputs(
        *[new_tile(num_slots, CHUNK, VALUE_TILE)] * 3, *[new_tile(num_slots, VALUE_TILE, key_dim)] * 2
    )
    kernel = plgpu.kernel(
        functools.partial(
            _body,
            num_value_tiles=value_dim // VALUE_TILE,
            num_slots=num_slots,
            scale=scale,
            heads_per_key=num_heads // num_key_heads,
        ),
        out_type=(by_token, by_token, sums),
        scratch_types=[
            chunk_tiles,
            value_tiles,
            new_tile(CHUNK, CHUNK),
            new_tile(CHUNK, CHUNK),
            Sums(*[vector(CHUNK)] * len(Sums._fields)),
            plgpu.Barrier(num_arrivals=len(TokenInputs._fields)),
            plgpu.Barrier(num_arrivals=len(ValueInputs._fields), num_barriers=num_slots),
            plgpu.Barrier(num_arrivals=1, num_barriers=num_slots),
            plgpu.Barrier(num_arrivals=1),
        ],
        grid=(batch, num_heads, num_tokens // CHUNK),
        grid_names=("row", "head", "chunk"),
        num_threads=2,
        thread_name="warpgroup",
        compiler_params=compiler_params(),
    )
    return varying_as(values.delta, kernel(tokens, values))


def _body(
    token_memory: TokenInputs,
    value_memory: ValueInputs,
    dq_memory: Ref,
    dk_memory: Ref,
    sums_memory: Sums,
    chunk_tiles: TokenInputs,
    value_tiles: ValueInputs,
    d_scores_tile: Ref,
    d_products_tile: Ref,
    sums: Sums,
    tokens_arrived: Ref,
    values_arrived: Ref,
    keys_done: Ref,
    queries_done: Ref,
    *,
    num_value_tiles: int,
    num_slots: int,
    scale: float,
    heads_per_key: int,
) -> None:
    row, head, chunk = (lax.axis_index(name) for name in ("row", "head", "chunk"))
    tokens = pl.ds(chunk * CHUNK, CHUNK)
    q, k, tables = chunk_tiles
    log, beta, start = (tables.at[each] for each in range(3))
    last_slot = (num_value_tiles - 1) % num_slots

    def fetch_tokens() -> None:
        sources = TokenInputs(
            q=token_memory.q.at[row, tokens, head // heads_per_key],
            k=token_memory.k.at[row, tokens, head // heads_per_key],
            tables=token_memory.tables.at[row, head, chunk],
        )
        for source, target in zip(sources, chunk_tiles, strict=True):
            plgpu.copy_gmem_to_smem(source, target, tokens_arrived)

    def fetch_values(index: int) -> None:
        values = pl.ds(index * VALUE_TILE, VALUE_TILE)
        slot = index % num_slots
        sources = ValueInputs(
            d_o=value_memory.d_o.at[row, tokens, head, values],
            delta=value_memory.delta.at[row, tokens, head, values],
            dv=value_memory.dv.at[row, tokens, head, values],
            states=value_memory.states.at[row, head, chunk, values],
            d_states=value_memory.d_states.at[row, head, chunk, values],
        )
        for source, target in zip(sources, value_tiles, strict=True):
            plgpu.copy_gmem_to_smem(source, target.at[slot], values_arrived.at[slot])

    def write_sums(**terms: jax.Array) -> None:
        for name, term in terms.items():
            getattr(sums, name)[...] = term
        plgpu.commit_smem()
        for name in terms:
            plgpu.copy_smem_to_gmem(getattr(sums, name), getattr(sums_memory, name).at[row, head, tokens])

    @pl.when(lax.axis_index("warpgroup") == 0)
    def of_queries() -> None:
        fetch_tokens()
        for index in range(min(num_slots, num_value_tiles)):
            fetch_values(index)

        def over_values(d_scores: Ref, from_state: Ref) -> tuple[jax.Array | None, ...]:
            state_sums = None
            for index in range(num_value_tiles):
                slot = index % num_slots
                plgpu.barrier_wait(values_arrived.at[slot])
                d_o, delta, _, state, d_state = (each.at[slot] for each in value_tiles)
                multiply((d_scores, d_o, transposed(delta)), (from_state, d_o, state))
                along_state = (load(state) * load(d_state)).sum(axis=1)
                state_sums = along_state if state_sums is None else state_sums + along_state
                plgpu.barrier_wait(keys_done.at[slot])
                if index + num_slots < num_value_tiles:
                    plgpu.commit_smem()  # all threads have read the slot
                    fetch_values(index + num_slots)
            return d_scores[...], from_state[...], state_sums

        d_scores, from_state, state_sums = pl.run_scoped(
            over_values, accumulator(CHUNK, CHUNK), accumulator(CHUNK, q.shape[1])
        )
        plgpu.barrier_wait(tokens_arrived)
        d_scores *= scale * along_columns(beta, CHUNK) * decay_between(log, start)
        store(d_scores_tile, d_scores)
        from_state *= scale * over_columns(decay_before(log, start), q.shape[1])
        # A token's decay to itself is 1, whatever it is: beside that, decay of e^-60 would be lost.
        i, j = row_and_column()
        d_decay = jnp.where(i > j, d_scores * product((q, transposed(k))), 0.0)
        write_sums(
            query_rows=d_decay.sum(axis=1) + (from_state * load(q)).sum(axis=1),
            query_columns=d_decay.sum(axis=0),
            state=state_sums,
        )
        plgpu.barrier_arrive(queries_done)
        out = value_tiles.states.at[last_slot]  # [64 values, K] is as large as [C, K]
        store(out, from_state + product((d_scores_tile, k)))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, dq_memory.at[row, tokens, head])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(lax.axis_index("warpgroup") == 1)
    def of_keys() -> None:
        def over_values(errors: Ref, from_state: Ref, from_d_state: Ref) -> tuple[jax.Array, ...]:
            for index in range(num_value_tiles):
                slot = index % num_slots
                plgpu.barrier_wait(values_arrived.at[slot])
                _, delta, dv, state, d_state = (each.at[slot] for each in value_tiles)
                multiply(
                    (errors, dv, transposed(delta)), (from_state, dv, state), (from_d_state, delta, d_state)
                )
                plgpu.barrier_arrive(keys_done.at[slot])
            return errors[...], from_state[...], from_d_state[...]

        errors, from_state, from_d_state = pl.run_scoped(
            over_values, accumulator(CHUNK, CHUNK), *[accumulator(CHUNK, k.shape[1])] * 2
        )
        plgpu.barrier_wait(tokens_arrived)
        d_beta = errors * decay_between(log, start, strict=True)
        store(d_products_tile, -d_beta * along_columns(beta, CHUNK))
        d_beta *= product((k, transposed(k)))
        from_state *= -over_columns(decay_before(log, start), k.shape[1])
        from_d_state *= over_columns(decay_after(log, start), k.shape[1]) * along_rows(beta, k.shape[1])
        keys = load(k)
        write_sums(
            key_rows=(from_state * keys).sum(axis=1) - (d_beta * along_columns(beta, CHUNK)).sum(axis=1),
            after=(from_d_state * keys).sum(axis=1),
        )
        dk = from_state + from_d_state
        # Also because sums over columns go through memory that Pallas has once for both warpgroups.
        plgpu.barrier_wait(queries_done)
        write_sums(beta=d_beta.sum(axis=0))
        dk += product((transposed(d_scores_tile), q), (d_products_tile, k), (transposed(d_products_tile), k))
        out = value_tiles.d_states.at[last_slot]  # as large
        store(out, dk)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, dk_memory.at[row, tokens, head])
        plgpu.wait_smem_to_gmem(0)
