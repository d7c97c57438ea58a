"""The blocked softmax against a dense one written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.models import attention
from hybrid_jax.models.attention import attend
from hybrid_jax.models.cache import KVCache
from hybrid_jax.models.tokens import describe_tokens

B, T, H, G, K = 2, 50, 4, 2, 8


def dense(q, k, v, documents, window):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, H // G, axis=2) for x in (k, v))
    scores = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(K)
    i, j = np.arange(T)[:, None], np.arange(T)[None]
    visible = (j <= i) & (i - j < window)
    visible = visible & (documents[:, :, None] == documents[:, None, :]) & (documents != 0)[:, :, None]
    scores = np.where(visible[:, None], scores, -np.inf)
    weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e300))
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return np.einsum("bhts,bshk->bthk", weights, v)


@pytest.fixture(params=[512, 16, 7], ids=lambda block: f"blocks of {block}")
def block(request, monkeypatch):
    monkeypatch.setattr(attention, "_query_block", lambda num_rows, num_slots: request.param)


@pytest.mark.parametrize("window", [None, 1, 5, 20, 60])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "whole rows"])
@pytest.mark.usefixtures("block")
def test_attend_equals_dense_attention(window, packed):
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (B, T, H, K))
    k, v = (jax.random.normal(key, (B, T, G, K)) for key in keys[1:])
    segments = np.array([[1] * 13 + [2] * 30 + [0] * 7, [3] * 50], np.int32) if packed else None
    tokens, _ = describe_tokens((B, T), None if segments is None else jnp.asarray(segments), None, None)
    documents = jnp.ones((B, T), jnp.int32) if tokens.documents is None else tokens.documents
    heads_first = {"k": jnp.swapaxes(k, 1, 2), "v": jnp.swapaxes(v, 1, 2)}
    cache = KVCache(**heads_first, index=tokens.index, documents=documents, in_place=False)
    found = attend(q, cache, tokens, window=window, aligned=True)
    expected = dense(q, k, v, np.ones((B, T)) if segments is None else segments, window or T)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_long_inputs_are_taken_in_blocks_that_bound_memory():
    assert attention._query_block(4, 512) == 512
    assert attention._query_block(30, 65_536) * 30 * 65_536 <= 2**26
