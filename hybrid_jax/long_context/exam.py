"""What the extended models are asked, and their scores on disk."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.data.documents import check_input, read_texts
from hybrid_jax.data.tokenizer import load_tokenizer, special_token_id
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation import border_token_id
from hybrid_jax.evaluation.by_position import Piece, PositionScore, bits_by_position, cut_pieces
from hybrid_jax.evaluation.inputs import check_tokenizer
from hybrid_jax.evaluation.ruler import Cell, Texts, make_samples, read_haystack
from hybrid_jax.evaluation.ruler.report import Asked, add_missing, read_cells
from hybrid_jax.long_context.config import LongContextConfig
from hybrid_jax.long_context.corpus import Corpus
from hybrid_jax.models import CausalLM

_CELLS_NAME, POSITIONS_NAME = "ruler.jsonl", "positions.json"

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


def read_scores(folder: Path) -> Scores:
    """What a study's folder holds of scores; none where it holds none.

    Raises:
        InputError: something that is no score.
        OSError: a file cannot be read.
    """
    cells, positions = folder / _CELLS_NAME, folder / POSITIONS_NAME
    return Scores(
        cells=read_cells(cells) if cells.exists() else [],
        positions=_read_positions(positions) if positions.exists() else {},
    )


def prepare_exam(config: LongContextConfig, corpus: Corpus) -> Exam:
    """Read and try what models are scored on, so that what is wrong with it is known before they are trained.

    Raises:
        InputError: a question or the held-out text is too short, or the tokenizer is not the models'.
        OSError: a file cannot be read.
    """
    tokenizer, texts = load_tokenizer(corpus.tokenizer_folder), Texts(read_haystack())
    end = special_token_id(tokenizer)
    for family, model in config.models.items():
        check_tokenizer(tokenizer, model)
        if model.eos_token_ids[:1] != (end,):
            raise InputError(
                f"{family}.eos_token_id: found {model.eos_token_id}, expected {end}, which ends the documents of "
                f"{corpus.tokenizer_folder}"
            )
    for task in config.tasks:
        make_samples(task, tokenizer, config.lengths[0], 1, texts, seed=config.seed)
    check_input(corpus.held_out)
    held_out = list(read_texts(corpus.held_out, "text", (".txt", ".py")))
    try:
        pieces = cut_pieces(tokenizer, held_out, config.extension.sequence_length)
    except InputError as error:
        raise InputError(f"{corpus.held_out}: {error}") from None
    return Exam(tokenizer, texts, pieces)


def take_exam(
    config: LongContextConfig,
    exam: Exam,
    scores: Scores,
    name: str,
    asked: Sequence[Asked],
    model: CausalLM,
    say: Say,
) -> None:
    """Add to ``scores``, in memory and on disk, what they lack of a model's.

    Args:
        config: the study.
        exam: of ``prepare_exam``.
        scores: those found so far.
        name: of the model.
        asked: of RULER, all that it is to be asked.
        model: what is scored.
        say: gets a line before each task and the held-out text.

    Raises:
        InputError: a question is too short for its task.
        OSError: a file cannot be written.
    """
    add_missing(
        scores.cells,
        asked,
        model,
        exam.tokenizer,
        exam.texts,
        batch_size=config.eval_batch_size,
        path=config.output_folder / _CELLS_NAME,
        say=say,
    )
    if name not in scores.positions:
        say(f"{name}: {len(exam.pieces)} pieces of held-out text")
        scores.positions[name] = bits_by_position(
            model,
            exam.pieces,
            _position_edges(config),
            border_token_id(model.config),
            batch_size=config.eval_batch_size,
        )
        with write_then_rename(config.output_folder / POSITIONS_NAME) as temporary:
            temporary.write_text(json.dumps(scores.positions) + "\n", encoding="utf-8")


def _read_positions(path: Path) -> dict[str, list[PositionScore]]:
    text = path.read_text(encoding="utf-8")
    try:
        return {name: [PositionScore(*each) for each in scores] for name, scores in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"{path}: found {text[:80]!r}, expected a list of {', '.join(PositionScore._fields)} for each model"
        ) from None


def _position_edges(config: LongContextConfig) -> list[int]:
    """Eighths of pretraining's rows, each twice as long as the one before, to the end of extension's."""
    edges = [0, max(1, config.pretraining.sequence_length // 8)]
    while edges[-1] < config.extension.sequence_length:
        edges.append(min(2 * edges[-1], config.extension.sequence_length))
    return edges
