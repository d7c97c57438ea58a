import json

import numpy as np
import pytest

from hybrid_jax.data.prepare import prepare_stdlib_corpus, read_held_out
from hybrid_jax.data.stdlib_corpus import TextFile, is_held_out
from hybrid_jax.data.token_shards import open_shard
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.errors import InputError

VOCAB_SIZE = 280
NAMES = ["fnmatch.py", *(f"module_{number}.py" for number in range(5))]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "library"
    root.mkdir()
    for name in NAMES:
        (root / name).write_text(
            f"# {name} — é\u2028\nimport json\nprint(json.dumps({{'a': 1}}))\n", encoding="utf-8"
        )
    assert [name for name in NAMES if is_held_out(name)] == ["fnmatch.py"]
    return root


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_shard_and_the_held_out_texts_together_are_the_corpus(root, tmp_path):
    prepared = prepare_stdlib_corpus(tmp_path / "data", VOCAB_SIZE, root)
    tokenizer = load_tokenizer(prepared.folder)
    shard = open_shard(prepared.train_path, VOCAB_SIZE)
    text = tokenizer.decode(shard.read(0, len(shard)).tolist(), skip_special_tokens=False)
    train = [(root / name).read_text(encoding="utf-8") for name in NAMES[1:]]
    assert text == "".join(document + "<|endoftext|>" for document in train)
    held_out = (root / "fnmatch.py").read_text(encoding="utf-8")
    assert read_held_out(prepared.held_out_path) == [TextFile(path="fnmatch.py", text=held_out)]
    assert prepared[3:] == (
        len(train),
        sum(len(document.encode()) for document in train),
        len(shard),
        1,
        len(held_out.encode()),
    )


def test_a_complete_folder_is_kept_and_one_made_elsewhere_is_equal(root, tmp_path):
    prepared = prepare_stdlib_corpus(tmp_path / "data", VOCAB_SIZE, root)
    before = times(prepared.folder)
    assert prepare_stdlib_corpus(prepared.folder, VOCAB_SIZE, root) == prepared
    assert times(prepared.folder) == before
    other = prepare_stdlib_corpus(tmp_path / "other", VOCAB_SIZE, root)
    for name in before:
        assert (other.folder / name).read_bytes() == (prepared.folder / name).read_bytes()


def change_text(root, folder):
    (root / "module_0.py").write_text("changed = True\n")


def truncate_shard(root, folder):
    with (folder / "train.npy").open("r+b") as file:
        file.truncate(10)


def lose_tokenizer(root, folder):
    (folder / "tokenizer.json").unlink()


def break_manifest(root, folder):
    (folder / "manifest.json").write_text('{"key": ')


@pytest.mark.parametrize("damage", [change_text, truncate_shard, lose_tokenizer, break_manifest])
def test_an_outdated_or_damaged_folder_is_made_anew(root, tmp_path, damage):
    folder = tmp_path / "data"
    prepare_stdlib_corpus(folder, VOCAB_SIZE, root)
    (folder / "notes.txt").write_text("mine")
    damage(root, folder)
    prepare_stdlib_corpus(folder, VOCAB_SIZE, root)
    fresh = prepare_stdlib_corpus(tmp_path / "fresh", VOCAB_SIZE, root).folder
    for path in fresh.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert (folder / "notes.txt").read_text() == "mine"


def test_another_vocabulary_size_is_another_corpus(root, tmp_path):
    folder = tmp_path / "data"
    prepare_stdlib_corpus(folder, 258, root)
    prepared = prepare_stdlib_corpus(folder, VOCAB_SIZE, root)
    assert load_tokenizer(folder).get_vocab_size() == VOCAB_SIZE
    assert prepared.train_path.stat().st_size == 2 * prepared.num_train_tokens


def test_an_interrupted_preparation_is_not_taken_for_complete(root, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    prepare_stdlib_corpus(folder, 258, root)

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("hybrid_jax.data.prepare.write_shard", full_disk)
    with pytest.raises(OSError, match="No space left"):
        prepare_stdlib_corpus(folder, VOCAB_SIZE, root)
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    prepared = prepare_stdlib_corpus(folder, VOCAB_SIZE, root)
    assert len(np.fromfile(prepared.train_path, "<u2")) == prepared.num_train_tokens


def test_a_corpus_that_does_not_split_is_an_error(root, tmp_path):
    (root / "fnmatch.py").unlink()
    with pytest.raises(InputError, match="found 5 train and 0 held-out files, expected at least one of each"):
        prepare_stdlib_corpus(tmp_path / "data", VOCAB_SIZE, root)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("line", ['{"path": "a"', '{"path": "a.py"}', "[]", '"text"'])
def test_a_bad_line_of_held_out_texts_is_an_error(tmp_path, line):
    path = tmp_path / "held_out.jsonl"
    path.write_text(json.dumps({"path": "a.py", "text": "a"}) + f"\n{line}\n")
    with pytest.raises(InputError, match=r'held_out\.jsonl: line 2: expected \{"path"'):
        read_held_out(path)
    with pytest.raises(InputError, match=r"absent\.jsonl: found no such file"):
        read_held_out(tmp_path / "absent.jsonl")
