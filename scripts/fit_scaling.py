"""Fit scaling laws to a ladder's results, or put the published ones to the test.

``fit_scaling.py POINTS.jsonl`` fits the law to each architecture in the file, with free exponents and with shared ones;
``--published`` starts from the paper's printed coefficients; ``--quantization`` simulates the paper's argument why
expressive models should scale better. Each writes results.json and figures into the output folder and prints tables.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.cli import run_script
from hybrid_jax.errors import InputError
from hybrid_jax.scaling import plots, published, report
from hybrid_jax.scaling.fit import FitConfig, fit_law
from hybrid_jax.scaling.law import FLOPS_PER_PARAMETER_AND_TOKEN
from hybrid_jax.scaling.points import ARCHITECTURES, LadderPoint, by_architecture, read_points
from hybrid_jax.scaling.quantization_study import SHARES, WORLDS, additive_fit, study
from hybrid_jax.scaling.savings import check_target

# The sizes of the paper's Table 20, in multiples of the ladder's largest.
_SIZES = (1, 3, 7, 13, 30, 70)
# How far beyond the ladder's largest run the frontier is drawn, as in the paper's Table 19.
_BEYOND = 100


# Tables stay readable in files and pipes, which say nothing of their width.
_WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to do. All flags but the first three and the folder are for a file of points.

    Attributes:
        points: a ladder's results; ``hybrid_jax.scaling.points`` says what a line holds.
        published: start from the paper's printed coefficients.
        quantization: simulate tasks that a model cannot express.
        output_folder: where results.json and figures go; by default ``fit`` beside the file of points,
            runs/scaling/published or runs/scaling/quantization.
        architectures: of those in the file, the ones to fit; all by default.
        exponents: alpha and beta of the second fit; by default the mean of all free exponents, as in the paper.
        reference: the architecture that the others are measured against; by default olmo3, or the first fitted.
        target_loss: of the token savings; by default the lowest loss in the file, as in the paper.
        sizes: N of the token savings; by default 1, 3, 7, 13, 30 and 70 times the reference's largest.
        fit: weights and bootstrap.
    """

    points: Annotated[Path | None, tyro.conf.Positional] = None
    published: bool = False
    quantization: bool = False
    output_folder: Path | None = None
    architectures: tuple[str, ...] = ()
    exponents: tuple[float, float] | None = None
    reference: str | None = None
    target_loss: float | None = None
    sizes: tuple[float, ...] = ()
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        if (self.points is not None) + self.published + self.quantization != 1:
            raise InputError("expected one of: a file of points, --published, --quantization")
        for field_name, names in self.named.items():
            unknown = [name for name in names if name not in ARCHITECTURES]
            if unknown:
                raise InputError(
                    f"{field_name}: found {unknown[0]!r}, expected one of {', '.join(ARCHITECTURES)}"
                )
        if not all(np.isfinite(each) and each > 0 for each in self.sizes):
            raise InputError(f"sizes: found {self.sizes}, expected finite numbers above 0")
        others = (*self.named.values(), self.exponents, self.target_loss, self.sizes, self.fit)
        if self.points is None and others != ((), (), None, None, (), FitConfig()):
            raise InputError(
                "architectures, reference, exponents, target_loss, sizes, fit: found without a file of points, which "
                "they are for"
            )

    @property
    def named(self) -> dict[str, tuple[str, ...]]:
        """Architectures that were asked for, by the field that names them."""
        reference = () if self.reference is None else (self.reference,)
        return {"architectures": self.architectures, "reference": reference}

    @property
    def folder(self) -> Path:
        """Where results go."""
        if self.output_folder is not None:
            return self.output_folder
        if self.points is not None:
            return self.points.parent / "fit"
        return Path("runs/scaling", "published" if self.published else "quantization")


