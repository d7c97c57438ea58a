"""What the scans over chunks read, and how a chunk of it comes into shared memory."""

from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl

from pallas_kernels.gated_delta_rule.mosaic.tables import Tables
from pallas_kernels.gated_delta_rule.mosaic.tiles import CHUNK, VALUE_TILE, Ref, tile, vector


class Inputs(NamedTuple):
    """Tokens of q, k and v (or what has v's shape), and the inverse and tables of each value head's chunks.

    Arrays; inside a kernel, the memory they lie in, or the tiles they arrive in.

    Attributes:
        q, k: [B, T, H, K] bfloat16, T a multiple of 64 and K one of 32.
        v: [B, T, N, V] bfloat16, V a multiple of 64.
        inverse: [B, N, T / 64, 2, 64, 64] bfloat16.
        tables: [B, N, T / 64, 3, 64] float32, see `Tables`.
    """

    q: Any
    k: Any
    v: Any
    inverse: Any
    tables: Any


# What `copies_of_chunk` returns: the inverse comes in two.
NUM_COPIES = len(Inputs._fields) + 1


class Place(NamedTuple):
    """What one block of a scan works on: a row, a value head with the key head it uses, and 64 of its values."""

    row: jax.Array
    head: jax.Array
    key_head: jax.Array
    values: Any


def num_chunk_slots(key_dim: int) -> int:
    """Chunks that a scan holds: one is computed while the next arrives, but long keys leave room for one only."""
    return 2 if key_dim <= 192 else 1


def input_tiles(key_dim: int) -> Inputs:
    """Shared memory for as many chunks."""
    num_slots = num_chunk_slots(key_dim)
    return Inputs(
        q=tile(num_slots, CHUNK, key_dim, key_dim=key_dim),
        k=tile(num_slots, CHUNK, key_dim, key_dim=key_dim),
        v=tile(num_slots, CHUNK, VALUE_TILE, key_dim=key_dim),
        inverse=tile(num_slots, 2, CHUNK, CHUNK, key_dim=key_dim),
        tables=vector(num_slots, len(Tables._fields), CHUNK),
    )


def copies_of_chunk(
    memory: Inputs, tiles: Inputs, place: Place, chunk: jax.Array | int, slot: jax.Array | int
) -> list[tuple[Ref, Ref]]:
    """From where to where the inputs of a chunk are copied."""
    row, head, key_head, values = place
    tokens = pl.ds(chunk * CHUNK, CHUNK)
    return [
        (memory.q.at[row, tokens, key_head], tiles.q.at[slot]),
        (memory.k.at[row, tokens, key_head], tiles.k.at[slot]),
        (memory.v.at[row, tokens, head, values], tiles.v.at[slot]),
        # One by one: a copy has five dimensions at most, of which swizzling takes two.
        *[(memory.inverse.at[row, head, chunk, part], tiles.inverse.at[slot, part]) for part in range(2)],
        (memory.tables.at[row, head, chunk], tiles.tables.at[slot]),
    ]


def chunk_in(tiles: Inputs, slot: jax.Array) -> tuple[Ref, ...]:
    """The tiles of one chunk: q, k, v, high and low part of the inverse, log decay, beta, start."""
    parts = [tiles.inverse.at[slot, part] for part in range(2)]
    tables = [tiles.tables.at[slot, table] for table in range(len(Tables._fields))]
    return *(each.at[slot] for each in tiles[:3]), *parts, *tables
