"""The whole study with models of one and two layers: its stages, its scores, and that nothing is done twice."""

import io
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from rich import box
from rich.console import Console
from tokenizers.processors import TemplateProcessing

from hybrid_jax.config import ModelConfig, Rope, RopeParameters
from hybrid_jax.data.stdlib_corpus import read_stdlib
from hybrid_jax.data.token_shards import label_mask_path, open_shard, write_shard
from hybrid_jax.data.tokenizer import encode_documents, load_tokenizer, save_tokenizer, train_tokenizer
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.ruler import make_samples, read_haystack
from hybrid_jax.evaluation.ruler import report as ruler_report
from hybrid_jax.evaluation.ruler.report import published_at, score_table
from hybrid_jax.evaluation.ruler.texts import Texts
from hybrid_jax.long_context import study
from hybrid_jax.long_context.config import LongContextConfig, StageConfig, TextConfig
from hybrid_jax.long_context.corpus import lengths_of, prepare_corpus, write_needles
from hybrid_jax.long_context.exam import POSITIONS_NAME, Scores, read_scores
from hybrid_jax.long_context.figure import draw
from hybrid_jax.models import count_parameters
from hybrid_jax.training.schedule import ScheduleConfig
from hybrid_jax.training.start import StartConfig
from hybrid_jax.yaml_config import load
from scripts.long_context import position_table
from tests.environment import ROOT

