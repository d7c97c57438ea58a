"""Every run of an expressivity setting, its table and its figure: ``expressivity.py configs/expressivity/cpu.yaml``.

Runs that are done are skipped, so that the same command continues what was stopped; ``--help`` after the file lists
every field.
"""

from functools import partial

import numpy as np
from rich.console import Console

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.cli import run_script
from hybrid_jax.expressivity.config import SweepConfig
from hybrid_jax.expressivity.figure import draw
from hybrid_jax.expressivity.results import Result, markdown_table
from hybrid_jax.expressivity.sweep import run_sweep, runs_of
from hybrid_jax.expressivity.tasks import make_task
from hybrid_jax.expressivity.vocabulary import Vocabulary
from hybrid_jax.yaml_config import from_command_line


def main() -> None:
    """Show the tasks, do the runs, and say where table and figure are."""
    sweep = from_command_line(SweepConfig)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    show_tasks(sweep, console)
    console.print(f"{len(runs_of(sweep))} runs in {sweep.output_folder}")
    results = run_sweep(sweep, partial(report, console))
    table = markdown_table(results)
    with write_then_rename(sweep.output_folder / "table.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    draw(results, sweep.output_folder / "figure.png")
    console.print(f"\n{table}\n{sweep.output_folder}: table.md, figure.png, results.jsonl")


def show_tasks(sweep: SweepConfig, console: Console) -> None:
    """Of each task the vocabulary and a short program to learn from, as text and as ids."""
    for name, config in sweep.tasks.items():
        task = make_task(name, config.max_length)
        vocabulary = Vocabulary(task.pieces, sweep.vocabulary)
        length, rng = config.lengths[0], np.random.default_rng(0)
        intervals = task.draw_intervals(rng, 1, length, config.num_asserts)
        rows = vocabulary.encode(task.generate(rng, length, intervals), sweep.num_tokens(task, length))
        tokens = " ".join(repr(token) for token in vocabulary.tokens)
        console.print(f"{name}: {len(vocabulary.tokens)} tokens\n{tokens}\n")
        console.print(f"{vocabulary.decode(rows.ids[0])}{rows.ids[0].tolist()}\n")


def report(console: Console, result: Result) -> None:
    """One line for a run that has ended."""
    accuracy = ", ".join(f"{length}: {value:.3f}" for length, value in result.accuracy.items())
    name = " ".join(str(each) for each in result.run)
    console.print(f"{name}: {accuracy} ({result.num_steps} steps, {result.seconds:.0f} s)")


if __name__ == "__main__":
    run_script(main)
