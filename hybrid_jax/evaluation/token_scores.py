"""Log-probabilities of tokens, each given all before it in its text, whatever the texts' lengths.

Texts of up to a window are packed into rows. Longer ones are read a window at a time, and the cache goes on from
window to window: a text's tokens get what one long pass over it alone would give them. Nothing is read twice, and
texts of similar lengths share one compiled program.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Integer

from hybrid_jax.data.best_fit import best_fit
from hybrid_jax.errors import InputError
from hybrid_jax.models import Cache, CausalLM
from hybrid_jax.models.cache import init_cache

# Logits that exist at a time: 64 MiB in float32.
_MAX_LOGITS = 2**24
_NOT_SCORED = -1
# Rows are given up for fewer, longer ones where they would read this much more padding than text.
_MAX_READ = 1.25

empty_cache = jax.jit(init_cache, static_argnums=(0, 1, 2, 3))


class Stretch(NamedTuple):
    """Tokens read at one go.

    Attributes:
        ids: at least two.
        num_context: how many of them are given and not scored, from the first; at least one.
    """

    ids: Integer[np.ndarray, " n"]
    num_context: int


class TokenScores(NamedTuple):
    """What the model thought of the scored tokens of a stretch.

    Attributes:
        log_probs: natural logarithms.
        greedy: whether the token was the likeliest.
    """

    log_probs: Float32[np.ndarray, " n"]
    greedy: Bool[np.ndarray, " n"]


class Scores(NamedTuple):
    """The same of a batch's labels; 0 and False where a label is not scored."""

    log_probs: Float32[Array | np.ndarray, "B T"]
    greedy: Bool[Array | np.ndarray, "B T"]


class Labelled(NamedTuple):
    """Tokens to read and what to look for after each, [B, T].

    Attributes:
        ids: 0 where there is no token.
        segment_ids: text of each token, 0 where there is none.
        labels: the token after it, -1 where that is not scored.
    """

    ids: Int32[Array | np.ndarray, "B T"]
    segment_ids: Int32[Array | np.ndarray, "B T"]
    labels: Int32[Array | np.ndarray, "B T"]

    @classmethod
    def nothing(cls, num_rows: int, length: int) -> "Labelled":
        shape = (num_rows, length)
        return cls(
            np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, _NOT_SCORED, np.int32)
        )

    def put(self, row: int, start: int, segment_id: int, stretch: Stretch) -> None:
        """Write a stretch's tokens but the last, which is only a label, from slot ``start`` of a row."""
        stop = start + len(stretch.ids) - 1
        self.ids[row, start:stop] = stretch.ids[:-1]
        self.segment_ids[row, start:stop] = segment_id
        self.labels[row, start + stretch.num_context - 1 : stop] = stretch.ids[stretch.num_context :]


