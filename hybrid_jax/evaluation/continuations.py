"""Log-probabilities of continuations of contexts; a context that several share is read once.

The four answers to a question, for example: the question is read, and its cache copied to a row for each answer.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

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

# A shared context of fewer tokens is read again for each continuation: packed together they cost less.
_FEWEST_SHARED = 16
_CONTEXT_WINDOW = 128
# Continuations are padded to the first of 8, 32, 128, ... tokens that holds them: few programs to compile.
_SHORTEST, _GROWTH = 8, 4


def score_continuations(
    model: CausalLM, stretches: Sequence[Stretch], *, window: int = 512, batch_size: int = 8
) -> list[TokenScores]:
    """What ``score_stretches`` gives, with equal contexts (``ids[:num_context]``) read once."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, stretch in enumerate(stretches):
        groups[stretch.ids[: stretch.num_context].astype(np.int32).tobytes()].append(number)
    alone, shared = [], []
    for numbers in groups.values():
        if len(numbers) > 1 and stretches[numbers[0]].num_context >= _FEWEST_SHARED:
            shared.append(numbers)
        else:
            alone.extend(numbers)
    members = [stretches[number] for number in alone]
    found = score_stretches(model, members, window=window, batch_size=batch_size)
    scores = dict(zip(alone, found, strict=True))
    shared.sort(key=lambda numbers: stretches[numbers[0]].num_context, reverse=True)
    for first in range(0, len(shared), batch_size):
        batch = shared[first : first + batch_size]
        scores.update(_score_shared(model, stretches, batch, window, batch_size))
    return [scores[number] for number in range(len(stretches))]


def _score_shared(
    model: CausalLM,
    stretches: Sequence[Stretch],
    groups: Sequence[Sequence[int]],
    window: int,
    batch_size: int,
) -> Iterator[tuple[int, TokenScores]]:
    """Number and scores of the stretches of groups that share a context, at most ``batch_size`` groups."""
    num_rows = min(batch_size, power_of_two(len(groups), at_least=1))
    row_of = {number: row for row, numbers in enumerate(groups) for number in numbers}
    # The context's last token is read with the continuation, whose first token it foretells.
    tails = {
        number: Stretch(stretches[number].ids[stretches[number].num_context - 1 :], 1) for number in row_of
    }
    longest_first = sorted(row_of, key=lambda number: len(tails[number].ids), reverse=True)
    longest_tail = _padded_length(tails[longest_first[0]])

    cache = _read_contexts(
        model, [stretches[numbers[0]] for numbers in groups], num_rows, longest_tail, window
    )
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
    model: CausalLM, stretches: Sequence[Stretch], num_rows: int, longest_tail: int, window: int
) -> Cache:
    """The cache after each stretch's context but its last token, with room for ``longest_tail`` tokens more."""
    longest = stretches[0].num_context - 1
    tokens = Labelled.nothing(num_rows, -(-longest // _CONTEXT_WINDOW) * _CONTEXT_WINDOW)
    for row, stretch in enumerate(stretches):
        context = stretch.ids[: stretch.num_context]
        tokens.put(row, 0, 1, Stretch(context, len(context)))
    capacity = power_of_two(longest + longest_tail, at_least=window)
    cache = empty_cache(model.config, num_rows, capacity, max(_CONTEXT_WINDOW, longest_tail))
    for start in range(0, tokens.ids.shape[1], _CONTEXT_WINDOW):
        part = Labelled(*(x[:, start : start + _CONTEXT_WINDOW] for x in tokens))
        cache, _ = read_on(model, cache, part)
    return cache


@jax.jit
def _read_forks(model: CausalLM, cache: Cache, rows: Int[Array, " B"], tokens: Labelled) -> Scores:
    """Read each row of ``tokens`` after a copy of row ``rows`` of the cache."""
    # In a layer's cache the dimension of repeats comes first.
    layers = jax.tree.map(lambda leaf: leaf[:, rows], cache.layers)
    row = {
        name: getattr(cache, name)[rows] for name in ("length", "document", "segment_id", "document_start")
    }
    forks = replace(cache, layers=layers, **row)
    ids, segment_ids, labels = map(jnp.asarray, tokens)
    hidden, _ = model.hidden_states_and_cache(ids, segment_ids, None, forks)
    return score_labels(model, hidden, labels)


def _padded_length(tail: Stretch) -> int:
    length = _SHORTEST
    while length < len(tail.ids) - 1:
        length *= _GROWTH
    return length
