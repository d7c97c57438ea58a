"""Figures: laws through points, the compute-optimal frontier, token savings, the quantization model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.scaling.fit import Fit
from hybrid_jax.scaling.law import ScalingLaw
from hybrid_jax.scaling.points import ARCHITECTURES, LadderPoint
from hybrid_jax.scaling.published import Comparison
from hybrid_jax.scaling.quantization_study import NUM_DRAWS, PARAMS, SHARES, TOKENS, WORLDS, Study
from hybrid_jax.scaling.savings import bootstrap_interval, token_savings

# Of Okabe and Ito: told apart by colour-blind readers too.
_COLORS = dict(
    zip(
        ARCHITECTURES,
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"),
        strict=True,
    )
)
_SHARE_COLORS = dict(zip(SHARES, ("#222222", "#56B4E9", "#CC79A7"), strict=True))


def plot_fits(fits: Mapping[str, Fit], path: Path) -> None:
    """A panel for each architecture: its points, and the fitted law along each size's horizons."""
    figure, all_axes = _figure(4.6 * len(fits), 4.2, 1, len(fits), sharey=True)
    for axes, (name, fit) in zip(all_axes.flat, fits.items(), strict=True):
        sizes = sorted({each.num_params for each in fit.points})
        shades = np.linspace(0.35, 1.0, len(sizes))
        for size, shade in zip(sizes, shades, strict=True):
            points = [each for each in fit.points if each.num_params == size]
            color = _shade(_COLORS[name], shade)
            tokens = np.array([each.tokens for each in points], dtype=np.float64)
            axes.plot(tokens, [each.loss for each in points], "o", color=color, markersize=4.5)
            along = np.geomspace(tokens.min() / 1.15, tokens.max() * 1.15, 60)
            axes.plot(
                along, fit.law.loss(float(size), along), color=color, linewidth=1.4, label=points[0].size
            )
        law = fit.law
        axes.set_title(
            f"{ARCHITECTURES[name]}\n"
            rf"${law.E:.2f} + {law.A:.3g}/N^{{{law.alpha:.3f}}} + {law.B:.3g}/D^{{{law.beta:.3f}}}$"
            rf",  $R^2$ = {fit.r_squared:.4f}",
            fontsize=10,
        )
        _log_axes(axes, "training tokens D", loss=True)
        axes.legend(title="size", frameon=False, fontsize=8, title_fontsize=8)
    all_axes.flat[0].set_ylabel("loss (nats per token)")
    _save(figure, path)


def plot_frontier(
    laws: Mapping[str, ScalingLaw],
    budgets: tuple[float, float],
    path: Path,
    points: Sequence[LadderPoint] = (),
    printed: Sequence[Comparison] = (),
) -> None:
    """Least loss of each compute budget C = 6 N D, and the model size that reaches it.

    Args:
        laws: by architecture.
        budgets: the lowest and the highest, in FLOPs.
        path: of the picture.
        points: of a ladder, to be drawn in at 6 N D.
        printed: numbers of the paper's Table 19, to be drawn in.
    """
    figure, ((left, right),) = _figure(11.0, 4.4, 1, 2)
    flops = np.geomspace(*budgets, 200)
    for name, law in laws.items():
        best = law.optimum(flops)
        left.plot(flops, best.loss, color=_COLORS[name], linewidth=2, label=ARCHITECTURES[name])
        right.plot(flops, best.num_params, color=_COLORS[name], linewidth=2, label=ARCHITECTURES[name])
        own = [each for each in points if each.architecture == name]
        spent = [6.0 * each.num_params * each.tokens for each in own]
        left.plot(spent, [each.loss for each in own], "o", color=_COLORS[name], alpha=0.45, markersize=4)
        for axes, quantity, unit in ((left, "optimal loss", 1.0), (right, "N* (billions)", 1e9)):
            rows = [each for each in printed if (each.quantity, each.architecture) == (quantity, name)]
            at = [float(each.at.split()[0]) for each in rows]
            values = [each.printed.value * unit for each in rows]
            axes.plot(at, values, "s", markerfacecolor="none", color=_COLORS[name], markersize=7)
    if points:
        left.axvspan(
            max(6.0 * each.num_params * each.tokens for each in points), budgets[1], color="#f0f0f0", zorder=0
        )
        left.text(0.97, 0.94, "beyond the ladder", ha="right", color="#777777", transform=left.transAxes)
    marks = [("o", "the ladder's points")] if points else []
    marks += [("s", "the paper's Table 19")] if printed else []
    for marker, label in marks:
        left.plot(
            [], [], marker, color="gray", markerfacecolor="gray" if marker == "o" else "none", label=label
        )
    _log_axes(left, "training compute C = 6 N D (FLOPs)", loss=True)
    _log_axes(right, "training compute C = 6 N D (FLOPs)")
    left.set_ylabel("loss at the optimum (nats per token)")
    right.set_ylabel("parameters at the optimum")
    left.legend(frameon=False, loc="lower left")
    _save(figure, path)


