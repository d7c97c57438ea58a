import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from hybrid_jax.data.token_shards import write_shard
from hybrid_jax.data.tokenizer import train_tokenizer
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation import border_token_id, read_documents
from tests.training.toy import toy_model

TEXTS = ["a hybrid reads", "zwei Wörter, naïve 🙂"]
CONFIG = toy_model(vocab_size=300, eos_token_id=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 270)


def assert_the_texts(documents, tokenizer):
    assert [tokenizer.decode(document.ids.tolist()) for document in documents] == TEXTS
    assert [document.num_bytes for document in documents] == [14, len(TEXTS[1].encode())]


def test_documents_come_from_rows_folders_files_and_shards(tmp_path, tokenizer):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    assert_the_texts(list(read_documents(rows, CONFIG, tokenizer, text_field="body")), tokenizer)

    folder = tmp_path / "folder"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.md").write_text(text, encoding="utf-8")
    documents = list(read_documents(folder, CONFIG, tokenizer, suffixes=(".md",)))
    assert_the_texts(documents, tokenizer)
    (one,) = read_documents(folder / "0.md", CONFIG, tokenizer, suffixes=(".md",))
    np.testing.assert_array_equal(one.ids, documents[0].ids)
    assert documents[1].name == f"{folder}: document 1"

    shard = tmp_path / "shard.npy"
    write_shard(shard, [document.ids for document in documents], 300, 0)
    assert_the_texts(list(read_documents(shard, CONFIG, tokenizer)), tokenizer)
    without = list(read_documents(shard, CONFIG, None))
    assert [document.num_bytes for document in without] == [None, None]


def test_documents_of_a_shard_end_across_blocks_and_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid_jax.evaluation.inputs._BLOCK", 4)
    shard = tmp_path / "shard.npy"
    ids = np.array([5, 6, 0, 7, 8, 9, 10, 11, 12, 0, 0, 13], np.uint16)
    ids.tofile(shard)
    found = [document.ids.tolist() for document in read_documents(shard, CONFIG, None)]
    assert found == [[5, 6], [7, 8, 9, 10, 11, 12], [], [13]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.docx",
            b"x",
            r"a.docx: found a file of unknown kind, .* text \(.txt; suffixes names others\), or a token",
        ),
        ("a.txt", b"\xff", r"a.txt: expected UTF-8"),
        ("a.txt", b"", r"a.txt: document 0: found an empty document"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ""}\n', r"a.jsonl: document 1: found an empty document"),
        ("a.npy", b"", r"a.npy: found an empty file"),
        ("a.npy", b"\x01\x00\x2c\x01", r"a.npy: found token id 300 at position 1, expected 0 to 299"),
        ("a.jsonl", None, r"a.jsonl: found no such file or folder"),
    ],
)
def test_bad_files_are_named(tmp_path, tokenizer, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_documents(tmp_path / name, CONFIG, tokenizer))


def test_what_does_not_go_together_is_said_at_once(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("x")
    with pytest.raises(
        InputError, match=r"tokenizer: found 270 ids, expected at most the model's vocab_size 64"
    ):
        read_documents(path, toy_model(), tokenizer)
    with pytest.raises(InputError, match=r"a.txt: found text and no tokenizer"):
        read_documents(path, CONFIG, None)
    with pytest.raises(InputError, match="eos_token_id: found none"):
        border_token_id(toy_model(eos_token_id=None))