def main() -> None:
    """Do the one thing asked for, and say where the results are."""
    options = tyro.cli(Options, description=__doc__)
    console = Console(soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    if options.published:
        results, figures = check_published(options.folder, console)
    elif options.quantization:
        results, figures = simulate_quantization(options.folder, console)
    else:
        results, figures = fit_points(options, console)
    with write_then_rename(options.folder / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    console.print(f"{options.folder}: {', '.join(('results.json', *figures))}")


Outcome = tuple[dict[str, Any], tuple[str, ...]]
"""What results.json holds, and the names of the figures beside it."""


def fit_points(options: Options, console: Console) -> Outcome:
    """Fit every architecture twice, print tables, draw figures."""
    assert options.points is not None
    points = read_points(options.points)
    groups = _chosen(options, points)
    with console.status("fitting"):
        free = {name: fit_law(group, config=options.fit) for name, group in groups.items()}
        means = np.mean([[each.law.alpha, each.law.beta] for each in free.values()])
        exponents = options.exponents or (float(means.round(3)),) * 2
        fixed = {name: fit_law(group, exponents, options.fit) for name, group in groups.items()}
    fits = {"free": free, "fixed": fixed}

    # The paper's reference comes first in the order of the table.
    reference = options.reference or next(iter(groups))
    fitted = [each for group in groups.values() for each in group]
    target_loss = min(each.loss for each in fitted) if options.target_loss is None else options.target_loss
    # The lowest loss of all may be out of reach for some; asked for, it is a mistake.
    for group in fits.values() if options.target_loss is not None else ():
        check_target({name: each.law for name, each in group.items()}, target_loss)
    largest = max(each.num_params for each in groups[reference])
    sizes = options.sizes or tuple(float(largest * each) for each in _SIZES)
    spent = [float(FLOPS_PER_PARAMETER_AND_TOKEN * each.num_params * each.tokens) for each in fitted]
    decades = np.arange(np.floor(np.log10(min(spent))), np.ceil(np.log10(max(spent) * _BEYOND)) + 1)

    results = report.ladder_results(fits, tuple(10.0**decades), reference, target_loss, sizes)
    for table in report.ladder_tables(results, reference, target_loss):
        console.print(table)
    num_early = sum(not each.decayed for each in points)
    if num_early:
        console.print(f"left out: {num_early} points before the learning rate's decay")
    folder = options.folder
    figures: tuple[str, ...] = ("fits.png", "frontier.png")
    plots.plot_fits(free, folder / "fits.png")
    laws = {name: each.law for name, each in free.items()}
    plots.plot_frontier(laws, (min(spent), max(spent) * _BEYOND), folder / "frontier.png", points=fitted)
    if len(groups) > 1:
        shown = {"free exponents": free, f"exponents fixed at {exponents[0]:g}, {exponents[1]:g}": fixed}
        plots.plot_savings(shown, reference, target_loss, sizes, folder / "savings.png")
        figures += ("savings.png",)
    outcome = {
        "points": str(options.points),
        "corpus": points[0].corpus,
        "reference": reference,
        "target_loss": target_loss,
        "fixed_exponents": exponents,
        "fits": results,
    }
    return outcome, figures


def _chosen(options: Options, points: Sequence[LadderPoint]) -> dict[str, tuple[LadderPoint, ...]]:
    """The points to fit, of each architecture asked for."""
    groups = by_architecture(points)
    chosen = {name: groups[name] for name in groups if name in (options.architectures or groups)}
    for field_name, names in options.named.items():
        found = groups if field_name == "architectures" else chosen
        for name in names:
            if name not in found:
                raise InputError(
                    f"{field_name}: found {name}, which is not fitted, expected some of {', '.join(found)} "
                    f"({options.points})"
                )
    return chosen


def check_published(folder: Path, console: Console) -> Outcome:
    """Hold the paper's tables against its coefficients."""
    rows = published.compare()
    console.print(report.published_table(rows))
    console.print(report.contradictions_table())
    laws = {name: each.law for name, each in published.FREE.items()}
    budgets = (published.BUDGETS[0] / 2, published.BUDGETS[-1] * 2)
    plots.plot_frontier(laws, budgets, folder / "frontier.png", printed=rows)
    plots.plot_published_savings(
        rows, published.SAVINGS_INTERVALS, published.REFERENCE, published.TARGET_LOSS, folder / "savings.png"
    )
    outcome = {"numbers": report.published_results(rows), "contradictions": published.CONTRADICTIONS}
    return outcome, ("frontier.png", "savings.png")


def simulate_quantization(folder: Path, console: Console) -> Outcome:
    """Simulate the quantization model with inexpressible tasks."""
    with console.status("simulating"):
        studies = [study(world, share) for world in WORLDS for share in SHARES]
        r_squared, error = additive_fit()
    console.print(report.quantization_table(studies))
    console.print(
        f"E + A/N^alpha + B/D^beta fitted to a ladder simulated with both budgets: R2 {r_squared:.4f}, "
        f"largest error {error:.1%}"
    )
    plots.plot_quantization(studies, folder / "quantization.png")
    outcome = {
        "studies": report.quantization_results(studies),
        "additive_fit": {"r_squared": r_squared, "largest_error": error},
    }
    return outcome, ("quantization.png",)


if __name__ == "__main__":
    run_script(main)
