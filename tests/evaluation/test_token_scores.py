import numpy as np
import pytest

from hybrid_jax.evaluation import continuations
from hybrid_jax.evaluation.continuations import score_continuations
from hybrid_jax.evaluation.token_scores import Stretch, _lay_out, power_of_two, score_stretches
from tests.evaluation.models import hybrid_model, logits_of, olmo3_model, one_pass, random_ids
from tests.tolerances import FLOAT32_REORDERED


@pytest.fixture(
    scope="module",
    params=[hybrid_model, pytest.param(olmo3_model, marks=pytest.mark.slow)],
    ids=["hybrid", "olmo3"],
)
def model(request):
    return request.param()


def assert_as_in_one_pass(model, stretches, scores):
    for (ids, num_context), score in zip(stretches, scores, strict=True):
        log_probs, greedy = one_pass(model, ids)
        np.testing.assert_allclose(score.log_probs, log_probs[num_context - 1 :], rtol=FLOAT32_REORDERED)
        np.testing.assert_array_equal(score.greedy, greedy[num_context - 1 :])


def test_stretches_score_as_in_one_long_pass_however_they_are_read(model):
    # Packed, and of three windows in two rows, so that one starts in the middle of a window.
    contexts = (1, 4, 17, 1, 33, 1)
    stretches = [
        Stretch(ids, context)
        for ids, context in zip(random_ids(2, 5, 17 + 1, 34, 40, 65), contexts, strict=True)
    ]
    scores = score_stretches(model, stretches, window=17, batch_size=2)
    assert_as_in_one_pass(model, stretches, scores)


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """How many tokens were read, each time, by what reads contexts and their continuations."""
    counts: list[int] = []

    def count(number, original):
        def wrapped(*arguments):
            counts.append(np.count_nonzero(arguments[number].segment_ids))
            return original(*arguments)

        return wrapped

    monkeypatch.setattr(continuations, "read_on", count(2, continuations.read_on))
    monkeypatch.setattr(continuations, "_read_forks", count(3, continuations._read_forks))
    return counts


def continued(contexts, tails):
    return [
        Stretch(np.concatenate([context, tail]), len(context))
        for context, tail in zip(contexts, tails, strict=True)
    ]


def test_what_contexts_begin_with_is_read_once(model, read):
    """The examples before questions, here of two subjects; the third's are met once only."""
    first, second, third = random_ids(260, 129, 140)
    ends = random_ids(5, 140, 1, 7, 3)
    barely = np.concatenate([third, first])  # most of it is its own
    contexts = [
        np.concatenate([first, ends[0]]),
        np.concatenate([first, ends[1]]),
        first[:257],
        np.concatenate([second, ends[2]]),
        np.concatenate([second, ends[3]]),
        np.concatenate([second, ends[3]]),
        third,
        barely,
    ]
    tails = random_ids(2, 1, 4, 3, 2, 1, 6, 3)
    stretches = continued(contexts, tails)
    scores = score_continuations(model, stretches, window=17, batch_size=2)
    assert_as_in_one_pass(model, stretches, scores)
    # Whole windows of 128 are shared; a context's last token is read with what continues it.
    of_first = 256 + sum(len(context) - 1 - 256 for context in contexts[:3])
    of_second = 128 + sum(len(context) - 1 - 128 for context in contexts[3:5])
    assert sum(read) == of_first + of_second + sum(map(len, tails[:6]))


def test_continuations_of_shared_contexts_score_as_each_alone_and_the_context_is_read_once(model, read):
    # Of more and of less than the 128 tokens read at once; too short to be worth it; with one continuation only.
    long, middle, short, own = random_ids(140, 30, 4, 9)
    likeliest = np.argmax(logits_of(model, middle)[-1:], axis=1)
    tails = [*random_ids(1, 3, 7), likeliest, *random_ids(2, 1, 4, 5)]
    contexts = [long, middle, long, middle, middle, short, short, own]
    stretches = continued(contexts, tails)
    scores = score_continuations(model, stretches, window=17, batch_size=2)
    assert_as_in_one_pass(model, stretches, scores)
    assert scores[3].greedy.tolist() == [True]
    assert sum(read) == len(long) - 1 + len(middle) - 1 + sum(map(len, tails[:5]))


def test_lengths_share_programs(traces):
    def score(context_lengths, tail_lengths):
        contexts = [context for context in random_ids(*context_lengths) for _ in range(2)]
        stretches = continued(contexts, random_ids(*tail_lengths))
        # Three rows are met here alone, so that nothing is compiled before.
        score_continuations(hybrid_model(), stretches, window=64, batch_size=3)

    score((90, 70, 120), (1, 2, 3, 8, 7, 1))
    assert traces == [(3, 128), (3, 8)], "one trace for contexts, one for their continuations"
    score((80, 66, 119, 100, 77, 71), (4, 6, 1, 2, 3, 1, 5, 5, 2, 7, 8, 1))
    assert len(traces) == 2
    score((90, 70, 65), (1, 2, 3, 9, 7, 30))
    assert traces[2:] == [(3, 32)], "longer continuations take another"


@pytest.mark.parametrize(
    ("lengths", "num_rows"),
    [([10], 1), ([10] * 8, 4), ([10] * 9, 2), ([40, 9, 9, 9, 9], 2), ([10, 10, 1], 2)],
)
def test_rows_hold_every_text_and_little_else(lengths, num_rows):
    rows = _lay_out(lengths, 4)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert len(rows) == num_rows
    assert len(rows) * max(sum(lengths[i] for i in row) for row in rows) <= max(1.25 * sum(lengths), 1)


def test_sizes_are_rounded_up_to_powers_of_two():
    assert [power_of_two(size, at_least=8) for size in (1, 8, 9, 16, 17, 65)] == [8, 8, 16, 16, 32, 128]
