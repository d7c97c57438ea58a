"""Train and evaluate a scaling ladder: ``ladder.py configs/scaling/cpu.yaml``; ``fit_scaling.py`` fits its results.

Runs and evaluations that are done are skipped, so that the same command continues what was stopped; ``--help`` after
the file lists every field.
"""

from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.table import Table

from hybrid_jax.cli import run_script
from hybrid_jax.ladder import LadderConfig, run_ladder
from hybrid_jax.ladder.runner import RESULTS_NAME
from hybrid_jax.scaling.points import ARCHITECTURES, LadderPoint
from hybrid_jax.yaml_config import from_command_line


def main() -> None:
    """Do the runs, and say what came of them and where it is."""
    config = from_command_line(LadderConfig)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    points = run_ladder(config, partial(console.print, style="bold"))
    console.print(loss_table(points))
    console.print(f"next: python scripts/fit_scaling.py {config.output_folder / RESULTS_NAME}")


def loss_table(points: Sequence[LadderPoint]) -> Table:
    """Held-out loss after the learning rate's decay: a line for each run, a column for each horizon."""
    decayed = [point for point in points if point.decayed]
    horizons = sorted({point.horizon for point in decayed})
    table = Table(title="held-out loss (nats per token) by tokens, in multiples of 20 N of OLMo 3")
    for column in ("size", "architecture", "N", *(f"{each:g}" for each in horizons)):
        table.add_column(column, justify="left" if column in ("size", "architecture") else "right")
    runs: dict[tuple[str, str], dict[float, LadderPoint]] = {}
    for point in decayed:
        runs.setdefault((point.size, point.architecture), {})[point.horizon] = point
    for (size, architecture), found in runs.items():
        losses = [f"{found[each].loss:.4f}" if each in found else "-" for each in horizons]
        num_params = next(iter(found.values())).num_params
        table.add_row(size, ARCHITECTURES[architecture], f"{num_params:,}", *losses)
    return table


if __name__ == "__main__":
    run_script(main)
