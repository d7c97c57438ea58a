"""Choosing tokens: what may be drawn, how often, and from which randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.generation.sampling import make_sampling, row_keys, sample

NUM_ROWS = 20_000
LOGITS = np.array([1.0, -2.0, 0.5, 3.0, 2.5, -8.0, 0.0, 1.5], np.float32)


def draw(logits, temperature=1.0, top_k=None, top_p=None, seed=0, step=0):
    """One token for each row; a single row of logits is drawn from NUM_ROWS times."""
    logits = jnp.asarray(logits)
    if logits.ndim == 1:
        logits = jnp.broadcast_to(logits, (NUM_ROWS, logits.size))
    keys = row_keys(jnp.uint32(seed), logits.shape[0])
    sampling = make_sampling(temperature, top_k, top_p)
    return np.asarray(jax.jit(sample)(logits, keys, jnp.int32(step), sampling))


def filtered(logits, temperature, top_k, top_p):
    """Probabilities after transformers' warpers, in their order, in float64."""
    scores = logits.astype(np.float64) / temperature
    if top_k is not None:
        scores = np.where(scores < np.sort(scores)[-min(top_k, scores.size)], -np.inf, scores)
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    if top_p is not None:
        order = np.argsort(-probabilities, kind="stable")
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= top_p]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None),
        (0.5, None, None),
        (3.0, None, None),
        (1.0, 3, None),
        (1.0, 1, None),
        (1.0, 100, None),
        (1.0, None, 0.7),
        (1.0, None, 0.01),
        (1.0, None, 1.0),
        (2.0, 5, 0.8),
        (0.7, 4, 0.95),
    ],
)
def test_frequencies_are_those_of_the_filtered_distribution(temperature, top_k, top_p):
    expected = filtered(LOGITS, temperature, top_k, top_p)
    found = np.bincount(draw(LOGITS, temperature, top_k, top_p), minlength=LOGITS.size) / NUM_ROWS
    assert np.all(found[expected == 0] == 0), "a token outside the support was drawn"
    error = np.sqrt(expected * (1 - expected) / NUM_ROWS)
    np.testing.assert_array_less(np.abs(found - expected), 5 * error + 1e-12)


@pytest.mark.parametrize(("top_k", "top_p"), [(40, None), (None, 0.9), (40, 0.9)])
def test_support_over_a_large_vocabulary(top_k, top_p):
    logits = np.random.default_rng(0).normal(0, 3, (64, 5000)).astype(np.float32)
    for step in range(5):
        tokens = draw(logits, 1.3, top_k, top_p, step=step)
        allowed = np.stack([filtered(row, 1.3, top_k, top_p) > 0 for row in logits])
        assert np.all(allowed[np.arange(64), tokens])


def test_temperature_zero_is_greedy_and_a_tiny_one_nearly():
    logits = np.random.default_rng(0).normal(0, 1, (64, 100)).astype(np.float32)
    best = logits.argmax(-1)
    for temperature in (0.0, 1e-4, 1e-40):
        np.testing.assert_array_equal(draw(logits, temperature), best)
    # Greedy has no use for the rest.
    np.testing.assert_array_equal(draw(logits, 0.0, top_k=5, top_p=0.5), best)


def test_equally_likely_tokens_are_kept_together():
    assert set(draw(np.array([1.0, 1.0, 1.0, 0.0], np.float32), top_k=2)) == {0, 1, 2}
    assert set(draw(np.array([2.0, 2.0, 0.0, -1.0], np.float32), top_p=0.3)) == {0, 1}


def test_a_row_draws_the_same_among_many_and_few():
    logits = np.random.default_rng(0).normal(0, 1, (32, 100)).astype(np.float32)
    many = draw(logits)
    np.testing.assert_array_equal(draw(logits[:5]), many[:5])


def test_rows_steps_and_seeds_draw_differently():
    logits = np.zeros((16, 1000), np.float32)
    draws = [draw(logits), draw(logits, step=1), draw(logits, seed=1)]
    np.testing.assert_array_equal(draw(logits), draws[0])
    assert len(np.unique(np.concatenate(draws))) > 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((-0.1, None, None), "temperature: found -0.1, expected 0 (greedy) or a positive number"),
        ((float("nan"), None, None), "temperature: found nan"),
        ((float("inf"), None, None), "temperature: found inf"),
        ((1.0, 0, None), "top_k: found 0, expected at least 1"),
        ((1.0, None, 0.0), "top_p: found 0.0, expected 0 < top_p <= 1"),
        ((1.0, None, 1.5), "top_p: found 1.5"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError) as error:
        make_sampling(*settings)
    assert message in str(error.value)
