"""Curves of one or several runs as a picture: loss, learning rate, gradient norm, throughput."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.errors import InputError
from hybrid_jax.training.metrics import JSONL_NAME, read_metrics

XAxis = Literal["steps", "tokens"]
FORMATS = ("png", "pdf", "svg")

_X_METRICS = {"steps": "step", "tokens": "throughput/total tokens"}
_SKIPPED = "optim/step skipped"
# A panel is logarithmic where a linear one would press most of it against the bottom.
_LOG_RATIO = 20
# The share of all losses that is always in the picture.
_SHOWN = 0.995
_SCALES = ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One metric over a run.

    Attributes:
        metrics: what it may be, with the label of its axis; of each run the first that there is.
        smooth: whether a running mean helps.
        may_be_log: whether values may span decades.
        cuts_start: whether the first steps tower over all that follow.
        from_zero: whether only the bottom of its axis at zero lets differences be judged.
        marks_skipped: whether skipped steps are marked on it.
    """

    metrics: dict[str, str]
    smooth: bool = True
    may_be_log: bool = False
    cuts_start: bool = False
    from_zero: bool = False
    marks_skipped: bool = False


_LOSS = _Panel(
    metrics={"train/CE loss": "cross-entropy (nats per token)", "train/DPO loss": "DPO loss"},
    cuts_start=True,
    marks_skipped=True,
)
_OTHERS = (
    _Panel(metrics={"optim/LR (group 0)": "learning rate"}, smooth=False),
    _Panel(metrics={"optim/total grad norm": "gradient norm"}, may_be_log=True, marks_skipped=True),
    _Panel(metrics={"throughput/device/TPS": "tokens/s of each device"}, from_zero=True),
)


class _Curve(NamedTuple):
    x: Float64[np.ndarray, "points"]
    y: Float64[np.ndarray, "points"]
    skipped: Bool[np.ndarray, "points"]


class _Run:
    """What is to be drawn of the metrics in a run's folder: a column for each of ``wanted``, NaN where it is absent.

    Raises:
        InputError: there are none.
        OSError: the file cannot be read.
    """

    def __init__(self, folder: Path, wanted: set[str]) -> None:
        self.path = folder / JSONL_NAME
        self.names: set[str] = set()
        # A long run has millions of lines: kept are numbers alone.
        columns = {name: array("d") for name in wanted}
        try:
            for line in read_metrics(self.path):
                if not isinstance(line, dict):
                    raise InputError(f"{self.path}: found {line!r}, expected a JSON object on each line")
                self.names |= line.keys()
                for name, column in columns.items():
                    column.append(_number(line.get(name)))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"{self.path}: no such file, expected the output folder of a training run"
            ) from None
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: is no text, expected a JSON object on each line") from None
        self._columns = {name: np.array(column) for name, column in columns.items()}

    def has(self, metric: str) -> bool:
        return bool(np.isfinite(self._columns[metric]).any())

    def curve(self, metric: str, x: XAxis) -> _Curve:
        """``metric`` over ``x`` wherever both are there."""
        along, values = self._columns[_X_METRICS[x]], self._columns[metric]
        shown = np.isfinite(along) & np.isfinite(values)
        return _Curve(along[shown], values[shown], self._columns[_SKIPPED][shown] == 1)


def plot_loss(run_folder: Path, image: Path, title: str) -> None:
    """Draw a run's training loss over tokens, with a running mean on top, into a PNG, PDF or SVG.

    Raises:
        InputError: the run has no metrics yet, or ``image`` another ending.
        OSError: a file cannot be read or written.
    """
    # Imported here: drawing is the only thing that needs it, and it takes a while to load.
    from matplotlib.figure import Figure

    runs = _read([run_folder], [_LOSS])
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    _draw(figure.add_subplot(), runs, _LOSS, "tokens", smooth=0.04)
    figure.suptitle(_plain(title))
    _save(figure, image)