VOCAB_SIZE = 2000
ROPE = Rope(rope_theta=10_000.0)
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "linear_key_head_dim": 4,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
HYBRID = ModelConfig(
    **SIZES,
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
    rope_parameters=RopeParameters(full_attention=ROPE),
)
OLMO3 = ModelConfig(
    **SIZES,
    num_hidden_layers=1,
    model_type="olmo3",
    layer_types=("full_attention",),
    rope_parameters=RopeParameters(full_attention=ROPE),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> LongContextConfig:
    folder = tmp_path_factory.mktemp("long_context")
    texts = [file.text for file in read_stdlib() if len(file.text) > 10_000][:8]
    tokenizer = train_tokenizer([*texts, " ".join(Texts("A.").words)], VOCAB_SIZE)
    save_tokenizer(tokenizer, folder)
    write_shard(folder / "text.npy", encode_documents(tokenizer, texts[:6]), VOCAB_SIZE, 0)
    (folder / "held_out").mkdir()
    for number, text in enumerate(texts[6:]):
        (folder / "held_out" / f"{number}.txt").write_text(text)
    stage = {"num_steps": 2, "batch_size": 2, "schedule": ScheduleConfig(learning_rate=1e-3)}
    return LongContextConfig(
        output_folder=folder / "study",
        olmo_hybrid=HYBRID,
        olmo3=OLMO3,
        pretraining=StageConfig(sequence_length=512, **stage),
        extension=StageConfig(sequence_length=1024, **stage),
        text=TextConfig(shards=(str(folder / "text.npy"),), tokenizer=folder, held_out=folder / "held_out"),
        tasks=("fwe",),
        lengths=(512,),
        num_samples=1,
        eval_batch_size=1,
    )


@pytest.fixture(scope="module")
def scores(config) -> Scores:
    return study.run_study(config, print, jax.devices()[:1])


NAMES = ["OLMo Hybrid, YaRN", "OLMo Hybrid, DRoPE", "OLMo 3, YaRN", "OLMo 3, DRoPE"]


@pytest.mark.slow
def test_every_model_is_asked_and_scored(scores, config, tmp_path):
    assert [(cell.model, cell.length) for cell in scores.cells] == [(name, 512) for name in NAMES]
    assert list(scores.positions) == NAMES
    for ranges in scores.positions.values():
        assert [(each.start, each.stop) for each in ranges] == [
            (0, 64),
            (64, 128),
            (128, 256),
            (256, 512),
            (512, 1024),
        ]
        assert all(0 < each.bits_per_byte < 20 for each in ranges)
    draw(scores, 512, tmp_path / "figure.png")
    assert imread(tmp_path / "figure.png").std() > 0


@pytest.mark.slow
def test_what_is_done_is_not_done_again(scores, config, monkeypatch):
    monkeypatch.setattr(study, "train", None)
    assert study.run_study(config, print, jax.devices()[:1]) == scores
    (config.output_folder / POSITIONS_NAME).unlink()
    with pytest.raises(TypeError):
        study.run_study(config, print, jax.devices()[:1])


@pytest.mark.slow
def test_extension_begins_with_what_pretraining_ended_with(scores, config):
    for family in ("olmo_hybrid", "olmo3"):
        for method in ("yarn", "drope"):
            start = json.loads((config.output_folder / family / method / "start.json").read_text())
            assert str(config.output_folder / family / "pretraining") in json.dumps(start)


@pytest.mark.slow
def test_a_folder_of_another_study_is_refused(scores, config):
    with pytest.raises(
        InputError, match=r"made from something else, .*needle_ratio: found 0.25, the folder has 0.5"
    ):
        study.run_study(replace(config, needle_ratio=0.25), print, jax.devices()[:1])


@pytest.mark.slow
def test_other_questions_are_asked_of_the_same_models(scores, config, monkeypatch):
    monkeypatch.setattr(ruler_report, "score_task", lambda *arguments, **settings: 50.0)
    more = study.run_study(replace(config, num_samples=2), print, jax.devices()[:1])
    assert [(cell.model, cell.num_samples, cell.score) for cell in more.cells] == [
        (name, 2, 50.0) for name in NAMES
    ]
    assert more.positions == scores.positions
    assert study.run_study(config, print, jax.devices()[:1]) == scores


def test_extension_takes_over_weights_and_moments(config):
    corpus = prepare_corpus(config)
    run = study.extension_run(config, corpus, "olmo3", "yarn")
    assert run.start_from == StartConfig(
        path=str(config.output_folder / "olmo3/pretraining"),
        optimizer_state=True,
        model_changes=("rope_parameters", "max_position_embeddings"),
    )
    assert run.output_folder == config.output_folder / "olmo3/yarn"
    assert run.data.sources["text"].paths == config.text.shards
    with_long = replace(config, text=replace(config.text, long_shards=("long.npy",)))
    corpus = prepare_corpus(with_long)
    assert study.extension_run(with_long, corpus, "olmo3", "yarn").data.sources["text"].paths == ("long.npy",)
    assert study.pretraining_run(with_long, corpus, "olmo3").data.sources["text"].paths == config.text.shards
    assert study.pretraining_run(config, corpus, "olmo3").output_folder == Path(run.start_from.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("niah_multiquery",), "lengths": (64,)}, "length: found 64 tokens, expected at least"),
        ({"text": "missing"}, "missing: found no such file or folder"),
        ({"text": "short"}, r"short: texts: found none of 1024 tokens"),
        (
            {"olmo3": OLMO3.replace(eos_token_id=2)},
            "olmo3.eos_token_id: found 2, expected 0, which ends the doc",
        ),
        (
            {
                name: model.replace(vocab_size=1000)
                for name, model in (("olmo_hybrid", HYBRID), ("olmo3", OLMO3))
            },
            "tokenizer: found 2000 ids, expected at most the model's vocab_size 1000",
        ),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_trained(
    config, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(study, "train", None)
    if "text" in changes:
        held_out = tmp_path / changes["text"]
        changes = {"text": replace(config.text, held_out=held_out)}
        if held_out.name == "short":
            held_out.mkdir()
            (held_out / "a.txt").write_text("a b c")
    with pytest.raises(InputError, match=message):
        study.run_study(replace(config, output_folder=tmp_path / "study", **changes), print)


def test_questions_are_learnt_from_their_last_line_and_their_answers_only(config):
    corpus = prepare_corpus(config)
    path = write_needles(config, config.extension, corpus)
    tokens = open_shard(path, VOCAB_SIZE).read(0, len(open_shard(path, VOCAB_SIZE)))
    labels = np.fromfile(label_mask_path(path), bool)
    # A half of two steps of two rows of 1,024 tokens: one row of questions of each length.
    ends = np.flatnonzero(tokens == 0) + 1
    sizes = np.diff(ends, prepend=0)
    assert len(tokens) == ends[-1]
    assert len(sizes) == 3
    assert all(length - 32 < size <= length for size, length in zip(sizes, (512, 512, 1024), strict=True))
    tokenizer, texts = load_tokenizer(corpus.tokenizer_folder), Texts(read_haystack())
    first = make_samples("fwe", tokenizer, 512, 1, texts, seed=1, with_reply=True)[0]
    end = ends[0]
    assert tokenizer.decode(tokens[: end - 1].tolist()) == first.prompt + first.reply
    learnt = first.prompt.rpartition("\n")[2] + first.reply
    assert tokenizer.decode(tokens[:end][labels[:end]].tolist()) == learnt
    asked = make_samples("fwe", tokenizer, 512, 1, texts, seed=config.seed)[0]
    assert asked != first


def test_a_token_that_begins_texts_stands_at_the_beginning_of_questions_only(config, tmp_path):
    tokenizer = load_tokenizer(config.text.tokenizer)
    beginning = tokenizer.id_to_token(1)
    tokenizer.post_processor = TemplateProcessing(f"{beginning} $A", special_tokens=[(beginning, 1)])
    save_tokenizer(tokenizer, tmp_path)
    config = replace(config, output_folder=tmp_path / "study", text=replace(config.text, tokenizer=tmp_path))
    path = write_needles(config, config.extension, prepare_corpus(config))
    tokens = open_shard(path, VOCAB_SIZE).read(0, len(open_shard(path, VOCAB_SIZE)))
    ends = np.flatnonzero(tokens == 0)
    np.testing.assert_array_equal(np.flatnonzero(tokens == 1), [0, *ends[:-1] + 1])


def test_lengths_of_questions_double(config):
    stage = replace(config.extension, sequence_length=5000)
    assert lengths_of(config, stage) == [512, 1024, 2048, 4096]
    assert lengths_of(config, config.pretraining) == [512]


def test_how_models_are_extended(config):
    windowed = {"num_hidden_layers": 2, "layer_types": ("sliding_attention", "full_attention")}
    both = RopeParameters(full_attention=ROPE, sliding_attention=ROPE)
    config = replace(config, olmo3=OLMO3.replace(**windowed, sliding_window=64, rope_parameters=both))
    hybrid, olmo3 = (config.extended(family, "yarn").rope_parameters for family in ("olmo_hybrid", "olmo3"))
    for rope in (hybrid, olmo3):
        assert rope.full_attention == Rope(
            rope_type="yarn", rope_theta=10_000.0, factor=2.0, original_max_position_embeddings=512
        )
    assert olmo3.sliding_attention == ROPE
    for family in ("olmo_hybrid", "olmo3"):
        assert config.extended(family, "drope").rope_parameters == RopeParameters()
        assert config.extended(family, "drope").max_position_embeddings == 1024
        assert config.pretrained(family).max_position_embeddings == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"olmo3": HYBRID}, "olmo3.model_type: found olmo_hybrid, expected olmo3"),
        ({"olmo3": OLMO3.replace(vocab_size=99)}, "olmo3.vocab_size: found 99, expected olmo_hybrid's 2000"),
        ({"olmo_hybrid": HYBRID.replace(rope_parameters=RopeParameters())}, "expected rotary positions"),
        ({"tasks": ("fwe", "qa")}, "tasks: found qa, expected some of niah_single_1"),
        ({"lengths": (512, 2048)}, "lengths: found 2048, expected at most extension.sequence_length 1024"),
        ({"lengths": ()}, r"lengths: found \[\], expected ascending"),
        ({"needle_ratio": 1.0}, "needle_ratio: found 1.0, expected between 0 and 1"),
        ({"num_samples": 0}, "num_samples: found 0, expected at least 1"),
    ],
)
def test_contradictions_are_named(config, changes, message):
    with pytest.raises(InputError, match=message):
        replace(config, **changes)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/long_context").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_settings_in_configs_have_models_of_one_size(path):
    config = load(LongContextConfig, path)
    assert config.extension.sequence_length == 8 * config.pretraining.sequence_length
    assert count_parameters(config.olmo3) == pytest.approx(count_parameters(config.olmo_hybrid), rel=0.01)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": [[0, 64]]}', '{"a": 1}'])
def test_positions_that_are_no_scores_are_named(tmp_path, content):
    (tmp_path / POSITIONS_NAME).write_text(content)
    with pytest.raises(
        InputError, match=r"positions\.json: found .*, expected a list of start, stop, bits_per"
    ):
        read_scores(tmp_path)


def test_the_papers_scores_are_put_at_multiples_of_pretrainings_rows():
    scores = published_at(512)["OLMo Hybrid 7B, DRoPE (paper)"]
    assert scores == {256: 92.2, 512: 89.8, 1024: 88.4, 2048: 86.2, 4096: 85.0}


def test_the_tables_in_the_documentation_are_those_of_the_results_beside_it():
    docs = ROOT / "docs"
    scores = read_scores(docs / "results" / "long_context_cpu")
    page = (docs / "long_context.md").read_text(encoding="utf-8")
    for table in (score_table(scores.cells, published_at(512)), position_table(scores)):
        table.box, table.title = box.MARKDOWN, None
        for row in table.rows:
            row.end_section = False
        written = io.StringIO()
        Console(file=written, width=200).print(table)
        assert "\n".join(line.rstrip() for line in written.getvalue().splitlines()).strip() in page