def check_ids(ids: Sequence[int] | Integer[np.ndarray, " n"], vocab_size: int, where: str) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        InputError: an id is outside the vocabulary.
    """
    low, high = int(np.min(ids)), int(np.max(ids))
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"{where}: found token id {low if low < 0 else high}, expected 0 <= id < vocab_size {vocab_size}: made "
            "with the tokenizer of another model?"
        )


def score_stretches(
    model: CausalLM, stretches: Sequence[Stretch], *, window: int = 512, batch_size: int = 8
) -> list[TokenScores]:
    """Score every stretch on its own; results in the order given.

    Compiles one program for stretches of up to ``window`` tokens, one for twice as many, and so on; a few more where
    there is too little text for ``batch_size`` rows.

    Args:
        model: what is asked; its ids are not checked here (``check_ids``).
        stretches: of any lengths.
        window: tokens of a row read at once.
        batch_size: most rows read at once.
    """
    classes: dict[int, list[int]] = defaultdict(list)
    for number, stretch in enumerate(stretches):
        classes[power_of_two(len(stretch.ids) - 1, at_least=window)].append(number)
    scores: dict[int, TokenScores] = {}
    for longest, numbers in classes.items():
        members = [stretches[number] for number in numbers]
        if longest == window:
            found = _score_packed(model, members, window, batch_size)
        else:
            found = _score_carried(model, members, longest, window, batch_size)
        scores.update(zip(numbers, found, strict=True))
    return [scores[number] for number in range(len(stretches))]


def power_of_two(size: int, at_least: int) -> int:
    """``at_least`` doubled until it is no less than ``size``."""
    return at_least << max(0, (-(-size // at_least) - 1).bit_length())


@partial(jax.jit, donate_argnames="cache")
def read_on(model: CausalLM, cache: Cache, tokens: Labelled) -> tuple[Cache, Scores]:
    """Read tokens after those of ``cache``, whose buffers are reused for the cache that is returned."""
    ids, segment_ids, labels = map(jnp.asarray, tokens)
    hidden, cache = model.hidden_states_and_cache(ids, segment_ids, None, cache)
    return cache, score_labels(model, hidden, labels)


@jax.jit
def _read(model: CausalLM, tokens: Labelled) -> Scores:
    ids, segment_ids, labels = map(jnp.asarray, tokens)
    return score_labels(model, model.hidden_states(ids, segment_ids), labels)


def score_labels(model: CausalLM, hidden: Float[Array, "B T D"], labels: Int32[Array, "B T"]) -> Scores:
    """Each label's scores, given the activations of the token before it.

    Logits are made for a few tokens at a time, and for none of a few that are all not scored.
    """
    num_tokens = labels.size
    chunk = max(1, min(num_tokens, _MAX_LOGITS // model.config.vocab_size))
    padding = -num_tokens % chunk
    hidden = jnp.pad(hidden.reshape(num_tokens, -1), ((0, padding), (0, 0)))
    flat = jnp.pad(labels.reshape(-1), (0, padding), constant_values=_NOT_SCORED)

    def score(hidden: Array, labels: Array) -> tuple[Array, Array]:
        logits = model.logits(hidden)
        found = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        # The largest logit is at hand anyway; XLA's argmax of a row takes several times as long on a CPU.
        largest = jnp.max(logits, axis=1)
        log_total = largest + jnp.log(jnp.sum(jnp.exp(logits - largest[:, None]), axis=1))
        is_scored = labels != _NOT_SCORED
        return jnp.where(is_scored, found - log_total, 0.0), is_scored & (found == largest)

    def nothing(hidden: Array, labels: Array) -> tuple[Array, Array]:
        return jnp.zeros(labels.shape), jnp.zeros(labels.shape, bool)

    def score_chunk(each: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.lax.cond(jnp.any(each[1] != _NOT_SCORED), score, nothing, *each)

    split = hidden.reshape(-1, chunk, hidden.shape[1]), flat.reshape(-1, chunk)
    return Scores(
        *(x.reshape(-1)[:num_tokens].reshape(labels.shape) for x in jax.lax.map(score_chunk, split))
    )


def _score_packed(
    model: CausalLM, stretches: Sequence[Stretch], window: int, batch_size: int
) -> list[TokenScores]:
    """Score stretches of up to ``window`` tokens, each batch of rows by itself."""
    lengths = np.array([len(stretch.ids) - 1 for stretch in stretches])
    longest_first = np.argsort(-lengths, kind="stable")
    rows: dict[int, list[int]] = defaultdict(list)
    for number, row in zip(longest_first.tolist(), best_fit(lengths[longest_first], window), strict=True):
        rows[int(row)].append(number)
    tokens, places = _write_rows(stretches, list(rows.values()), window)
    parts = []
    for start in range(0, len(tokens.ids), batch_size):
        batch = Labelled(*(x[start : start + batch_size] for x in tokens))
        missing = power_of_two(len(batch.ids), at_least=1) - len(batch.ids)
        if missing:
            nothing = Labelled.nothing(missing, window)
            batch = Labelled(*map(np.concatenate, zip(batch, nothing, strict=True)))
        parts.append(_read(model, batch))
    return _at_places(jax.device_get(parts), 0, stretches, places)


def _score_carried(
    model: CausalLM, stretches: Sequence[Stretch], longest: int, window: int, batch_size: int
) -> list[TokenScores]:
    """Score stretches of up to ``longest`` tokens, one behind the other in rows read a window at a time."""
    rows = _lay_out([len(stretch.ids) - 1 for stretch in stretches], batch_size)
    tokens, places = _write_rows(stretches, rows, window)
    # A window is written before it is looked back from: with so many slots, nothing still needed is overwritten.
    cache = empty_cache(model.config, len(rows), longest + window, window)
    parts = []
    for start in range(0, tokens.ids.shape[1], window):
        cache, scores = read_on(model, cache, Labelled(*(x[:, start : start + window] for x in tokens)))
        parts.append(scores)
    return _at_places(jax.device_get(parts), 1, stretches, places)


def _lay_out(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Numbers of the texts of each row: longest first, each into the shortest row.

    As many rows as read little more than the text: ``batch_size``, a half, a quarter, and so on.
    """
    num_rows = batch_size
    while True:
        rows: list[list[int]] = [[] for _ in range(num_rows)]
        fill = [(0, row) for row in range(num_rows)]
        for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
            length, row = fill[0]
            rows[row].append(number)
            heapq.heapreplace(fill, (length + lengths[number], row))
        if num_rows == 1 or num_rows * max(fill)[0] <= _MAX_READ * sum(lengths):
            return rows
        num_rows //= 2


def _write_rows(
    stretches: Sequence[Stretch], rows: Sequence[Sequence[int]], window: int
) -> tuple[Labelled, Int[np.ndarray, "n 2"]]:
    """Rows of a whole number of windows with the stretches of the given numbers, and the row and slot of each."""
    longest = max(sum(len(stretches[number].ids) - 1 for number in row) for row in rows)
    tokens = Labelled.nothing(len(rows), -(-longest // window) * window)
    places = np.zeros((len(stretches), 2), np.int64)
    for row, numbers in enumerate(rows):
        start = 0
        for segment_id, number in enumerate(numbers, start=1):
            tokens.put(row, start, segment_id, stretches[number])
            places[number] = row, start
            start += len(stretches[number].ids) - 1
    return tokens, places


def _at_places(
    parts: Iterable[Scores], axis: int, stretches: Sequence[Stretch], places: Int[np.ndarray, "n 2"]
) -> list[TokenScores]:
    """The scores of each stretch, from those of rows that lie in ``parts`` along ``axis``."""
    log_probs, greedy = (np.concatenate(part, axis=axis) for part in zip(*parts, strict=True))
    found = []
    for stretch, (row, start) in zip(stretches, places.tolist(), strict=True):
        scored = slice(start + stretch.num_context - 1, start + len(stretch.ids) - 1)
        found.append(TokenScores(log_probs[row, scored], greedy[row, scored]))
    return found
