"""The same accuracy, log-likelihoods and texts as lm-eval's own backend for transformers, on tasks made here."""

import json
import shutil
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from hybrid_jax.checkpoints import from_pretrained, save_pretrained
from hybrid_jax.config import ModelConfig
from hybrid_jax.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation import lm_eval_model, run_tasks
from hybrid_jax.evaluation.lm_eval_model import _Answers
from hybrid_jax.generation import generate
from hybrid_jax.models import create_model
from scripts import evaluate
from tests.tolerances import LM_EVAL_LOG_LIKELIHOOD

MAX_LENGTH, NUM_NEW = 48, 12
PROSE = "the state of a hybrid layer is a matrix that each token decays, corrects and reads again"
WORDS = PROSE.replace(",", "").split()


class Setting(NamedTuple):
    """A random hybrid, and the folder it is in."""

    model: Any
    folder: Any


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    root = tmp_path_factory.mktemp("lm_eval")
    save_tokenizer(train_tokenizer([PROSE], 300), root / "tokenizer")
    # Logits far enough apart that rounding does not decide what is likeliest.
    ids = {"vocab_size": 300, "eos_token_id": 0, "pad_token_id": 1}
    layers = {"num_hidden_layers": 2, "layer_types": ("linear_attention", "full_attention")}
    config = ModelConfig.preset("tiny", **ids, **layers, initializer_range=0.3)
    save_pretrained(create_model(config), root / "hf", tokenizer_from=root / "tokenizer")
    return Setting(from_pretrained(root / "hf"), root / "hf")


