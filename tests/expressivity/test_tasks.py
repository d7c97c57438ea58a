"""Programs against Python itself: every generated program is run, and every assert in it holds."""

import re

import numpy as np
import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.expressivity.tasks import TASKS, make_task
from hybrid_jax.expressivity.vocabulary import PADDING, Vocabulary

GRANULARITIES = ("words", "statements")


def generate(name, granularity, length=16, num_asserts=None, num_rows=200, seed=0):
    """Task, vocabulary and encoded programs to learn from."""
    task = make_task(name, 2 * length)
    vocabulary = Vocabulary(task.pieces, granularity)
    rng = np.random.default_rng(seed)
    intervals = task.draw_intervals(rng, num_rows, length, num_asserts)
    num_tokens = int(vocabulary.count_tokens(task.longest(length, num_asserts))[0])
    return vocabulary, vocabulary.encode(task.generate(rng, length, intervals), num_tokens)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("num_asserts", [None, 4])
@pytest.mark.parametrize("name", TASKS)
def test_python_finds_every_answer_right(name, num_asserts, granularity):
    vocabulary, rows = generate(name, granularity, num_asserts=num_asserts)
    for ids, is_answer in zip(rows.ids, rows.is_answer, strict=True):
        text = vocabulary.decode(ids)
        exec(text, {})
        assert is_answer.sum() == text.count("assert")
        assert [vocabulary.tokens[each].strip() for each in ids[is_answer]] == re.findall(r"== (\d+)", text)


@pytest.mark.parametrize("name", TASKS)
def test_a_wrong_answer_fails_in_python(name):
    vocabulary, rows = generate(name, "words", num_rows=1)
    text = vocabulary.decode(rows.ids[0])
    at = text.rindex("== ") + len("== ")
    wrong = f"{text[:at]}{1 - min(int(text[at]), 1)}\n"
    if wrong.strip() == text.strip():
        wrong = f"{text[:at]}9\n"
    with pytest.raises(AssertionError):
        exec(wrong, {})


@pytest.mark.parametrize("name", TASKS)
def test_both_vocabularies_write_the_same_text(name):
    texts = []
    for granularity in GRANULARITIES:
        vocabulary, rows = generate(name, granularity)
        assert vocabulary.tokens[0] == PADDING
        texts.append([vocabulary.decode(ids) for ids in rows.ids])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", TASKS)
def test_programs_depend_on_the_seed_alone(name):
    first, again, other = (generate(name, "statements", seed=seed)[1].ids for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_lengths_and_places_are_as_asked():
    for name, asked in (
        ("state_tracking", r"a, b, c, d, e = range\(5\)"),
        ("state_based_recall", r"bits = \["),
    ):
        vocabulary, rows = generate(name, "words", num_asserts=4)
        for ids in rows.ids[:20]:
            lines = vocabulary.decode(ids).splitlines()
            assert re.match(asked, lines[0])
            swaps_before = [
                sum(" = " in each and "range" not in each and "bits" not in each for each in lines[:index])
                for index, line in enumerate(lines)
                if line.startswith("assert")
            ]
            header = name == "state_based_recall"
            assert swaps_before == [4 + header, 8 + header, 12 + header, 16 + header]


def test_a_fifth_of_programs_asks_only_at_the_end_and_the_rest_evenly_over_powers_of_two():
    task = make_task("state_based_recall", 16)
    drawn = task.draw_intervals(np.random.default_rng(0), 20_000, 16, None)
    intervals, counts = np.unique(drawn, return_counts=True)
    assert intervals.tolist() == [0, 1, 2, 4, 8, 16]
    np.testing.assert_allclose(counts / counts.sum(), [0.2] + [0.16] * 5, atol=0.015)


def test_swaps_questions_and_bits_are_uniform():
    vocabulary, rows = generate("state_tracking", "statements", num_asserts=4, num_rows=4000)
    share = np.bincount(rows.ids.ravel(), minlength=len(vocabulary.tokens)) / len(rows.ids)
    by_kind = {"=": 16 / 20, "assert": 4 / 5}
    for kind, expected in by_kind.items():
        tokens = [
            index
            for index, token in enumerate(vocabulary.tokens)
            if (token.startswith("assert") if kind == "assert" else token.count(",") == 2)
        ]
        assert len(tokens) == (5 if kind == "assert" else 20)
        np.testing.assert_allclose(share[tokens], expected, rtol=0.1)


def test_short_programs_are_padded_behind_their_last_answer():
    _, rows = generate("state_based_recall", "statements")
    last = np.array([np.flatnonzero(is_answer)[-1] for is_answer in rows.is_answer])
    num_tokens = (rows.ids != 0).sum(1)
    np.testing.assert_array_equal(num_tokens, last + 1)
    assert num_tokens.max() == rows.ids.shape[1]
    assert num_tokens.min() < num_tokens.max()


def test_what_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"task: found 'sorting', expected one of state_tracking, recall"):
        make_task("sorting", 8)
    with pytest.raises(InputError, match=r"recall: found length 1, expected at least 2"):
        make_task("recall", 1)
