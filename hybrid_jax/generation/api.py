"""Generation as users call it: lists of token ids in, new token ids out, at once or as they are made."""

from collections.abc import Iterator, Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Array, Bool, Integer

from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError
from hybrid_jax.generation import decoding
from hybrid_jax.generation.decoding import MAX_BURST, NO_TOKEN, Settings
from hybrid_jax.generation.sampling import make_sampling
from hybrid_jax.models import CausalLM

# Prompts are read this many tokens at a time; shorter ones in a chunk of the next power of two.
_MAX_CHUNK = 512
_MIN_CHUNK = 16
_MIN_CAPACITY = 64

Prompts = Sequence[Sequence[SupportsIndex] | Integer[np.ndarray, " T"]]


def generate(
    model: CausalLM,
    prompts: Prompts,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """Continue each prompt.

    Rows do not see each other: with temperature 0 a prompt gives the same tokens alone and among others, and
    otherwise the same for the same seed and place in ``prompts``, whatever stands after it. What all prompts begin with
    is read once, in whole chunks of 512 tokens.

    The first call for a number of prompts and a cache size compiles (see ``cache_capacity``); other lengths within
    them, other temperatures, ``top_k``, ``top_p``, seeds and ``max_new_tokens`` reuse the program; prompts that begin
    alike have one of their own. While tokens are made the layers' weights are held twice.

    Args:
        model: the model.
        prompts: token ids, in lists of any lengths.
        max_new_tokens: most tokens to make for each prompt.
        temperature: 0 takes the likeliest token; above, logits are divided by it and a token is drawn.
        top_k: draw from the k likeliest tokens; None from all.
        top_p: draw from the fewest likeliest tokens with at least this probability; applied after temperature and
            top_k, as in transformers.
        eos_token_id: one or more ids that end a row; None takes the config's, -1 never stops.
        seed: for drawing.

    Returns:
        For each prompt its new tokens, with the id that ended it, if one did, as the last.

    Raises:
        InputError: no prompts, an empty prompt, an id outside the vocabulary, a setting out of its range, or a
            prompt that with its new tokens is longer than a model with rotary positions allows.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    bursts = stream(
        model, prompts, max_new_tokens, temperature, top_k, top_p, eos_token_id, seed, burst_size=MAX_BURST
    )
    for burst in bursts:
        for row, new in zip(rows, burst, strict=True):
            row.extend(new)
    return rows


def stream(
    model: CausalLM,
    prompts: Prompts,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    seed: int = 0,
    burst_size: int = 8,
) -> Iterator[list[list[int]]]:
    """The tokens of ``generate``, as they are made.

    Args:
        model: see ``generate``, as for all not named here.
        prompts: see ``generate``.
        max_new_tokens: see ``generate``.
        temperature: see ``generate``.
        top_k: see ``generate``.
        top_p: see ``generate``.
        eos_token_id: see ``generate``.
        seed: see ``generate``.
        burst_size: tokens of each row made between two looks from the host, 1 to 256.

    Returns:
        An iterator. Each item has, for each prompt, the tokens made since the item before: one for the first item, then
        up to ``burst_size``, none for a row that is done.

    Raises:
        InputError: as ``generate``, at once and not at the first item.
    """
    if not 1 <= burst_size <= MAX_BURST:
        raise InputError(f"burst_size: found {burst_size}, expected 1 to {MAX_BURST}")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens: found {max_new_tokens}, expected at least 1")
    config = model.config
    settings = Settings(sampling=make_sampling(temperature, top_k, top_p), stops=_stops(eos_token_id, config))
    checked = _check_prompts(prompts, max_new_tokens, config)
    return _bursts(model, checked, max_new_tokens, settings, seed, burst_size)


def cache_capacity(num_tokens: int) -> int:
    """Slots kept for rows of ``num_tokens``: the next of 64, 80, 96, 112, 128, 160, ... (quarters of powers of two).

    A program is compiled for a capacity, so texts of many lengths share few programs, and at most a quarter of the
    cache stands empty.
    """
    step = max(_MIN_CAPACITY, 1 << (num_tokens - 1).bit_length()) // 8
    return max(_MIN_CAPACITY, -(-num_tokens // step) * step)


def _bursts(
    model: CausalLM,
    prompts: list[np.ndarray],
    max_new_tokens: int,
    settings: Settings,
    seed: int,
    burst_size: int,
) -> Iterator[list[list[int]]]:
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = int(lengths.max())
    chunk_size = min(_MAX_CHUNK, max(_MIN_CHUNK, 1 << (longest - 1).bit_length()))
    # The last token made is never read.
    capacity = cache_capacity(longest + max_new_tokens - 1)
    input_ids = np.zeros((len(prompts), -(-capacity // chunk_size) * chunk_size), np.int32)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt)] = prompt

    def read_prompts() -> decoding.Rows:
        sizes = {"capacity": capacity, "chunk_size": chunk_size}
        beginning = None
        if num_common := _num_common_chunks(prompts, chunk_size):
            beginning = decoding.read_beginning(model, input_ids[:1], np.int32(num_common), **sizes)
        return decoding.prefill(
            model, input_ids, lengths, np.uint32(seed % 2**32), settings, beginning, **sizes
        )

    rows = read_prompts()  # and keep nothing else of it while tokens are made
    yield _token_lists(rows.token[:, None])
    remaining = max_new_tokens - 1
    if remaining:
        model, rows = decoding.unstack(model, rows)
    while remaining and not np.all(rows.done):
        num_steps = min(burst_size, remaining)
        rows, made = decoding.decode(model, rows, settings, np.int32(num_steps))
        remaining -= num_steps
        yield _token_lists(made)


def _num_common_chunks(prompts: list[np.ndarray], chunk_size: int) -> int:
    """Chunks that all of several prompts begin with, and go on after."""
    if len(prompts) == 1:
        return 0
    shortest = min(map(len, prompts)) - 1
    same = np.all([prompt[:shortest] == prompts[0][:shortest] for prompt in prompts], axis=0)
    return int(np.argmin(np.append(same, False))) // chunk_size


def _token_lists(made: Array) -> list[list[int]]:
    return [[int(token) for token in row if token != NO_TOKEN] for row in np.asarray(made)]


def _stops(eos_token_id: int | Sequence[int] | None, config: ModelConfig) -> Bool[np.ndarray, " V"]:
    if eos_token_id is None:
        ids: Sequence[int] = config.eos_token_ids
    else:
        ids = (eos_token_id,) if isinstance(eos_token_id, SupportsIndex) else eos_token_id
    stops = np.zeros(config.vocab_size, bool)
    for token in ids:
        if not -1 <= token < config.vocab_size:
            raise InputError(
                f"eos_token_id: found {token}, expected 0 <= id < vocab_size {config.vocab_size}, or -1 to never stop"
            )
        if token >= 0:
            stops[token] = True
    return stops


def _check_prompts(prompts: Prompts, max_new_tokens: int, config: ModelConfig) -> list[np.ndarray]:
    if len(prompts) == 0:
        raise InputError("prompts: found none, expected at least one list of token ids")
    checked = []
    for number, prompt in enumerate(prompts):
        ids = np.asarray(prompt)
        if ids.size == 0:
            raise InputError(f"prompts[{number}]: found no tokens, expected at least one")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InputError(f"prompts[{number}]: found {prompt!r}, expected a list of token ids")
        wrong = ids[(ids < 0) | (ids >= config.vocab_size)]
        if wrong.size:
            raise InputError(
                f"prompts[{number}]: found token id {wrong[0]}, expected 0 <= id < vocab_size {config.vocab_size}"
            )
        total = ids.size + max_new_tokens
        if config.is_rotary and total > config.max_position_embeddings:
            raise InputError(
                f"prompts[{number}]: {ids.size} tokens and {max_new_tokens} new ones make {total}, but the model's "
                f"rotary positions end at max_position_embeddings {config.max_position_embeddings}"
            )
        checked.append(ids)
    return checked
