"""Log-probabilities of continuations of contexts; what several contexts share is read once.

The four answers to a question, for example: the question is read, and its cache copied to a row for each answer. So are
the examples before it, and their cache copied to a row for each question.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from hybrid_jax.evaluation.token_scores import (
    Labelled,
    Scores,
    Stretch,
    TokenScores,
    empty_cache,
    power_of_two,
    read_on,
    score_labels,
    score_stretches,
)
from hybrid_jax.models import Cache, CausalLM
from hybrid_jax.models.cache import fork_rows

# A shared context of fewer tokens is read again for each continuation: packed together they cost less.
_FEWEST_SHARED = 16
_CONTEXT_WINDOW = 128
# Continuations are padded to the first of 8, 32, 128, ... tokens that holds them: few programs to compile.
_SHORTEST, _GROWTH = 8, 4


class _Family(NamedTuple):
    """Groups of stretches, each of one context, whose contexts begin alike.

    Attributes:
        groups: numbers of the stretches.
        num_common: tokens that all contexts begin with, whole windows; 0 is a family of strangers.
    """

    groups: list[list[int]]
    num_common: int


class _Trunk(NamedTuple):
    """What all contexts of a family begin with.

    Attributes:
        num_tokens: of it, whole windows.
        cache: of one row that has read it.
    """

    num_tokens: int
    cache: Cache


def score_continuations(
    model: CausalLM, stretches: Sequence[Stretch], *, window: int = 512, batch_size: int = 8
) -> list[TokenScores]:
    """What ``score_stretches`` gives, with equal contexts (``ids[:num_context]``) read once.

    What different contexts begin with, as the examples before a question, is read once as well, in whole windows.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, stretch in enumerate(stretches):
        groups[_context(stretch).tobytes()].append(number)
    alone, families = _divide(stretches, groups.values())
    members = [stretches[number] for number in alone]
    found = score_stretches(model, members, window=window, batch_size=batch_size)
    scores = dict(zip(alone, found, strict=True))
    for family in families:
        scores.update(_score_family(model, stretches, family, window, batch_size))
    return [scores[number] for number in range(len(stretches))]


def _context(stretch: Stretch) -> Int[np.ndarray, " n"]:
    return stretch.ids[: stretch.num_context].astype(np.int32)


def _divide(stretches: Sequence[Stretch], groups: Iterable[list[int]]) -> tuple[list[int], list[_Family]]:
    """Numbers of stretches to score by themselves, and families."""
    alike: dict[bytes, list[list[int]]] = defaultdict(list)
    for numbers in groups:
        alike[_context(stretches[numbers[0]])[:_CONTEXT_WINDOW].tobytes()].append(numbers)
    alone: list[int] = []
    strangers: list[list[int]] = []
    families: list[_Family] = []
    for members in alike.values():
        num_common = _num_common([_context(stretches[numbers[0]]) for numbers in members])
        if len(members) > 1 and num_common:
            families.append(_Family(members, num_common))
            continue
        for numbers in members:
            if len(numbers) > 1 and stretches[numbers[0]].num_context >= _FEWEST_SHARED:
                strangers.append(numbers)
            else:
                alone.extend(numbers)
    return alone, [*families, _Family(strangers, 0)]


def _num_common(contexts: Sequence[Int[np.ndarray, " _"]]) -> int:
    """Tokens in whole windows that all begin with; 0 where most of a context is something else.

    Reading the rest window by window takes longer than reading it in packed rows.
    """
    # A context's last token is read with what continues it.
    shortest = min(map(len, contexts)) - 1
    heads = np.stack([context[:shortest] for context in contexts])
    differ = np.flatnonzero(np.any(heads != heads[0], axis=0))
    num_common = int(differ[0] if len(differ) else shortest) // _CONTEXT_WINDOW * _CONTEXT_WINDOW
    return num_common if 2 * num_common >= np.mean([len(context) for context in contexts]) else 0


def _score_family(
    model: CausalLM, stretches: Sequence[Stretch], family: _Family, window: int, batch_size: int
) -> Iterator[tuple[int, TokenScores]]:
    """Number and scores of a family's stretches."""
    longest_first = sorted(family.groups, key=lambda numbers: stretches[numbers[0]].num_context, reverse=True)
    trunk = None
    if family.num_common:
        size = _size_of_cache(stretches, longest_first, window)
        ids = _context(stretches[longest_first[0][0]])[: family.num_common + 1]
        tokens = Labelled.nothing(1, family.num_common)
        tokens.put(0, 0, 1, Stretch(ids, len(ids)))
        cache = _read_windows(model, empty_cache(model.config, 1, *size), tokens, 0)
        trunk = _Trunk(family.num_common, cache)
    for first in range(0, len(longest_first), batch_size):
        batch = longest_first[first : first + batch_size]
        if trunk is None:
            size = _size_of_cache(stretches, batch, window)
        yield from _score_batch(model, stretches, batch, size, trunk, batch_size)


