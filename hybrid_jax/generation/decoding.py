"""The compiled parts of generation: prefill in chunks, and bursts of the decode loop."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from hybrid_jax.generation.sampling import Sampling, row_keys, sample
from hybrid_jax.models import Cache, CausalLM
from hybrid_jax.models.cache import fork_rows, init_cache

# Most tokens made by one call of the decode loop; the size of what it returns.
MAX_BURST = 256
# Stands for "no token" in what a burst returns.
NO_TOKEN = -1


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of text being written.

    Attributes:
        cache: all tokens but the last.
        token: last token of each row.
        done: rows that have ended; they stay as they are.
        keys: one random key per row.
        step: tokens made so far.
    """

    cache: Cache
    token: Int[Array, " B"]
    done: Bool[Array, " B"]
    keys: Key[Array, " B"]
    step: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Settings:
    """How tokens are chosen, and which of the vocabulary's tokens end a row."""

    sampling: Sampling
    stops: Bool[Array | np.ndarray, " V"]


@partial(jax.jit, static_argnames=("capacity", "chunk_size"))
def read_beginning(
    model: CausalLM,
    input_ids: Int[Array, "1 S"],
    num_chunks: Integer[Array, ""],
    *,
    capacity: int,
    chunk_size: int,
) -> Cache:
    """Read the first ``num_chunks`` chunks of one prompt, for ``prefill`` to go on from with all that have them."""

    def read_chunk(number: Array, cache: Cache) -> Cache:
        ids = jax.lax.dynamic_slice_in_dim(input_ids, number * chunk_size, chunk_size, axis=1)
        return model.hidden_states_and_cache(ids, jnp.ones_like(ids), None, cache)[1]

    cache = init_cache(model.config, 1, capacity, max_tokens_per_call=chunk_size)
    return jax.lax.fori_loop(0, num_chunks, read_chunk, cache)


@partial(jax.jit, static_argnames=("capacity", "chunk_size"))
def prefill(
    model: CausalLM,
    input_ids: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    seed: Integer[Array, ""],
    settings: Settings,
    beginning: Cache | None = None,
    *,
    capacity: int,
    chunk_size: int,
) -> Rows:
    """Read the prompts ``chunk_size`` tokens at a time and make the first token of each row.

    Memory grows with the chunk, not with the square of the prompt, and one program serves all lengths.

    Args:
        model: the model.
        input_ids: prompts, padded on the right with anything; S a multiple of ``chunk_size``.
        lengths: tokens of each prompt, at least 1.
        seed: where the rows' random keys come from.
        settings: how to choose tokens.
        beginning: of one row that has read whole chunks which all prompts begin with, and go on after; None reads
            prompts from their first token on.
        capacity: most tokens a row's cache will hold.
        chunk_size: tokens of each row read at once.
    """
    batch = input_ids.shape[0]

    def read_chunk(number: Array, carry: tuple[Cache, Array]) -> tuple[Cache, Array]:
        cache, last = carry
        start = number * chunk_size
        ids = jax.lax.dynamic_slice_in_dim(input_ids, start, chunk_size, axis=1)
        segment_ids = (start + jnp.arange(chunk_size) < lengths[:, None]).astype(jnp.int32)
        hidden, cache = model.hidden_states_and_cache(ids, segment_ids, None, cache)
        offset = (lengths - 1 - start)[:, None]
        found = jnp.take_along_axis(hidden, jnp.clip(offset, 0, chunk_size - 1)[..., None], axis=1)[:, 0]
        return cache, jnp.where((offset >= 0) & (offset < chunk_size), found, last)

    if beginning is None:
        cache = init_cache(model.config, batch, capacity, max_tokens_per_call=chunk_size)
    else:
        cache = fork_rows(beginning, jnp.zeros((batch,), jnp.int32))
    last = jnp.zeros((batch, model.config.hidden_size), model.config.dtype)
    num_chunks = -(-jnp.max(lengths) // chunk_size)
    num_read = cache.length[0] // chunk_size
    cache, last = jax.lax.fori_loop(num_read, num_chunks, read_chunk, (cache, last))
    rows = Rows(
        cache=cache,
        token=jnp.zeros((batch,), jnp.int32),
        done=jnp.zeros((batch,), bool),
        keys=row_keys(seed, batch),
        step=jnp.int32(0),
    )
    return _choose(model, last, rows, settings)


def unstack(model: CausalLM, rows: Rows) -> tuple[CausalLM, Rows]:
    """``model.unstacked``: a copy of the layers' weights that is quicker to read token by token."""
    model, cache = model.unstacked(rows.cache)
    return model, replace(rows, cache=cache)


@partial(jax.jit, donate_argnames="rows")
def decode(
    model: CausalLM, rows: Rows, settings: Settings, num_steps: Int[Array, ""]
) -> tuple[Rows, Int[Array, "B burst"]]:
    """Make ``num_steps`` more tokens for each row, or fewer if all rows are done before.

    Args:
        model: the unstacked model.
        rows: what ``unstack`` or the last call returned; its buffers are reused.
        settings: how to choose tokens.
        num_steps: at most ``MAX_BURST``.

    Returns:
        The rows, and the tokens made: ``NO_TOKEN`` where a row was done and beyond ``num_steps``.
    """

    def unfinished(carry: tuple[Array, Rows, Array]) -> Bool[Array, ""]:
        number, rows, _ = carry
        return (number < num_steps) & ~jnp.all(rows.done)

    def make_token(carry: tuple[Array, Rows, Array]) -> tuple[Array, Rows, Array]:
        number, rows, made = carry
        # Segment 0 is padding: a row that is done leaves its cache alone.
        segment_ids = (~rows.done).astype(jnp.int32)[:, None]
        hidden, cache = model.hidden_states_and_cache(rows.token[:, None], segment_ids, None, rows.cache)
        after = _choose(model, hidden[:, 0], replace(rows, cache=cache), settings)
        tokens = jnp.where(rows.done, NO_TOKEN, after.token)
        return number + 1, after, jax.lax.dynamic_update_index_in_dim(made, tokens, number, axis=1)

    made = jnp.full((rows.token.shape[0], MAX_BURST), NO_TOKEN, jnp.int32)
    _, rows, made = jax.lax.while_loop(unfinished, make_token, (jnp.int32(0), rows, made))
    return rows, made


def _choose(model: CausalLM, hidden: Float[Array, "B D"], rows: Rows, settings: Settings) -> Rows:
    token = sample(model.logits(hidden), rows.keys, rows.step, settings.sampling)
    token = jnp.where(rows.done, rows.token, token)
    return replace(rows, token=token, done=rows.done | settings.stops[token], step=rows.step + 1)