@pytest.fixture(scope="module")
def tasks(setting, tmp_path_factory):
    """Choices, a last word, whole texts, and texts to continue; one row is longer than ``MAX_LENGTH`` tokens."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("tasks")
    model, tokenizer = setting.model, load_tokenizer(setting.folder)
    random = np.random.default_rng(0)

    def words(count):
        return " ".join(random.choice(WORDS, count))

    texts = [words(count) for count in (7, 9, 14, 40, 8, 6, 10, 11)]
    # As many tokens in and out as the task below, so that both run one program.
    prompts = [tokenizer.encode(text + ":").ids[NUM_NEW - MAX_LENGTH :] for text in texts]
    greedy = [tokens[:1] for tokens in generate(model, prompts, max_new_tokens=NUM_NEW)]
    rows = [
        {
            "text": text,
            # The model's own choice is among them.
            "choices": [" " + words(1), " " + words(2), " " + words(1), tokenizer.decode(tokens)],
            "answer": int(random.integers(4)),
            "word": words(1),
        }
        for text, tokens in zip(texts, greedy, strict=True)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
    }
    generation = {"until": ["en", "th"], "max_gen_toks": NUM_NEW, "do_sample": False}
    kinds = {
        "choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "last_word": {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": " {{word}}",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        "whole_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "continue": {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{word}}",
            "generation_kwargs": generation,
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, kind in kinds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **shared, **kind}))
    return folder


@pytest.mark.filterwarnings("ignore")  # of lm-eval, datasets and transformers, on their own account
def test_tasks_come_out_as_with_transformers(setting, tasks):
    pytest.importorskip("torch")
    huggingface = pytest.importorskip(
        "lm_eval.models.huggingface", reason="lm-eval's backend needs accelerate"
    )
    theirs = huggingface.HFLM(
        str(setting.folder), device="cpu", dtype="float32", batch_size=1, max_length=MAX_LENGTH
    )
    ours = lm_eval_model(setting.model, setting.folder, max_length=MAX_LENGTH, window=64)
    names = ["choices", "last_word", "whole_text", "continue"]
    found, expected = (run_tasks(lm, names, folder=tasks) for lm in (ours, theirs))
    for name in names:
        compare_samples(found["samples"][name], expected["samples"][name])
        for metric, value in expected["results"][name].items():
            if isinstance(value, float):
                assert found["results"][name][metric] == pytest.approx(value, abs=1e-4, rel=1e-4), metric
    answers = [answer for sample in found["samples"]["choices"] for (answer,) in sample["resps"]]
    assert {is_greedy for _, is_greedy in answers} == {False, True}


@pytest.mark.filterwarnings("ignore")
def test_the_script_shows_and_keeps_results(setting, tasks, tmp_path, capsys):
    output = tmp_path / "results.json"
    command = f"tasks {setting.folder} choices continue --folder {tasks} --limit 3 --max-length {MAX_LENGTH}"
    evaluate.app.cli(args=[*command.split(), "--window", "64", "--output", str(output)])
    kept = json.loads(output.read_text())
    ours = lm_eval_model(setting.model, setting.folder, max_length=MAX_LENGTH, window=64)
    expected = run_tasks(ours, ["choices", "continue"], folder=tasks, limit=3)
    assert kept["n-samples"]["choices"] == {"original": 8, "effective": 3}
    assert kept["results"] == json.loads(json.dumps(expected["results"]))
    shown = [[cell.strip() for cell in line.split("│")[1:4]] for line in capsys.readouterr().out.splitlines()]
    for task, metric in (("choices", "acc"), ("choices", "acc_norm"), ("continue", "exact_match")):
        assert [task, metric, f"{expected['results'][task][f'{metric},none']:.4f}"] in shown


def compare_samples(found, expected):
    assert len(found) == len(expected) == 8
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["doc_id"] == theirs["doc_id"]
        for mine, other in zip(ours["resps"], theirs["resps"], strict=True):
            if isinstance(other[0], tuple):
                assert mine[0] == (pytest.approx(other[0][0], abs=LM_EVAL_LOG_LIKELIHOOD), other[0][1])
            elif isinstance(other[0], float):
                assert mine[0] == pytest.approx(other[0], abs=LM_EVAL_LOG_LIKELIHOOD)
            else:
                assert mine == other


def test_what_a_task_may_not_ask_is_said(setting):
    answers = _Answers(setting.model, setting.folder, MAX_LENGTH, window=64, batch_size=8)
    for continuation in ([], [5] * (MAX_LENGTH + 1)):
        with pytest.raises(
            InputError, match=rf"found {len(continuation)} tokens, expected 1 to max_length 48"
        ):
            answers._loglikelihood_tokens([(("a", "b"), [4], continuation)])
    with pytest.raises(InputError, match="batch_size: found 0"):
        _Answers(setting.model, setting.folder, None, window=64, batch_size=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, r"generation_kwargs: found \['num_beams'\], expected until"),
        ({"max_gen_toks": 48}, "max_gen_toks: found 48, expected less than max_length 48"),
    ],
)
def test_what_a_task_may_not_ask_of_generation_is_said(setting, settings, message):
    pytest.importorskip("lm_eval")
    answers = _Answers(setting.model, setting.folder, MAX_LENGTH, window=64, batch_size=8)
    with pytest.raises(InputError, match=message):
        answers._continue(["a"], settings)


@pytest.mark.filterwarnings("ignore")
def test_unknown_tasks_and_folders_are_named(tasks):
    with pytest.raises(
        InputError, match=r"found 'choice', which lm-eval does not know; did you mean choices\?"
    ):
        run_tasks(None, ["choice"], folder=tasks)
    with pytest.raises(InputError, match="nowhere: found no such folder"):
        run_tasks(None, ["choices"], folder=tasks / "nowhere")


def test_without_lm_eval_it_is_said_how_to_install_it(setting, monkeypatch):
    for name in ("lm_eval", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    for ask in (lambda: lm_eval_model(setting.model, setting.folder), lambda: run_tasks(None, ["choices"])):
        with pytest.raises(InputError, match=r"lm_eval: not installed.*hybrid-jax\[eval\]"):
            ask()


def test_a_tokenizer_must_name_its_end_of_text(setting, tmp_path):
    shutil.copy(setting.folder / "tokenizer.json", tmp_path)
    with pytest.raises(InputError, match=r"found no eos_token in a tokenizer_config.json"):
        _Answers(setting.model, tmp_path, None, window=64, batch_size=8)
