"""Scores by length: kept in a file as they come, as a table, and as a figure with the paper's beside them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table
from tokenizers import Tokenizer

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.ruler.scores import Cell, score_task
from hybrid_jax.evaluation.ruler.texts import Texts
from hybrid_jax.models import CausalLM

# All of a cell but its score.
Asked = tuple[str, str, int, int, int, str, str]

# OLMo Hybrid's report, the 7B models after extension to 65,536 tokens: the mean over RULER's thirteen tasks.
_LENGTHS = (4096, 8192, 16384, 32768, 65536)
PUBLISHED: Mapping[str, Mapping[int, float]] = {
    "OLMo 3 7B, YaRN (paper)": dict(zip(_LENGTHS, (95.8, 89.3, 83.2, 78.9, 70.9), strict=True)),
    "OLMo Hybrid 7B, YaRN (paper)": dict(zip(_LENGTHS, (92.8, 91.3, 90.0, 84.7, 76.9), strict=True)),
    "OLMo Hybrid 7B, DRoPE (paper)": dict(zip(_LENGTHS, (92.2, 89.8, 88.4, 86.2, 85.0), strict=True)),
}
# Tokens of pretraining's rows, of those models.
PUBLISHED_LENGTH = 8192
# Of Okabe and Ito: told apart by colour-blind readers too.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREYS = ("#444444", "#777777", "#AAAAAA")


def write_cells(cells: Iterable[Cell], path: Path) -> None:
    """Write a line of JSON for each cell; all of them or, where that fails, none.

    Raises:
        OSError: the file cannot be written.
    """
    with write_then_rename(path) as temporary:
        temporary.write_text("".join(json.dumps(cell._asdict()) + "\n" for cell in cells), encoding="utf-8")


def read_cells(path: Path) -> list[Cell]:
    """Read what ``write_cells`` wrote.

    Raises:
        InputError: a line that is no cell.
        OSError: the file cannot be read.
    """
    cells = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            cells.append(Cell(**json.loads(line)))
        except (ValueError, TypeError) as error:
            fields = ", ".join(Cell._fields)
            raise InputError(f"{path}: line {number}: found {line[:80]!r}, expected {fields}") from error
    return cells


def all_asked(
    model: str,
    tasks: Sequence[str],
    lengths: Sequence[int],
    texts: Texts,
    *,
    num_samples: int,
    seed: int,
    dtype: str,
) -> list[Asked]:
    """Every task at every length, of the model called ``model``."""
    return [
        (model, task, length, num_samples, seed, dtype, texts.digest) for length in lengths for task in tasks
    ]


def missing(cells: Iterable[Cell], asked: Iterable[Asked]) -> list[Asked]:
    """What ``cells`` lack of ``asked``."""
    done = {cell[:-1] for cell in cells}
    return [each for each in asked if each not in done]


def add_missing(
    cells: list[Cell],
    asked: Iterable[Asked],
    model: CausalLM,
    tokenizer: Tokenizer,
    texts: Texts,
    *,
    batch_size: int,
    path: Path | None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Ask a model what ``cells`` lack of ``asked``; each score is added to them, and they are written to ``path``.

    ``say`` gets a line before each. Raises what ``score_task`` and ``write_cells`` do.
    """
    for each in missing(cells, asked):
        name, task, length, num_samples, seed, *_ = each
        say(f"{name}: {task} at {length:,} tokens")
        score = score_task(
            model, tokenizer, task, length, texts, num_samples=num_samples, seed=seed, batch_size=batch_size
        )
        cells.append(Cell(*each, score))
        if path is not None:
            write_cells(cells, path)


def mean_by_length(cells: Iterable[Cell]) -> dict[str, dict[int, float]]:
    """For each model and length the mean over the tasks, all of one weight."""
    scores: dict[str, dict[int, list[float]]] = {}
    for cell in cells:
        scores.setdefault(cell.model, {}).setdefault(cell.length, []).append(cell.score)
    return {
        model: {length: float(np.mean(lengths[length])) for length in sorted(lengths)}
        for model, lengths in scores.items()
    }


def published_at(pretrained_length: int) -> dict[str, dict[int, float]]:
    """The paper's scores of 7B models by name, at as many times ``pretrained_length`` as they were of their own."""
    return {
        name: {length * pretrained_length // PUBLISHED_LENGTH: score for length, score in scores.items()}
        for name, scores in PUBLISHED.items()
    }


def score_table(cells: Sequence[Cell], published: Mapping[str, Mapping[int, float]] = PUBLISHED) -> Table:
    """A row for each task and model, a column for each length; then each model's means and ``published`` ones."""
    lengths = sorted({cell.length for cell in cells})
    table = Table("task", "model", *(f"{length:,}" for length in lengths))
    found = {(cell.task, cell.model, cell.length): cell.score for cell in cells}
    models = list(dict.fromkeys(cell.model for cell in cells))

    def add_row(task: str, model: str, scores: Iterable[float | None], end: bool = False) -> None:
        shown = ("" if score is None else f"{score:.1f}" for score in scores)
        table.add_row(task, model, *shown, end_section=end)

    for task in dict.fromkeys(cell.task for cell in cells):
        for model in models:
            scores = [found.get((task, model, length)) for length in lengths]
            add_row(task, model, scores, end=model == models[-1])
    for model, means in mean_by_length(cells).items():
        add_row("mean", model, [means.get(length) for length in lengths])
    for model, known in published.items():
        if any(length in known for length in lengths):
            add_row("mean", model, [known.get(length) for length in lengths])
    return table


def plot_scores(cells: Sequence[Cell], path: Path) -> None:
    """Draw each model's mean by length into a PNG; the paper's too where the lengths meet.

    Raises:
        OSError: the picture cannot be written.
    """
    # Imported here: drawing is the only thing that needs it, and it takes a while to load.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    measured = mean_by_length(cells)
    lengths = sorted({cell.length for cell in cells})
    for number, (model, means) in enumerate(measured.items()):
        color = _COLORS[number % len(_COLORS)]
        axes.plot(list(means), list(means.values()), "o-", color=color, label=model)
    if lengths[-1] >= _LENGTHS[0]:
        for color, (model, published) in zip(_GREYS, PUBLISHED.items(), strict=True):
            axes.plot(
                list(published), list(published.values()), "s--", color=color, markersize=4, label=model
            )
        lengths = sorted({*lengths, *_LENGTHS})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set(xlabel="length (tokens)", ylabel="RULER score", ylim=(-3, 103))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    with write_then_rename(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
