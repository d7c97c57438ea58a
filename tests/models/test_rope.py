import math

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.config import Rope
from hybrid_jax.models.rope import attention_factor, frequencies, rotate

YARN = Rope(rope_theta=5e5, rope_type="yarn", factor=8.0, original_max_position_embeddings=8192)


def test_frequencies_are_powers_of_theta():
    expected = [5e5 ** (-2 * j / 128) for j in range(64)]
    np.testing.assert_allclose(frequencies(Rope(rope_theta=5e5), 128), expected, rtol=1e-5)


def test_yarn_ramps_between_channels_18_and_35():
    """The published long-context setting: head dim 128, theta 5e5, 8192 -> 65536 (OLMo-core ``nn/rope.py``)."""
    ratio = frequencies(YARN, 128) / frequencies(Rope(rope_theta=5e5), 128)
    ramp = np.clip((np.arange(64) - 18) / (35 - 18), 0, 1)
    np.testing.assert_allclose(ratio, ramp / 8 + (1 - ramp), rtol=1e-5)
    assert attention_factor(YARN) == pytest.approx(0.1 * math.log(8) + 1) == pytest.approx(1.2079, abs=1e-4)


def test_rotation_is_that_of_complex_numbers():
    x = np.random.default_rng(0).normal(size=(1, 5, 2, 8)).astype(np.float32)
    positions = np.array([[0, 3, 4, 100, 7]])
    angles = positions[..., None, None] * frequencies(Rope(), 8)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)
    found = rotate(jnp.asarray(x), jnp.asarray(positions), Rope())
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


def test_scores_depend_on_distance_only():
    q, k = (jnp.asarray(np.random.default_rng(s).normal(size=(1, 1, 1, 16)), jnp.float32) for s in (0, 1))

    def score(i, j):
        qi, kj = rotate(q, jnp.array([[i]]), YARN), rotate(k, jnp.array([[j]]), YARN)
        return float(jnp.sum(qi * kj))

    assert score(7, 3) == pytest.approx(score(1004, 1000), abs=1e-3)
