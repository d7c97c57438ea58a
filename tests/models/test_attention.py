"""Both forms of attention against a dense one in float64, and the gradient of the blocked one against autodiff."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.models import attention, causal_attention, create_model
from hybrid_jax.models.attention import attend_cache
from hybrid_jax.models.cache import KVCache
from hybrid_jax.models.tokens import Tokens, describe_tokens
from tests.models.conftest import relative_error
from tests.tolerances import BFLOAT16, FLOAT32_FORWARD, FLOAT32_GRADIENT

B, T, H, G, K = 2, 50, 4, 2, 8
PACKED = np.array([[1] * 13 + [2] * 30 + [0] * 7, [0] * 2 + [3] * 48], np.int32)
WINDOWS = pytest.mark.parametrize("window", [None, 1, 5, 20, 60])
ROWS = pytest.mark.parametrize("segments", [PACKED, None], ids=["packed", "whole rows"])


def dense(q, k, v, segments, window):
    """The softmax written out, in the precision of its arguments."""
    segments = jnp.ones((B, T), jnp.int32) if segments is None else jnp.asarray(segments)
    k, v = (jnp.repeat(x, H // G, axis=2) for x in (k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(K)
    i, j = np.arange(T)[:, None], np.arange(T)[None]
    visible = (j <= i) & (i - j < (window or T))
    visible = visible & (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, :, None]
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -1e30), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", jnp.where(visible[:, None], weights, 0), v)


def inputs() -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((B, T, H, K), (B, T, G, K), (B, T, G, K), (B, T, H, K))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def place(segments) -> Tokens:
    return describe_tokens((B, T), None if segments is None else jnp.asarray(segments), None, None)[0]


@WINDOWS
@ROWS
@pytest.mark.parametrize("block", [512, 16, 7])
def test_attention_over_a_cache_equals_dense_attention(segments, window, block, monkeypatch):
    monkeypatch.setattr(attention, "_query_block", lambda num_rows, num_slots: block)
    q, k, v, _ = inputs()
    tokens = place(segments)
    documents = jnp.ones((B, T), jnp.int32) if tokens.documents is None else tokens.documents
    heads_first = {"k": jnp.swapaxes(k, 1, 2), "v": jnp.swapaxes(v, 1, 2)}
    cache = KVCache(**heads_first, index=tokens.index, documents=documents, in_place=False)
    found = attend_cache(q, cache, tokens, window)
    with jax.enable_x64():
        expected = dense(*(x.astype(jnp.float64) for x in (q, k, v)), segments, window)
    assert relative_error(found, expected) <= FLOAT32_FORWARD


@WINDOWS
@ROWS
@pytest.mark.parametrize("block", [128, 16, 7])
def test_causal_attention_and_its_gradient_equal_dense_attention(segments, window, block, monkeypatch):
    monkeypatch.setattr(causal_attention, "_SMALLEST_BLOCK", block)
    monkeypatch.setattr(causal_attention, "_LARGEST_BLOCK", block)
    *arguments, dy = inputs()
    tokens = place(segments)
    found, vjp = jax.vjp(
        lambda q, k, v: causal_attention.causal_attention(q, k, v, tokens, window), *arguments
    )
    gradients = vjp(dy)
    with jax.enable_x64():
        wide = [x.astype(jnp.float64) for x in arguments]
        expected, vjp = jax.vjp(lambda q, k, v: dense(q, k, v, segments, window), *wide)
        expected_gradients = [np.asarray(x) for x in vjp(dy.astype(jnp.float64))]
    assert relative_error(found, expected) <= FLOAT32_FORWARD
    for found, expected in zip(gradients, expected_gradients, strict=True):
        # A window of 1 leaves q and k no gradient at all.
        error = np.linalg.norm(np.asarray(found) - expected)
        assert error <= FLOAT32_GRADIENT * max(1.0, np.linalg.norm(expected))


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_bfloat16_attention_has_a_gradient_near_that_of_float32(head_dim):
    """XLA's CPU backend refuses some bfloat16 products with float32 results, by shape."""
    keys = jax.random.split(jax.random.key(0), 3)
    arguments = [jax.random.normal(key, (2, 64, 4, head_dim)).astype(jnp.bfloat16) for key in keys]
    tokens, _ = describe_tokens((2, 64), jnp.ones((2, 64), jnp.int32), None, None)

    @jax.jit
    def gradient(*arguments):
        def total(*x):
            y = causal_attention.causal_attention(*x, tokens, None)
            return jnp.sum(y.astype(jnp.float32) ** 2)

        return jax.grad(total, argnums=(0, 1, 2))(*arguments)

    expected = gradient(*(x.astype(jnp.float32) for x in arguments))
    for found, wanted in zip(gradient(*arguments), expected, strict=True):
        assert relative_error(found.astype(jnp.float32), wanted) <= BFLOAT16


def test_blocks_that_cannot_see_each_other_are_left_out():
    assert len(causal_attention.visible_pairs(1024, 128, None)) == 8 * 9 // 2
    # Each block sees itself and, for a window of one block and more, those that it reaches back into.
    assert causal_attention.visible_pairs(512, 128, 128).tolist() == [
        [0, 0],
        [128, 128],
        [128, 0],
        [256, 256],
        [256, 128],
        [384, 384],
        [384, 256],
    ]
    assert len(causal_attention.visible_pairs(512, 128, 1)) == 4


def test_long_inputs_are_taken_in_blocks_that_bound_memory():
    assert attention._query_block(4, 512) == 512
    assert attention._query_block(30, 65_536) * 30 * 65_536 <= 2**26
    assert causal_attention.block_size(65_536, None) == 512


@pytest.mark.parametrize("remat", ["none", "block"])
def test_what_attention_may_see_is_never_kept_for_all_pairs_of_blocks(remat):
    length, largest_block = 4096, 512
    kinds = ("linear_attention", "full_attention")
    config = ModelConfig.preset(
        "tiny", num_hidden_layers=4, layer_types=2 * kinds, remat=remat, max_position_embeddings=length
    )
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    gradient = jax.jit(jax.grad(lambda model, ids: jnp.sum(model.hidden_states(ids, ids))))
    text = gradient.lower(jax.eval_shape(partial(create_model, config)), ids).as_text()
    masks = re.findall(r"tensor<([0-9x]+)xi1>", text)
    assert masks
    largest = max(math.prod(map(int, shape.split("x"))) for shape in masks)
    assert largest <= config.num_attention_heads * largest_block**2