def _size_of_cache(
    stretches: Sequence[Stretch], groups: Sequence[Sequence[int]], window: int
) -> tuple[int, int]:
    """Slots for a context and its continuation, and most tokens read at once."""
    longest = max(stretches[numbers[0]].num_context for numbers in groups) - 1
    tail = max(_padded_length(_tail(stretches[number])) for numbers in groups for number in numbers)
    return power_of_two(longest + tail, at_least=window), max(_CONTEXT_WINDOW, tail)


def _tail(stretch: Stretch) -> Stretch:
    """The continuation and the context's last token, with which it is read, as it foretells the first."""
    return Stretch(stretch.ids[stretch.num_context - 1 :], 1)


def _score_batch(
    model: CausalLM,
    stretches: Sequence[Stretch],
    groups: Sequence[Sequence[int]],
    size: tuple[int, int],
    trunk: _Trunk | None,
    batch_size: int,
) -> Iterator[tuple[int, TokenScores]]:
    """Number and scores of the stretches of at most ``batch_size`` groups, each of which shares a context."""
    num_rows = min(batch_size, power_of_two(len(groups), at_least=1))
    cache = _read_contexts(model, [stretches[numbers[0]] for numbers in groups], num_rows, size, trunk)
    row_of = {number: row for row, numbers in enumerate(groups) for number in numbers}
    tails = {number: _tail(stretches[number]) for number in row_of}
    longest_first = sorted(row_of, key=lambda number: len(tails[number].ids), reverse=True)
    parts: list[Scores] = []
    for first in range(0, len(longest_first), num_rows):
        members = longest_first[first : first + num_rows]
        tokens = Labelled.nothing(num_rows, _padded_length(tails[members[0]]))
        rows = np.zeros(num_rows, np.int32)
        for row, number in enumerate(members):
            tokens.put(row, 0, 1, tails[number])
            rows[row] = row_of[number]
        parts.append(_read_forks(model, cache, rows, tokens))
    for place, number in enumerate(longest_first):
        log_probs, greedy = parts[place // num_rows]
        scored = place % num_rows, slice(len(tails[number].ids) - 1)
        yield number, TokenScores(np.asarray(log_probs)[scored], np.asarray(greedy)[scored])


def _read_contexts(
    model: CausalLM,
    stretches: Sequence[Stretch],
    num_rows: int,
    size: tuple[int, int],
    trunk: _Trunk | None,
) -> Cache:
    """The cache after each stretch's context but its last token; the first context is the longest."""
    longest = stretches[0].num_context - 1
    tokens = Labelled.nothing(num_rows, -(-longest // _CONTEXT_WINDOW) * _CONTEXT_WINDOW)
    for row, stretch in enumerate(stretches):
        context = stretch.ids[: stretch.num_context]
        tokens.put(row, 0, 1, Stretch(context, len(context)))
    if trunk is None:
        return _read_windows(model, empty_cache(model.config, num_rows, *size), tokens, 0)
    cache = _fork(trunk.cache, np.zeros(num_rows, np.int32))
    return _read_windows(model, cache, tokens, trunk.num_tokens)


def _read_windows(model: CausalLM, cache: Cache, tokens: Labelled, begin: int) -> Cache:
    """The cache after the tokens from slot ``begin`` on."""
    for start in range(begin, tokens.ids.shape[1], _CONTEXT_WINDOW):
        part = Labelled(*(x[:, start : start + _CONTEXT_WINDOW] for x in tokens))
        cache, _ = read_on(model, cache, part)
    return cache


_fork = jax.jit(fork_rows)


@jax.jit
def _read_forks(model: CausalLM, cache: Cache, rows: Int[Array, " B"], tokens: Labelled) -> Scores:
    """Read each row of ``tokens`` after a copy of row ``rows`` of the cache."""
    forks = fork_rows(cache, rows)
    ids, segment_ids, labels = map(jnp.asarray, tokens)
    hidden, _ = model.hidden_states_and_cache(ids, segment_ids, None, forks)
    return score_labels(model, hidden, labels)


def _padded_length(tail: Stretch) -> int:
    length = _SHORTEST
    while length < len(tail.ids) - 1:
        length *= _GROWTH
    return length
