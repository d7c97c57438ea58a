"""RULER's scores of replies, of a model's tasks, and what is made of them."""

import json

import pytest
from matplotlib.image import imread

from hybrid_jax.checkpoints import save_pretrained
from hybrid_jax.config import ModelConfig
from hybrid_jax.data.tokenizer import save_tokenizer, train_tokenizer
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.ruler import (
    Cell,
    Texts,
    make_samples,
    read_haystack,
    report,
    score_reply,
    score_task,
    scores,
)
from hybrid_jax.evaluation.ruler.report import (
    mean_by_length,
    plot_scores,
    read_cells,
    score_table,
    write_cells,
)
from hybrid_jax.models import create_model
from scripts import evaluate
from tests.training.toy import ATTENTION_ONLY

NEEDLES = "niah_multivalue"


@pytest.fixture(scope="module")
def texts():
    return Texts(read_haystack())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts):
    """A random model of one layer, with a tokenizer of what it will be asked."""
    folder = tmp_path_factory.mktemp("ruler")
    tokenizer = train_tokenizer([read_haystack()[:20_000], " ".join(texts.words)], 2000)
    save_tokenizer(tokenizer, folder / "tokenizer")
    ids = {"vocab_size": 2000, "eos_token_id": 0, "pad_token_id": 1, "max_position_embeddings": 1024}
    config = ModelConfig.preset("tiny_olmo3", **ids, **ATTENTION_ONLY, hidden_size=16, intermediate_size=16)
    save_pretrained(create_model(config), folder / "model", tokenizer_from=folder / "tokenizer")
    return folder / "model"


@pytest.fixture(scope="module")
def loaded(folder):
    return evaluate._load(str(folder), "float32", None)[0], evaluate.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("reply", "score"),
    [(" 17, and 4.", 1.0), ("4", 0.5), ("\x00 SEVENTEEN 17\x01", 0.5), ("", 0.0), ("1 7", 0.0)],
)
def test_a_reply_scores_the_share_of_answers_it_contains(reply, score):
    assert score_reply(reply, ("17", "4")) == score


def test_case_does_not_matter():
    assert score_reply("ABC", ("abc",)) == score_reply("abc", ("ABC",)) == 1.0


def test_a_task_scores_what_the_model_replies(loaded, texts, monkeypatch):
    model, tokenizer = loaded
    samples = make_samples(NEEDLES, tokenizer, 600, 5, texts)
    replies = {tuple(tokenizer.encode(each.prompt).ids): each for each in samples}
    asked = []

    def reply(model, prompts, max_new_tokens):
        asked.append((len(prompts), max_new_tokens))
        found = [replies[tuple(prompt)] for prompt in prompts]
        # The last sample's answer is given with one of its four values missing.
        texts = [each.reply if each is not samples[-1] else " ".join(each.answers[1:]) for each in found]
        return [tokenizer.encode(text).ids for text in texts]

    monkeypatch.setattr(scores, "generate", reply)
    score = score_task(model, tokenizer, NEEDLES, 600, texts, num_samples=5, batch_size=2)
    assert score == pytest.approx(100 * 4.75 / 5)
    assert asked == [(2, 128)] * 3


def test_what_a_model_cannot_read_is_refused(loaded, texts):
    model, tokenizer = loaded
    with pytest.raises(InputError, match=r"length: found 1025 tokens, expected at most .* 1024"):
        score_task(model, tokenizer, NEEDLES, 1025, texts)
    with pytest.raises(InputError, match="batch_size: found 0"):
        score_task(model, tokenizer, NEEDLES, 512, texts, batch_size=0)


def test_two_models_side_by_side(folder, tmp_path, monkeypatch, capsys):
    output, image = tmp_path / "scores.jsonl", tmp_path / "ruler.png"
    other = folder.parent / "twin"
    if not other.exists():
        other.symlink_to(folder)
    arguments = f"ruler {folder} {other} --tasks fwe --lengths 512 --num-samples 2 --batch-size 2"
    command = [*arguments.split(), "--output", str(output), "--plot", str(image)]
    evaluate.app.cli(args=command)
    cells = read_cells(output)
    assert [cell[1:5] for cell in cells] == [("fwe", 512, 2, 0)] * 2
    assert [cell.model for cell in cells] == [str(folder), str(other)]
    assert imread(image).std() > 0
    assert str(other) in capsys.readouterr().out

    # What is in the file is not asked again, and no model is loaded for it.
    monkeypatch.setattr(report, "score_task", None)
    monkeypatch.setattr(evaluate, "_load", None)
    evaluate.app.cli(args=command)
    # Other weights, another precision and another haystack are other questions.
    (tmp_path / "prose.txt").write_text("One sentence. Another one.")
    for other in (["--dtype", "bfloat16"], ["--haystack", str(tmp_path / "prose.txt")], ["--revision", "v2"]):
        with pytest.raises(TypeError):
            evaluate.app.cli(args=[*command, *other])
    with pytest.raises(InputError, match="tasks: found qa, expected some of niah_single_1"):
        evaluate.app.cli(args=["ruler", str(folder), "--tasks", "qa"])


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("text model", "inputs"),
        ("tasks model", "names"),
        ("ruler", "models"),
        ("ruler model --lengths", "lengths"),
        ("ruler model --tasks", "tasks"),
    ],
)
def test_nothing_to_do_is_an_error(command, name):
    with pytest.raises(InputError, match=f"{name}: found none, expected at least one"):
        evaluate.app.cli(args=command.split())


CELLS = [
    Cell("a", "vt", 4096, 10, 0, "float32", "c0ffee", 40.0),
    Cell("a", "cwe", 4096, 10, 0, "float32", "c0ffee", 60.0),
    Cell("a", "vt", 512, 10, 0, "float32", "c0ffee", 80.0),
    Cell("b", "vt", 512, 10, 0, "float32", "c0ffee", 20.0),
]


def test_tasks_weigh_the_same():
    assert mean_by_length(CELLS) == {"a": {512: 80.0, 4096: 50.0}, "b": {512: 20.0}}


def test_a_table_has_the_papers_scores_where_lengths_meet():
    columns = [list(column.cells) for column in score_table(CELLS).columns]
    rows = list(zip(*columns, strict=True))
    assert rows[0] == ("vt", "a", "80.0", "40.0")
    assert rows[3] == ("cwe", "b", "", "")
    assert rows[4:6] == [("mean", "a", "80.0", "50.0"), ("mean", "b", "20.0", "")]
    assert [row[1:] for row in rows[6:]] == [
        ("OLMo 3 7B, YaRN (paper)", "", "95.8"),
        ("OLMo Hybrid 7B, YaRN (paper)", "", "92.8"),
        ("OLMo Hybrid 7B, DRoPE (paper)", "", "92.2"),
    ]
    assert score_table(CELLS[2:]).row_count == 4


def test_cells_are_kept(tmp_path):
    path = tmp_path / "cells.jsonl"
    write_cells(CELLS, path)
    assert read_cells(path) == CELLS
    path.write_text(json.dumps({"task": "vt"}) + "\n")
    with pytest.raises(InputError, match=r"cells\.jsonl: line 1: found .*, expected model, task, length"):
        read_cells(path)
    plot_scores(CELLS, tmp_path / "cells.png")
    assert imread(tmp_path / "cells.png").shape[0] > 100
