"""Bits per byte by position: the whole of a text's bits and bytes, divided among its ranges."""

import math

import numpy as np
import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.data.tokenizer import train_tokenizer
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.by_position import bits_by_position, bytes_by_token, cut_pieces
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


def test_pieces_are_read_from_their_own_beginnings(model, tokenizer):
    edges = [0, 4, 9, 12]
    pieces = cut_pieces(tokenizer, TEXTS, 12)
    found = bits_by_position(model, pieces, edges, 0, window=8, batch_size=2)
    bits, sizes, num_pieces = np.zeros(12), np.zeros(12), 0
    for text in TEXTS:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        for start in range(0, len(encoding.ids) // 12 * 12, 12):
            bits -= one_pass(model, [0, *encoding.ids[start : start + 12]])[0] / math.log(2)
            sizes += bytes_by_token(text, encoding.offsets)[start : start + 12]
            num_pieces += 1
    assert len(pieces) == num_pieces > 2
    assert [(each.start, each.stop) for each in found] == [(0, 4), (4, 9), (9, 12)]
    for each in found:
        expected = bits[each.start : each.stop].sum() / sizes[each.start : each.stop].sum()
        assert each.bits_per_byte == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("edges", [[0], [4, 2], [-1, 3], [2, 2]])
def test_edges_ascend(model, tokenizer, edges):
    with pytest.raises(InputError, match="edges: found"):
        bits_by_position(model, cut_pieces(tokenizer, TEXTS, 5), edges, 0)


def test_texts_and_pieces_must_be_long_enough(model, tokenizer):
    with pytest.raises(InputError, match=r"texts: found none of 9000 tokens \(the longest has \d+\)"):
        cut_pieces(tokenizer, [*TEXTS, ""], 9000)
    with pytest.raises(InputError, match="pieces: found one of 5 tokens, expected at least 6"):
        bits_by_position(model, cut_pieces(tokenizer, TEXTS, 5), [0, 6], 0)