def plot_savings(
    fits: Mapping[str, Mapping[str, Fit]], reference: str, loss: float, sizes: Sequence[float], path: Path
) -> None:
    """Tokens of ``reference`` over those of the others by model size, with 95% bootstrap intervals.

    Args:
        fits: panel -> architecture -> fit.
        reference: architecture.
        loss: the target.
        sizes: the least and the largest model of the ladder are what the curves reach between.
        path: of the picture.
    """
    figure, all_axes = _figure(5.4 * len(fits), 4.2, 1, len(fits), sharey=True)
    along = np.geomspace(min(sizes), max(sizes), 80)
    for axes, (title, panel) in zip(all_axes.flat, fits.items(), strict=True):
        base = panel[reference]
        for name, fit in panel.items():
            if name == reference:
                continue
            ratio = np.asarray(token_savings(base.law, fit.law, along, loss))
            samples = token_savings(base.resampled, fit.resampled, along[:, None], loss)
            low, high = np.clip(bootstrap_interval(np.asarray(samples).T), 1e-6, 1e6)
            axes.fill_between(along, low, high, color=_COLORS[name], alpha=0.15, linewidth=0)
            axes.plot(along, ratio, color=_COLORS[name], linewidth=2, label=ARCHITECTURES[name])
        axes.set_title(title, fontsize=10)
        _savings_axes(axes)
        axes.legend(frameon=False)
    all_axes.flat[0].set_ylabel(f"tokens of {ARCHITECTURES[reference]} / theirs, to loss {loss:.3f}")
    _save(figure, path)


def plot_published_savings(
    rows: Sequence[Comparison],
    intervals: Mapping[str, Sequence[tuple[float, float]]],
    reference: str,
    loss: float,
    path: Path,
) -> None:
    """The paper's token savings, what its rounded digits allow, and the intervals that it prints."""
    savings = [each for each in rows if each.quantity == "token savings"]
    names = list(dict.fromkeys(each.architecture for each in savings))
    figure, all_axes = _figure(5.4 * len(names), 4.2, 1, len(names), sharey=True)
    for axes, name in zip(all_axes.flat, names, strict=True):
        own = [each for each in savings if each.architecture == name]
        sizes = np.array([float(each.at.removesuffix("B")) * 1e9 for each in own])
        low, high = np.array(intervals[name]).T
        label = "the paper's 95% bootstrap interval"
        axes.vlines(sizes / 1.06, low, high, color="#bbbbbb", linewidth=2, label=label)
        low, high = (np.array([getattr(each, side) for each in own]) for side in ("low", "high"))
        label = "what the rounding of coefficients allows"
        axes.fill_between(sizes, low, high, color=_COLORS[name], alpha=0.18, linewidth=0, label=label)
        ours = [each.ours for each in own]
        axes.plot(sizes, ours, color=_COLORS[name], linewidth=2, label="coefficients as printed")
        printed = [each.printed.value for each in own]
        axes.plot(
            sizes, printed, "s", color="black", markerfacecolor="none", label="printed savings (Table 20)"
        )
        axes.set_title(ARCHITECTURES[name], fontsize=10)
        _savings_axes(axes)
    all_axes.flat[0].set_ylabel(f"tokens of {ARCHITECTURES[reference]} / theirs, to loss {loss:.3f}")
    all_axes.flat[0].legend(frameon=False, fontsize=8, loc="upper left")
    _save(figure, path)


def plot_quantization(studies: Sequence[Study], path: Path) -> None:
    """Loss by parameters and by tokens where some tasks are inexpressible: simulated, and by Theorem 4."""
    figure, all_axes = _figure(10.0, 10.5, len(WORLDS), 2, sharey=True)
    for row, world in zip(all_axes, WORLDS, strict=True):
        for each in (study for study in studies if study.world == world):
            theory, color = each.theory, _SHARE_COLORS[each.share]
            laws = (
                (theory.param_coefficient, theory.param_exponent),
                (theory.token_coefficient, theory.token_exponent),
            )
            for axes, budgets, losses, law in zip(
                row, (PARAMS, TOKENS), (each.by_params, each.by_tokens), laws, strict=True
            ):
                axes.plot(
                    budgets, theory.irreducible + law[0] * budgets ** -law[1], color=color, linewidth=1.3
                )
                low, high = np.percentile(losses, (10, 90), axis=0)
                axes.fill_between(budgets, low, high, color=color, alpha=0.15, linewidth=0)
                axes.plot(
                    budgets,
                    losses.mean(axis=0),
                    "o",
                    color=color,
                    markersize=4.5,
                    label=f"{each.share:.0%} inexpressible",
                )
        row[0].set_ylabel("loss (nats per token)")
        row[0].set_title(f"an inexpressible task {world}", loc="left", fontsize=10)
        _log_axes(row[0], "parameters (tokens without end)", loss=True)
        _log_axes(row[1], "tokens (parameters without end)", loss=True)
    all_axes[0, 0].legend(frameon=False, fontsize=9)
    note = f"points: mean of {NUM_DRAWS} simulated languages (band: 10% to 90% of them); lines: Theorem 4"
    all_axes[0, 1].set_title(note, loc="right", fontsize=8, color="#555555")
    _save(figure, path)


def _figure(
    width: float, height: float, num_rows: int, num_columns: int, sharey: bool = False
) -> tuple[Any, Any]:
    # Imported here: drawing is the only thing that needs it, and it takes a while to load.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, sharey=sharey, squeeze=False)
    return figure, axes


def _log_axes(axes: Any, label: str, loss: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

    axes.set(xscale="log", yscale="log", xlabel=label)
    if loss:  # spans less than a decade, of which a logarithmic axis labels nothing by itself
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    _plain(axes)


def _savings_axes(axes: Any) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    axes.axhline(1, color="gray", linewidth=1, linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel="parameters N", ylim=(0.4, 16))
    axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 4, 8, 16]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}x"))
    axes.yaxis.set_minor_locator(NullLocator())
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _shade(color: str, strength: float) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(1 - strength * (1 - each) for each in to_rgb(color))


def _save(figure: Any, path: Path) -> None:
    with write_then_rename(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
