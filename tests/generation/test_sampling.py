import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.generation.sampling import make_sampling, row_keys, sample

PROBABILITIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32)
ROWS = 4000


def frequencies(temperature, top_k=None, top_p=None):
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES), (ROWS, 5))
    keys = row_keys(jnp.uint32(0), ROWS)
    tokens = jax.jit(sample)(logits, keys, jnp.int32(0), make_sampling(temperature, top_k, top_p))
    return np.bincount(np.asarray(tokens), minlength=5) / ROWS


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((1.0,), PROBABILITIES),
        ((0.5,), PROBABILITIES**2 / np.sum(PROBABILITIES**2)),
        ((1.0, 2), [4 / 7, 3 / 7, 0, 0, 0]),
        ((1.0, 100), PROBABILITIES),
        ((1.0, None, 0.65), [4 / 7, 3 / 7, 0, 0, 0]),
        ((1.0, None, 0.75), [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]),
        ((1.0, None, 0.01), [1, 0, 0, 0, 0]),
        # Of the three that top-k leaves, two already have 0.82 of the probability.
        ((1.0, 3, 0.8), [4 / 7, 3 / 7, 0, 0, 0]),
        ((0.0, 3, 0.8), [1, 0, 0, 0, 0]),
        ((1e-30,), [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should_be(settings, expected):
    found = frequencies(*settings)
    expected = np.asarray(expected)
    assert (found[expected == 0] == 0).all()
    np.testing.assert_allclose(found, expected, atol=0.035)


def test_each_step_draws_anew():
    logits, keys = jnp.zeros((8, 1000)), row_keys(jnp.uint32(0), 8)
    draws = [
        np.asarray(sample(logits, keys, jnp.int32(step), make_sampling(1.0, None, None))) for step in (0, 1)
    ]
    assert (draws[0] != draws[1]).any()
    assert len(set(draws[0].tolist())) > 4
