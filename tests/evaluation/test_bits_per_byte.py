import math

import jax
import numpy as np
import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation import compressed_bits_per_byte, score_documents
from hybrid_jax.evaluation.bits_per_byte import _windows
from hybrid_jax.models import create_model


@pytest.fixture(scope="module")
def model():
    return create_model(ModelConfig.preset("tiny"))


def documents(*lengths):
    random = np.random.default_rng(0)
    return [random.integers(3, 256, length).tolist() for length in lengths]


def test_documents_within_a_window_score_as_each_alone(model):
    texts = documents(1, 5, 16, 30)
    expected = 0.0
    for text in texts:
        logits = model(np.array([[2, *text]])).logits[0, :-1]
        expected -= float(jax.nn.log_softmax(logits)[np.arange(len(text)), np.array(text)].sum())
    score = score_documents(model, texts, num_bytes=100, start_token_id=2, window=32, batch_size=2)
    assert score.nats == pytest.approx(expected, rel=1e-5)
    assert score.num_tokens == 52
    assert score.bits_per_byte == pytest.approx(expected / math.log(2) / 100, rel=1e-5)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 24, 25, 100])
def test_long_documents_are_scored_once_with_half_a_window_before(length):
    ids = np.arange(length)
    scored = []
    for each in _windows(ids, 16):
        assert len(each.ids) <= 16
        first = each.ids[0]
        assert first == 0 or each.num_context >= 8
        scored.extend(each.ids[each.num_context :].tolist())
    assert scored == list(range(1, length))


def test_a_model_of_equal_chances_needs_log2_vocab_bits_per_token(model):
    flat = jax.tree.map(lambda leaf: leaf, model)
    flat.lm_head.kernel[...] = 0 * flat.lm_head.kernel[...]
    score = score_documents(flat, documents(70, 3), num_bytes=73, start_token_id=2, window=32)
    assert score.bits_per_byte == pytest.approx(8.0, rel=1e-6)


def test_compressors_find_repetition_but_not_noise():
    noise = np.random.default_rng(0).bytes(10_000)
    assert all(bits > 8 for bits in compressed_bits_per_byte(noise).values())
    assert all(bits < 0.5 for bits in compressed_bits_per_byte(b"hybrid" * 2000).values())


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "found none"), ([[1], []], "document 1 is empty"), ([[256]], "expected 0 <= id < vocab_size 256")],
)
def test_bad_documents_are_named(model, texts, message):
    with pytest.raises(InputError, match=message):
        score_documents(model, texts, num_bytes=1, start_token_id=2)
