"""Packed documents give exactly what each gives alone: values, gradients, and across a carried cache.

A document alone is run in a row of the full length with other tokens behind it, which it cannot see (see
``test_causal_lm.py``): one compiled shape serves all.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.models import init_cache
from tests.models.conftest import relative_error

SEGMENTS = np.array([[1] * 10 + [2] + [3] * 20 + [0] * 9, [5] * 17 + [4] * 22 + [0]], np.int32)
DOCUMENTS = ((0, 0, 10), (0, 10, 11), (0, 11, 31), (1, 0, 17), (1, 17, 39))
TOLERANCE = 1e-5


def alone(model, ids):
    """Logits of one document [T] run on its own."""
    row = np.concatenate([ids, np.zeros(40 - len(ids), np.int32)])
    return model(np.stack([row, row])).logits[0, : len(ids)]


def test_packed_logits_equal_separate_ones(model, input_ids):
    packed = model(input_ids, segment_ids=SEGMENTS).logits
    for row, start, stop in DOCUMENTS:
        expected = alone(model, input_ids[row, start:stop])
        assert relative_error(packed[row, start:stop], expected) < TOLERANCE


def test_packed_gradients_equal_separate_ones(model, input_ids):
    weights = np.random.default_rng(0).normal(size=(2, 40, model.config.vocab_size)).astype(np.float32)

    def loss(model, ids, segments, weights):
        return jnp.sum(jnp.tanh(model.logits(model.hidden_states(ids, segments))) * weights)

    gradient = jax.jit(jax.grad(loss))
    packed = gradient(model, input_ids, SEGMENTS, weights * (SEGMENTS != 0)[..., None])
    total = jax.tree.map(jnp.zeros_like, packed)
    for row, start, stop in DOCUMENTS:
        ids, own_weights = np.zeros((2, 40), np.int32), np.zeros_like(weights)
        ids[0, : stop - start] = input_ids[row, start:stop]
        own_weights[0, : stop - start] = weights[row, start:stop]
        total = jax.tree.map(jnp.add, total, gradient(model, ids, np.ones((2, 40), np.int32), own_weights))
    for found, expected in zip(jax.tree.leaves(packed), jax.tree.leaves(total), strict=True):
        assert relative_error(found, expected) < TOLERANCE


def test_what_padding_holds_does_not_matter(model, input_ids):
    other = np.where(SEGMENTS == 0, 7, input_ids)
    first, second = (model(ids, segment_ids=SEGMENTS).logits for ids in (input_ids, other))
    np.testing.assert_array_equal(first[SEGMENTS != 0], second[SEGMENTS != 0])


def test_an_id_may_come_back_without_its_document_coming_back(model, input_ids):
    again = np.where(np.arange(40) // 10 % 2 == 0, 1, 2)[None].repeat(2, 0)
    distinct = (np.arange(40) // 10 + 1)[None].repeat(2, 0)
    first, second = (model(input_ids, segment_ids=s).logits for s in (again, distinct))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "growing"])
def test_documents_go_on_or_end_across_a_cache(model, input_ids, in_place):
    cache = init_cache(model.config, 2, 64, 20) if in_place else None
    first = model(input_ids[:, :20], segment_ids=np.full((2, 20), 7), cache=cache)
    later = np.array([[7] * 5 + [8] * 15, [9] * 20])
    second = model(input_ids[:, 20:], segment_ids=later, cache=first.cache).logits
    assert relative_error(second[0, :5], alone(model, input_ids[0, :25])[20:]) < TOLERANCE
    assert relative_error(second[0, 5:], alone(model, input_ids[0, 25:])) < TOLERANCE
    assert relative_error(second[1], alone(model, input_ids[1, 20:])) < TOLERANCE


def test_one_token_goes_on_or_begins_anew_whatever_was_before(model, input_ids):
    """As in decoding; nothing of a document that has ended is left, not even what is no number."""
    first = model(input_ids[:, :20], segment_ids=np.full((2, 20), 7))

    def spoil_second_row(path, x):
        return x.at[..., 1, :, :, :].set(jnp.nan) if path[-1] == jax.tree_util.GetAttrKey("state") else x

    cache = jax.tree_util.tree_map_with_path(spoil_second_row, first.cache)
    second = model(input_ids[:, 20:21], segment_ids=np.array([[7], [9]]), cache=cache).logits
    assert relative_error(second[0], alone(model, input_ids[0, :21])[20:]) < TOLERANCE
    assert relative_error(second[1], alone(model, input_ids[1, 20:21])) < TOLERANCE


@pytest.mark.parametrize("left", [True, False], ids=["left-padded", "right-padded"])
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "growing"])
def test_padded_prompts_continue_as_if_alone(model, input_ids, left, in_place):
    cache = init_cache(model.config, 2, 64, 20) if in_place else None
    padding, real = [0] * 8, [1] * 12
    segments = np.array([padding + real if left else real + padding, [1] * 20])
    first = model(input_ids[:, :20], segment_ids=segments, cache=cache)
    second = model(input_ids[:, 20:], segment_ids=np.ones((2, 20), np.int32), cache=first.cache).logits
    prompt = input_ids[0, 8:20] if left else input_ids[0, :12]
    continued = alone(model, np.concatenate([prompt, input_ids[0, 20:]]))[12:]
    assert relative_error(second[0], continued) < TOLERANCE
    assert relative_error(second[1], alone(model, input_ids[1])[20:]) < TOLERANCE
