"""The study: train, extend, ask. What is done is never done again, so a study that was stopped goes on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from tokenizers import Tokenizer

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.claim import Record, claim_folder
from hybrid_jax.config import ModelConfig
from hybrid_jax.data.config import DataConfig, SourceConfig
from hybrid_jax.data.documents import check_input, read_texts
from hybrid_jax.data.token_shards import label_mask_path
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation import border_token_id
from hybrid_jax.evaluation.by_position import Piece, PositionScore, bits_by_position, cut_pieces
from hybrid_jax.evaluation.ruler import Cell, Texts, make_samples, read_haystack
from hybrid_jax.evaluation.ruler.report import Asked, add_missing, all_asked, missing, read_cells
from hybrid_jax.long_context.config import FAMILIES, METHODS, Family, LongContextConfig, Method, StageConfig
from hybrid_jax.long_context.corpus import Corpus, prepare_corpus, write_needles
from hybrid_jax.models import CausalLM
from hybrid_jax.training.run_config import CheckpointConfig, RunConfig
from hybrid_jax.training.start import StartConfig
from hybrid_jax.training.trainer import train
from hybrid_jax.yaml_config import to_mapping

CELLS_NAME, POSITIONS_NAME, CONFIG_NAME = "ruler.jsonl", "positions.json", "config.yaml"
LABELS = {"olmo_hybrid": "OLMo Hybrid", "olmo3": "OLMo 3", "yarn": "YaRN", "drope": "DRoPE"}
# A mixture takes of a source as often as its share asks; the standard library is small.
_MAX_REPETITION = 1e6
# What is asked of trained models, and how: free to change between two starts in one folder.
_FREE = ("output_folder", "eval_batch_size", "lengths", "num_samples")

Say = Callable[[str], None]


class Scores(NamedTuple):
    """What the extended models can do, by name.

    Attributes:
        cells: RULER's.
        positions: bits per byte of held-out text by position, for each model.
    """

    cells: list[Cell]
    positions: dict[str, list[PositionScore]]


class Exam(NamedTuple):
    """What every model is scored on.

    Attributes:
        tokenizer: of all models.
        texts: that RULER's questions are made of.
        pieces: of held-out text.
    """

    tokenizer: Tokenizer
    texts: Texts
    pieces: list[Piece]


def run_study(config: LongContextConfig, say: Say, devices: Sequence[jax.Device] | None = None) -> Scores:
    """Do what the output folder lacks of the study, on ``devices`` or all there are, and return its scores.

    Raises:
        InputError: the folder holds another study, or as training and evaluation; before anything is trained where a
            question or the held-out text is too short.
        OSError: a file cannot be read or written.
    """
    _claim_folder(config)
    corpus = prepare_corpus(config)
    exam = _prepare_exam(config, corpus)
    scores = _read_scores(config.output_folder)
    wanted: set[Asked] = set()
    for family in FAMILIES:
        for method in METHODS:
            name = f"{LABELS[family]}, {LABELS[method]}"
            asked = all_asked(
                name,
                config.tasks,
                config.lengths,
                exam.texts,
                num_samples=config.num_samples,
                seed=config.seed,
                dtype=config.models[family].dtype,
            )
            wanted.update(asked)
            if name in scores.positions and not missing(scores.cells, asked):
                continue
            say(f"{name}: training")
            train(pretraining_run(config, corpus, family), devices)
            model = train(extension_run(config, corpus, family, method), devices).model
            _score(config, exam, scores, name, asked, model, say)
    return scores._replace(cells=[cell for cell in scores.cells if cell[:-1] in wanted])


def pretraining_run(config: LongContextConfig, corpus: Corpus, family: Family) -> RunConfig:
    """The first stage of a model."""
    return _run(config, config.pretraining, corpus, config.pretrained(family), f"{family}/pretraining", None)


def extension_run(config: LongContextConfig, corpus: Corpus, family: Family, method: Method) -> RunConfig:
    """The second stage of a model by one method."""
    start = StartConfig(
        path=str(config.output_folder / f"{family}/pretraining"),
        optimizer_state=True,
        model_changes=("rope_parameters", "max_position_embeddings"),
    )
    return _run(
        config, config.extension, corpus, config.extended(family, method), f"{family}/{method}", start
    )


def position_edges(config: LongContextConfig) -> list[int]:
    """Eighths of pretraining's rows, each twice as long as the one before, to the end of extension's."""
    edges = [0, max(1, config.pretraining.sequence_length // 8)]
    while edges[-1] < config.extension.sequence_length:
        edges.append(min(2 * edges[-1], config.extension.sequence_length))
    return edges


def _run(
    config: LongContextConfig,
    stage: StageConfig,
    corpus: Corpus,
    model: ModelConfig,
    name: str,
    start: StartConfig | None,
) -> RunConfig:
    needles = write_needles(config, stage, corpus)
    sources = {
        "text": SourceConfig(
            paths=corpus.shards if start is None else corpus.long_shards,
            ratio=1 - config.needle_ratio,
            max_repetition=_MAX_REPETITION,
        ),
        "needles": SourceConfig(
            paths=(str(needles),),
            label_mask_paths=(str(label_mask_path(needles)),),
            ratio=config.needle_ratio,
            max_repetition=_MAX_REPETITION,
        ),
    }
    return RunConfig(
        output_folder=config.output_folder / name,
        num_steps=stage.num_steps,
        batch_size=stage.batch_size,
        num_microbatches=stage.num_microbatches,
        init_seed=config.seed,
        start_from=start,
        model=model,
        data=DataConfig(
            sources=sources,
            num_tokens=stage.num_steps * stage.batch_size * stage.sequence_length,
            sequence_length=stage.sequence_length,
            seed=config.seed,
            packing="best_fit",
            long_documents="fragment",
        ),
        optimizer=config.optimizer,
        schedule=stage.schedule,
        checkpoint=CheckpointConfig(interval=200, keep_last=1),
    )


def _prepare_exam(config: LongContextConfig, corpus: Corpus) -> Exam:
    """Read and try what models are scored on, so that what is wrong with it is known before they are trained."""
    tokenizer, texts = load_tokenizer(corpus.tokenizer_folder), Texts(read_haystack())
    for task in config.tasks:
        make_samples(task, tokenizer, config.lengths[0], 1, texts, seed=config.seed)
    check_input(corpus.held_out)
    held_out = list(read_texts(corpus.held_out, "text", (".txt", ".py")))
    try:
        pieces = cut_pieces(tokenizer, held_out, config.extension.sequence_length)
    except InputError as error:
        raise InputError(f"{corpus.held_out}: {error}") from None
    return Exam(tokenizer, texts, pieces)


def _score(
    config: LongContextConfig,
    exam: Exam,
    scores: Scores,
    name: str,
    asked: Sequence[Asked],
    model: CausalLM,
    say: Say,
) -> None:
    """Add to ``scores``, in memory and on disk, what they lack of a model's."""
    add_missing(
        scores.cells,
        asked,
        model,
        exam.tokenizer,
        exam.texts,
        batch_size=config.eval_batch_size,
        path=config.output_folder / CELLS_NAME,
        say=say,
    )
    if name not in scores.positions:
        say(f"{name}: {len(exam.pieces)} pieces of held-out text")
        scores.positions[name] = bits_by_position(
            model,
            exam.pieces,
            position_edges(config),
            border_token_id(model.config),
            batch_size=config.eval_batch_size,
        )
        with write_then_rename(config.output_folder / POSITIONS_NAME) as temporary:
            temporary.write_text(json.dumps(scores.positions) + "\n", encoding="utf-8")


def _read_scores(folder: Path) -> Scores:
    cells, positions = folder / CELLS_NAME, folder / POSITIONS_NAME
    found = json.loads(positions.read_text(encoding="utf-8")) if positions.exists() else {}
    return Scores(
        cells=read_cells(cells) if cells.exists() else [],
        positions={name: [PositionScore(*each) for each in scores] for name, scores in found.items()},
    )


def _claim_folder(config: LongContextConfig) -> None:
    """Keep the configuration in the folder, and refuse one that holds another study."""
    claim_folder(
        config.output_folder / CONFIG_NAME,
        to_mapping(config),
        ("data/needles_*.npy",),  # written before anything is trained
        lambda found, saved: (_deciding(found), _deciding(saved)),
    )


def _deciding(record: Record) -> Record:
    """What decides what is trained."""
    return {name: value for name, value in record.items() if name not in _FREE}