def plot_runs(
    run_folders: Sequence[Path],
    image: Path,
    x: XAxis = "steps",
    smooth: float = 0.04,
    metric: str | None = None,
) -> None:
    """Draw loss, learning rate, gradient norm and throughput of runs over each other into a PNG, PDF or SVG.

    Args:
        run_folders: output folders of runs.
        image: the picture's path.
        x: what to draw over.
        smooth: the share of a run that a running mean reaches over, 0 to 1; 0 for none.
        metric: any metric of the runs in the place of the loss.

    Raises:
        InputError: a run without metrics or without that metric, ``smooth`` out of its range, an image of another
            ending.
        OSError: a file cannot be read or written.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not 0 <= smooth <= 1:
        raise InputError(
            f"smooth: found {smooth}, expected 0 to 1, the share of a run that a mean reaches over"
        )
    first = _LOSS if metric is None else _Panel(metrics={metric: metric}, may_be_log=True, marks_skipped=True)
    panels = (first, *_OTHERS)
    runs = _read(run_folders, panels)
    names = [_plain(name) for name in _names(run_folders)]

    figure = Figure(figsize=(12, 7.5), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    for axes, panel in zip(figure.subplots(2, 2, sharex=True).flat, panels, strict=True):
        _draw(axes, runs, panel, x, smooth)
    if len(runs) == 1:
        figure.suptitle(names[0])
    else:
        lines = [figure.axes[0].plot([], [], color=color, linewidth=2)[0] for color in _colors(len(runs))]
        figure.legend(lines, names, loc="outside upper center", ncols=min(len(runs), 4), frameon=False)
    _save(figure, image)


def _read(folders: Sequence[Path], panels: Sequence[_Panel]) -> list[_Run]:
    """The runs, each with something to show in the first of ``panels``; others may stay empty."""
    first = panels[0].metrics
    wanted = {*_X_METRICS.values(), _SKIPPED}.union(*(panel.metrics for panel in panels))
    runs = [_Run(folder, wanted) for folder in folders]
    for run in runs:
        if not any(run.has(name) for name in first):
            names = ", ".join(sorted(run.names - {"step"})) or "nothing"
            raise InputError(f"{run.path}: found no {' or '.join(first)} to draw, only {names}")
    return runs


def _draw(axes: Any, runs: list[_Run], panel: _Panel, x: XAxis, smooth: float) -> None:
    """All runs' curves of one panel."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    labels: dict[str, None] = {}
    curves = []
    for run, color in zip(runs, _colors(len(runs)), strict=True):
        name = next((name for name in panel.metrics if run.has(name)), None)
        if name is not None:
            labels[panel.metrics[name]] = None
            curves.append((run.curve(name, x), color))
    values = np.concatenate([curve.y for curve, _ in curves]) if curves else np.empty(0)
    spans_decades = bool(0 < _LOG_RATIO * values.min(initial=np.inf) < values.max(initial=0))
    is_log = panel.may_be_log and spans_decades
    unit, x_label = _unit(max((curve.x.max(initial=0) for curve, _ in curves), default=0.0), x)
    for curve, color in curves:
        _draw_curve(axes, curve, color, unit, smooth if panel.smooth else 0.0, is_log)
    skipped = [curve for curve, _ in curves if panel.marks_skipped and curve.skipped.any()]
    if skipped:
        at_x, at_y = (np.concatenate([curve[i][curve.skipped] for curve in skipped]) for i in (0, 1))
        style = {"linestyle": "", "marker": "x", "color": "black", "markersize": 5, "zorder": 3}
        axes.plot(at_x / unit, at_y, **style, label="step skipped")
        axes.legend(frameon=False)
    if not values.size:
        axes.text(0.5, 0.5, "not among the metrics", ha="center", color="gray", transform=axes.transAxes)
    elif panel.cuts_start:
        _cut_highest(axes, values)
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter("")
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(_label)
    axes.yaxis.set_major_formatter(_label)
    axes.set_ylabel(_plain(", ".join(labels or panel.metrics.values())))
    if axes.get_subplotspec().is_last_row():
        axes.set_xlabel(x_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(axes: Any, curve: _Curve, color: Any, unit: float, smooth: float, is_log: bool) -> None:
    """The running mean over a faint line of all values, or these alone."""
    x = curve.x / unit
    if smooth == 0 or len(x) < 3:
        axes.plot(x, curve.y, color=color, linewidth=1.8, marker="." if len(x) == 1 else "")
        return
    axes.plot(x, curve.y, color=color, linewidth=0.8, alpha=0.3, zorder=1)
    # On a logarithmic axis a spike would lift the arithmetic mean out of what the eye takes for the middle.
    mean = np.exp(_smoothed(np.log(curve.y), smooth)) if is_log else _smoothed(curve.y, smooth)
    axes.plot(x, mean, color=color, linewidth=1.8)


def _cut_highest(axes: Any, values: Float64[np.ndarray, "points"]) -> None:
    """Let the few highest values run out of the picture where the rest would have less than two thirds of it."""
    low, most, high = values.min(), np.quantile(values, _SHOWN), values.max()
    if high - low > 1.5 * (most - low) > 0:
        margin = 0.05 * (most - low)
        axes.set_ylim(low - margin, most + margin)


def _colors(count: int) -> list[Any]:
    from matplotlib import colormaps

    if count <= 10:
        return list(colormaps["tab10"](np.arange(count)))
    return list(colormaps["turbo"](np.linspace(0.05, 0.95, count)))


def _unit(largest: float, x: XAxis) -> tuple[float, str]:
    """What to divide by, and the name of the axis."""
    if x == "steps":
        return 1.0, "optimizer steps"
    for scale, name in _SCALES:
        if largest >= scale:
            return scale, f"training tokens ({name})"
    return 1.0, "training tokens"


def _names(folders: Sequence[Path]) -> list[str]:
    """Folders' names, or their whole paths where names do not tell them apart."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar opens mathematics there."""
    return text.replace("$", r"\$")


def _smoothed(values: np.ndarray, share: float) -> np.ndarray:
    """A centred running mean over ``share`` of the values, narrower at both ends."""
    reach = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _label(value: float, position: int | None) -> str:
    """A number on an axis, never with an exponent."""
    return f"{value:,.10f}".rstrip("0").rstrip(".")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _save(figure: Any, image: Path) -> None:
    ending = image.suffix[1:].lower()
    if ending not in FORMATS:
        raise InputError(f"{image}: found ending {image.suffix!r}, expected one of .{', .'.join(FORMATS)}")
    with write_then_rename(image) as temporary:
        figure.savefig(temporary, dpi=150, format=ending)
