"""The figure of a sweep: accuracy by length beside the paper's, and how the best runs came there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.expressivity.architectures import ARCHITECTURES
from hybrid_jax.expressivity.published import PUBLISHED
from hybrid_jax.expressivity.results import Result, Summary, summarize
from hybrid_jax.expressivity.tasks import TASKS

_TITLES = {
    "state_tracking": ("State tracking", "swaps"),
    "recall": ("Recall", "bits"),
    "state_based_recall": ("State-based recall", "bits and swaps"),
}
# One hue for each ratio; positive eigenvalues are dashed.
_COLORS = {
    "transformer": "#555555",
    "gdn": "#1f77b4",
    "hybrid": "#d62728",
    "1to1": "#ff7f0e",
    "7to1": "#9467bd",
}
_MARKERS = {"transformer": "s", "gdn": "o", "hybrid": "D", "1to1": "^", "7to1": "v"}


def draw(results: Sequence[Result], image: Path) -> None:
    """Draw a column for each task into a PNG: accuracy by length above, training of the best runs below.

    Raises:
        OSError: the image cannot be written.
    """
    # Imported here: drawing is the only thing that needs it, and it takes a while to load.
    from matplotlib.figure import Figure

    summaries = summarize(results)
    num_tasks = len(summaries)
    figure = Figure(figsize=(4.4 * num_tasks + 0.6, 7.4), layout="constrained")
    panels = figure.subplots(2, num_tasks, squeeze=False, sharey=True, height_ratios=(3, 2))
    for column, (task, rows) in enumerate(summaries.items()):
        _draw_lengths(panels[0, column], task, rows)
        _draw_training(panels[1, column], task, rows)
    for row, label in ((0, "accuracy on the answer"), (1, "accuracy at the stage's length")):
        panels[row, 0].set_ylabel(label)
    names = [name for name in ARCHITECTURES if any(name in rows for rows in summaries.values())]
    lines = [panels[0, 0].plot([], [], **_style(name))[0] for name in names]
    labels = [ARCHITECTURES[name].label for name in names]
    for style, label in (
        ({"color": "black"}, "best run"),
        ({"color": "black", "alpha": 0.25, "linewidth": 1}, "every run"),
        ({"color": "black", "linestyle": "", "marker": "*", "markersize": 10}, "paper (hollow: +)"),
        ({"color": "black", "linestyle": ":", "linewidth": 1}, "chance"),
    ):
        lines.append(panels[0, 0].plot([], [], **style)[0])
        labels.append(label)
    figure.legend(lines, labels, loc="outside upper center", ncols=2 * num_tasks, frameon=False)
    with write_then_rename(image) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _draw_lengths(axes: Any, task: str, rows: dict[str, Summary]) -> None:
    title, unit = _TITLES[task]
    lengths = sorted(next(iter(rows.values())).best.accuracy)
    paper = [
        (name, length, accuracy)
        for name, by_length in PUBLISHED[task].items()
        for length, accuracy in by_length.items()
    ]
    # Where several are equal each has its own place beside the others.
    for index, (name, summary) in enumerate(rows.items()):
        places = [n * 1.035 ** (index - (len(rows) - 1) / 2) for n in lengths]
        for run in summary.runs:
            values = [run.accuracy[n] for n in lengths]
            axes.plot(places, values, **_style(name) | {"alpha": 0.25, "linewidth": 1, "marker": ""})
        axes.plot(places, [summary.best.accuracy[n] for n in lengths], **_style(name))
    for index, (name, length, accuracy) in enumerate(paper):
        style = {"color": _style(name)["color"], "marker": "*", "markersize": 12, "linestyle": ""}
        fill = "full" if ARCHITECTURES[name].neg_eigval else "none"
        axes.plot(
            length * 1.12 ** (index - (len(paper) - 1) / 2), accuracy, fillstyle=fill, clip_on=False, **style
        )
    axes.axhline(TASKS[task].chance, color="black", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    ticks = sorted({*lengths, *(length for _, length, _ in paper)})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(0, 1.04)
    axes.set_title(title)
    axes.set_xlabel(unit)
    _tidy(axes)


def _draw_training(axes: Any, task: str, rows: dict[str, Summary]) -> None:
    for name, summary in rows.items():
        curve = summary.best.curve
        style = _style(name) | {"marker": "", "linewidth": 1.3}
        axes.plot([check.step for check in curve], [check.accuracy for check in curve], **style)
    axes.axhline(TASKS[task].chance, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel("optimizer steps of the best run")
    _tidy(axes)


def _style(name: str) -> dict[str, Any]:
    kind = next(kind for kind in ("1to1", "7to1", "hybrid", "gdn", "transformer") if kind in name)
    return {
        "color": _COLORS[kind],
        "marker": _MARKERS[kind],
        "linestyle": "-" if ARCHITECTURES[name].neg_eigval else "--",
        "linewidth": 1.8,
        "markersize": 5,
    }


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
