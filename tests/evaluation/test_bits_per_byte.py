import math

import jax
import numpy as np
import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.evaluation import Document, TextScore, compressed_bits_per_byte, pooled, score_documents
from hybrid_jax.evaluation.bits_per_byte import pieces
from hybrid_jax.evaluation.token_scores import TokenScores
from tests.evaluation.models import LONGEST, hybrid_model, one_pass, random_ids

START = 2


def document(name, ids, num_bytes=None):
    return Document(name, np.array(ids), len(ids) if num_bytes is None else num_bytes)


@pytest.fixture(scope="module")
def model():
    return hybrid_model()


def test_documents_of_any_length_score_as_in_one_long_pass(model):
    # Packed, and of three windows.
    documents = [document(str(n), ids) for n, ids in enumerate(random_ids(1, 34, 5, 17, 40, 3, 64))]
    scores = list(score_documents(model, documents, START, window=17, batch_size=2))
    for each, score in zip(documents, scores, strict=True):
        expected = -one_pass(model, [START, *each.ids])[0].sum()
        assert score.nats == pytest.approx(expected, rel=1e-5)
        assert (score.name, score.num_tokens) == (each.name, len(each.ids))
    total = pooled("all", scores)
    nats = sum(score.nats for score in scores)
    assert total.num_tokens == total.num_bytes == 164
    assert total.bits_per_byte == pytest.approx(nats / math.log(2) / 164)
    assert total.cross_entropy == pytest.approx(nats / 164)
    assert total.perplexity == pytest.approx(math.exp(nats / 164))


def test_a_model_of_equal_chances_needs_log2_vocab_bits_per_token(model):
    flat = jax.tree.map(lambda leaf: leaf, model)
    flat.lm_head.kernel[...] = 0 * flat.lm_head.kernel[...]
    documents = [document(str(n), ids) for n, ids in enumerate(random_ids(17, 12))]
    score = pooled("all", score_documents(flat, documents, START, window=17, batch_size=2))
    assert score.bits_per_byte == pytest.approx(6.0, rel=1e-6)  # a vocabulary of 64


@pytest.mark.parametrize("max_length", [None, 50, 420])
def test_documents_are_cut_where_rotary_positions_end_unless_asked_otherwise(model, monkeypatch, max_length):
    read = []

    def note(model, stretches, **_):
        read.extend(len(ids) - 1 for ids, _ in stretches)
        return [TokenScores(np.zeros(len(ids) - context, np.float32), None) for ids, context in stretches]

    monkeypatch.setattr("hybrid_jax.evaluation.bits_per_byte.score_stretches", note)
    (score,) = score_documents(model, [document("a", *random_ids(500))], START, max_length=max_length)
    length = max_length or LONGEST
    assert read == [length] * -(-500 // length)
    assert score.num_tokens == 500


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 24, 33, 100])
def test_pieces_score_every_token_once_and_read_as_much_as_they_may(length):
    ids = np.arange(length + 1)
    scored = []
    for ids_read, num_context in pieces(ids, 16):
        assert len(ids_read) == 1 + min(16, length)
        assert num_context >= 1
        scored += ids_read[num_context:].tolist()
    assert scored == list(range(1, length + 1))
    assert [(len(piece.ids), piece.num_context) for piece in pieces(ids, None)] == [(length + 1, 1)]


def test_bytes_that_are_not_known_stay_so():
    known, unknown = TextScore("a", 2.0, 2, 8), TextScore("b", 3.0, 2, None)
    assert unknown.bits_per_byte is None
    assert pooled("all", [known, unknown]) == TextScore("all", 5.0, 4, None)
    assert pooled("all", [known, known]) == TextScore("all", 4.0, 4, 16)


def test_compressors_find_repetition_but_not_noise():
    noise = np.random.default_rng(0).bytes(10_000)
    assert all(bits > 8 for bits in compressed_bits_per_byte(noise).values())
    assert all(bits < 0.5 for bits in compressed_bits_per_byte(b"hybrid" * 2000).values())


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ([], {}, "a.txt: found an empty document"),
        ([64], {}, "a.txt: found token id 64, expected 0 <= id < vocab_size 64"),
        ([1], {"max_length": 0}, "max_length: found 0, expected at least 1"),
        ([1], {"window": 0}, "window: found 0"),
        ([1], {"batch_size": 0}, "batch_size: found 0"),
        ([1], {"start_token_id": 64}, "start_token_id: found token id 64"),
    ],
)
def test_bad_input_is_named(model, ids, settings, message):
    with pytest.raises(InputError, match=message):
        list(score_documents(model, [document("a.txt", ids)], **{"start_token_id": START, **settings}))


def test_no_document_has_no_score():
    with pytest.raises(InputError, match=r"folder: found no document"):
        pooled("folder", [])
