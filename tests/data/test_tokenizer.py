import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_jax.data.tokenizer import (
    END_OF_TEXT,
    PADDING,
    encode_documents,
    load_tokenizer,
    save_tokenizer,
    special_token_id,
    train_tokenizer,
)
from hybrid_jax.errors import InputError

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "for name in names:\n    print(name)\n" * 3,
    "x = 'é 漢字'\r\n",
]
VOCAB_SIZE = 280
TOKENIZER = train_tokenizer(TEXTS, VOCAB_SIZE)


@given(st.text())
def test_any_text_comes_back_unchanged(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text
    (document,) = encode_documents(TOKENIZER, [text])
    assert TOKENIZER.decode(document.tolist(), skip_special_tokens=False) == text


def test_training_is_deterministic_and_merges():
    assert train_tokenizer(iter(TEXTS), VOCAB_SIZE).to_str() == TOKENIZER.to_str()
    assert TOKENIZER.get_vocab_size() == VOCAB_SIZE
    assert len(TOKENIZER.encode(TEXTS[1]).ids) < len(TEXTS[1].encode()) / 2


def test_special_tokens_in_a_text_stay_text_in_documents_only():
    text = f"a{END_OF_TEXT}b"
    end = special_token_id(TOKENIZER)
    assert end == 0
    assert special_token_id(TOKENIZER, PADDING) == 1
    (document,) = encode_documents(TOKENIZER, [text])
    assert end not in document
    assert TOKENIZER.encode(text).ids.count(end) == 1


def test_many_documents_keep_their_order():
    texts = [str(number) for number in range(600)]
    documents = list(encode_documents(TOKENIZER, texts))
    assert [TOKENIZER.decode(document.tolist()) for document in documents] == texts
    assert {document.dtype for document in documents} == {np.dtype(np.uint32)}


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_saved_and_loaded_is_the_same(tmp_path, name):
    save_tokenizer(TOKENIZER, tmp_path)
    assert load_tokenizer(tmp_path / name).to_str() == TOKENIZER.to_str()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("model_type", [None, "olmo_hybrid", "olmo3"])
def test_transformers_loads_it_alone_and_beside_a_model(tmp_path, model_type):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(TOKENIZER, tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "  if x == 'it' :\r\n\treturn  n't , .  é漢"
    assert loaded(text).input_ids == TOKENIZER.encode(text).ids
    assert loaded.decode(loaded(text).input_ids) == text
    assert (loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (0, 1, VOCAB_SIZE)


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(InputError, match="vocab_size: found 257, expected at least 258"):
        train_tokenizer(TEXTS, 257)
    assert train_tokenizer(TEXTS, 258).get_vocab_size() == 258


def test_a_missing_tokenizer_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"found no tokenizer, expected a tokenizer\.json") as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(InputError, match=r"absent\.json: found no tokenizer"):
        load_tokenizer(tmp_path / "absent.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE"'])
def test_a_broken_tokenizer_file_is_an_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: expected a Hugging Face tokenizer file, but"):
        load_tokenizer(path)


def test_a_vocabulary_without_the_token_is_an_error():
    with pytest.raises(InputError, match=r"found no token '<\|im_end\|>' among its 280"):
        special_token_id(TOKENIZER, "<|im_end|>")
