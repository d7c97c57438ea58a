"""Bits per byte by position: the whole of a text's bits and bytes, divided among its ranges."""

import math

import numpy as np
import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.data.tokenizer import train_tokenizer
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.by_position import bits_by_position, bytes_by_token
from hybrid_jax.models import create_model
from tests.evaluation.models import one_pass
from tests.training.toy import ATTENTION_ONLY

TEXTS = ["naïve → déjà vu 日本語 " * 6, "plain words of a plain text " * 5, "short"]


@pytest.fixture(scope="module")
def model():
    """One layer of attention, with an id for every byte."""
    sizes = {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 16,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    return create_model(ModelConfig.preset("tiny_olmo3", **sizes, **ATTENTION_ONLY))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_make_up_the_text(tokenizer, text):
    encoding = tokenizer.encode(text, add_special_tokens=False)
    sizes = bytes_by_token(text, encoding.offsets)
    assert sizes.sum() == len(text.encode())
    assert len(sizes) == len(encoding.ids)
    for stop in range(1, len(sizes)):
        assert sizes[:stop].sum() == len(text[: max(each[1] for each in encoding.offsets[:stop])].encode())


def test_ranges_are_those_of_one_long_pass(model, tokenizer):
    edges = [0, 4, 11, 20]
    found = bits_by_position(model, tokenizer, TEXTS, edges, 0, window=8, batch_size=2)
    bits, sizes = np.zeros(20), np.zeros(20)
    for text in TEXTS[:2]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        bits -= one_pass(model, [0, *encoding.ids[:20]])[0] / math.log(2)
        sizes += bytes_by_token(text, encoding.offsets[:20])
    assert [(each.start, each.stop) for each in found] == [(0, 4), (4, 11), (11, 20)]
    for each in found:
        expected = bits[each.start : each.stop].sum() / sizes[each.start : each.stop].sum()
        assert each.bits_per_byte == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("edges", [[0], [4, 2], [-1, 3], [2, 2]])
def test_edges_ascend(model, tokenizer, edges):
    with pytest.raises(InputError, match="edges: found"):
        bits_by_position(model, tokenizer, TEXTS, edges, 0)


def test_texts_must_be_long_enough(model, tokenizer):
    with pytest.raises(InputError, match=r"texts: found none of 9000 tokens \(the longest has \d+\)"):
        bits_by_position(model, tokenizer, TEXTS, [0, 9000], 0)
