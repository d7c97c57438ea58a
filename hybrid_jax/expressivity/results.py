"""What runs end with: one line of JSON each, and from them the best and the median of every architecture."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_jax.errors import InputError
from hybrid_jax.expressivity.architectures import ARCHITECTURES
from hybrid_jax.expressivity.config import Decay
from hybrid_jax.expressivity.published import PUBLISHED
from hybrid_jax.expressivity.tasks import TASKS

RESULTS_NAME = "results.jsonl"


class Run(NamedTuple):
    """What tells one run of a sweep from the others."""

    task: str
    architecture: str
    learning_rate: float
    decay: Decay
    seed: int


class Check(NamedTuple):
    """A look at a run on its way.

    Attributes:
        step: optimizer steps so far.
        length: of the stage's programs.
        loss: mean since the last check, in nats per token.
        accuracy: on the last answer of fresh programs of that length.
    """

    step: int
    length: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    Attributes:
        run: which.
        accuracy: on the answer token, by length.
        num_steps: that it took.
        num_parameters: of the model.
        seconds: in all, compiling included.
        curve: how it came there.
    """

    run: Run
    accuracy: dict[int, float]
    num_steps: int
    num_parameters: int
    seconds: float
    curve: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        own = {name: value for name, value in asdict(self).items() if name != "run"}
        return {**self.run._asdict(), **own}

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Result":
        """The inverse of ``to_json``. Raises KeyError, TypeError or ValueError where something is missing or wrong."""
        return cls(
            run=Run(*(line[name] for name in Run._fields)),
            accuracy={int(length): float(value) for length, value in line["accuracy"].items()},
            num_steps=int(line["num_steps"]),
            num_parameters=int(line["num_parameters"]),
            seconds=float(line["seconds"]),
            curve=tuple(Check(*check) for check in line["curve"]),
        )


class Summary(NamedTuple):
    """The runs of one architecture on one task.

    Attributes:
        best: the run that is best at the longest programs; of several such at the next longest, and so on.
        median: of all runs, by length.
        runs: all of them.
    """

    best: Result
    median: dict[int, float]
    runs: tuple[Result, ...]


def read_results(path: Path) -> list[Result]:
    """The results in a JSON lines file; none where there is no file.

    Raises:
        InputError: a line that is no result.
    """
    if not path.exists():
        return []
    results = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            results.append(Result.from_json(json.loads(line)))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"{path}:{number}: found {line[:60]!r}, expected the result of a run") from None
    return results


def summarize(results: Sequence[Result]) -> dict[str, dict[str, Summary]]:
    """Task -> architecture -> summary, in the order of ``TASKS`` and ``ARCHITECTURES``."""
    return {
        task: {
            name: _summary(runs)
            for name in ARCHITECTURES
            if (runs := [each for each in results if each.run[:2] == (task, name)])
        }
        for task in TASKS
        if any(result.run.task == task for result in results)
    }


def markdown_table(results: Sequence[Result]) -> str:
    """For each task a table of best accuracy and, in brackets, median, with the paper's beside them."""
    return "\n".join(_task_table(task, rows) for task, rows in summarize(results).items())


def _summary(runs: Sequence[Result]) -> Summary:
    best = max(runs, key=lambda each: [each.accuracy[n] for n in sorted(each.accuracy, reverse=True)])
    median = {n: statistics.median(each.accuracy[n] for each in runs) for n in best.accuracy}
    return Summary(best, median, tuple(runs))


def _task_table(task: str, rows: dict[str, Summary]) -> str:
    lengths = list(next(iter(rows.values())).best.accuracy)
    paper = PUBLISHED.get(task, {})
    paper_lengths = sorted({n for by_length in paper.values() for n in by_length})
    columns = [
        task.replace("_", " "),
        "runs",
        *(str(n) for n in lengths),
        *(f"paper, {n}" for n in paper_lengths),
    ]
    lines = [columns, ["---"] * len(columns)]
    for name, summary in rows.items():
        ours = [f"{summary.best.accuracy[n]:.3f} ({summary.median[n]:.3f})" for n in lengths]
        theirs = [f"{paper[name][n]:.3f}" if name in paper else "" for n in paper_lengths]
        lines.append([ARCHITECTURES[name].label, str(len(summary.runs)), *ours, *theirs])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
