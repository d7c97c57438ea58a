"""The command line of scripts/prepare_data.py: what it writes, what it says, and how it fails."""

import json
import subprocess
import sys

import pytest

from hybrid_jax.data.pipeline import make_batches
from hybrid_jax.data.tokenizer import load_tokenizer
from scripts import prepare_data
from tests.data.chat_tokenizer import assistant, user, write_tokenizer
from tests.environment import ROOT, child_environment
from tests.training.toy import toy_data


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the script's command line in this process and returns what it printed, on one line."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer")

    def run(command, *arguments):
        paths = ["--tokenizer", tokenizer, "--output", tmp_path / command]
        prepare_data.app.cli(args=[command, *map(str, [*arguments, *paths])])
        return " ".join(capsys.readouterr().out.split())

    return run


def test_texts_can_be_trained_on(tmp_path, run):
    for number in range(2):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"body": "def f(x): return x"}) + "\n")
    said = run(
        "text", tmp_path / "0.jsonl", tmp_path / "1.jsonl", "--text-field", "body", "--num-processes", "1"
    )
    assert f"{tmp_path / '0.jsonl'}: 1 documents, " in said
    assert f"{tmp_path / 'text'}: 2 documents, " in said
    assert "tokens of uint16; 0 of 2 rows dropped" in said
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    data = toy_data(tmp_path / "text" / "*.npy", sequence_length=4, num_workers=0)
    batch = next(make_batches(data, tokenizer.get_vocab_size(), 0, None, batch_size=1))
    assert tokenizer.decode(batch["input_ids"][0].tolist()) in "def f(x): return x"


def test_conversations_and_preferences(tmp_path, run):
    talk = [user("What?"), assistant("That.")]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk, "chosen": talk, "rejected": talk}) + "\n")
    assert "trained on) of uint16; 0 of 1 rows dropped" in run("chat", tmp_path / "a.jsonl", "--seed", "1")
    assert (tmp_path / "chat" / "part_00000.label_mask").is_file()
    assert "2 documents" in run("preference", tmp_path / "a.jsonl")
    assert (tmp_path / "preference" / "rejected.npy").is_file()


def test_bad_input_is_one_line_and_code_1(tmp_path):
    arguments = [
        "text",
        "absent.jsonl",
        "--tokenizer",
        str(tmp_path / "nowhere"),
        "--output",
        str(tmp_path / "o"),
    ]
    command = [sys.executable, "scripts/prepare_data.py", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False
    )
    expected = f"{tmp_path / 'nowhere'}: found no tokenizer, expected a tokenizer.json or a folder with one"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {expected}\n")
    assert list(tmp_path.iterdir()) == []
