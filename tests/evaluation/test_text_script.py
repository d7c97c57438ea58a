"""The command that scores texts, as people run it."""

import json

import numpy as np
import pytest

from hybrid_jax.checkpoints import from_pretrained, save_pretrained
from hybrid_jax.data.token_shards import write_shard
from hybrid_jax.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from hybrid_jax.evaluation import border_token_id, pooled, read_documents, score_documents
from hybrid_jax.models import create_model
from scripts import evaluate
from tests.training.toy import toy_model

TEXTS = ("a hybrid reads", "zwei Wörter, naïve")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with its tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    save_tokenizer(train_tokenizer(TEXTS, 270), folder / "tokenizer")
    model = create_model(toy_model(vocab_size=270, eos_token_id=0))
    save_pretrained(model, folder / "model", tokenizer_from=folder / "tokenizer")
    return folder / "model"


def shown_rows(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]


def test_each_input_is_pooled_and_every_document_kept(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = [tmp_path / "one.txt", tmp_path / "rows.jsonl"]
    inputs[0].write_text(TEXTS[0], encoding="utf-8")
    inputs[1].write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    evaluate.app.cli(args=["text", str(folder), "one.txt", "rows.jsonl", "--output", "scores.jsonl"])

    model, tokenizer = from_pretrained(folder), load_tokenizer(folder)
    expected = {
        name: list(
            score_documents(
                model, read_documents(path, model.config, tokenizer), border_token_id(model.config)
            )
        )
        for name, path in zip(("one.txt", "rows.jsonl"), inputs, strict=True)
    }
    expected["all"] = [score for scores in expected.values() for score in scores]
    shown = {row[0]: row[1:] for row in shown_rows(capsys.readouterr().out)}
    for name, scores in expected.items():
        total = pooled(name, scores)
        assert shown[name] == [
            f"{total.num_tokens:,}",
            f"{total.num_bytes:,}",
            f"{total.cross_entropy:.4f}",
            f"{total.perplexity:.2f}",
            f"{total.bits_per_byte:.4f}",
        ]
    kept = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["bits_per_byte"] for line in kept] == [score.bits_per_byte for score in expected["all"]]
    assert [line["bytes"] for line in kept] == [len(text.encode()) for text in (TEXTS[0], *TEXTS)]


def test_bytes_of_a_shard_without_tokenizer_are_unknown(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(from_pretrained(folder), tmp_path / "bare")
    write_shard(tmp_path / "shard.npy", [np.array([5, 6, 7]), np.array([8, 9])], 270, 0)
    evaluate.app.cli(args=["text", "bare", "shard.npy"])
    out = capsys.readouterr().out
    (row,) = [row for row in shown_rows(out) if row[0] == "shard.npy"]
    assert (row[1], row[2], row[-1]) == ("5", "unknown", "unknown")
    assert "counting those of token shards takes a tokenizer.json" in out
