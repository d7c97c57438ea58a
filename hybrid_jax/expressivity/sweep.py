"""All runs of a setting, one after the other or in several processes; what is done is never done again."""

import json
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import groupby, product
from multiprocessing import get_context, parent_process

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.claim import Record, claim_folder
from hybrid_jax.expressivity.config import SweepConfig
from hybrid_jax.expressivity.results import RESULTS_NAME, Result, Run, read_results
from hybrid_jax.expressivity.tasks import make_task
from hybrid_jax.expressivity.training import train
from hybrid_jax.yaml_config import to_mapping

CONFIG_NAME = "config.yaml"
# What may change between two starts in one folder: which runs there are, and where; not what a run is.
_FREE = ("output_folder", "num_workers")
_FREE_OF_TASKS = ("architectures", "learning_rates", "decays", "seeds")

Report = Callable[[Result], None]


def runs_of(sweep: SweepConfig) -> list[Run]:
    """Every run, those that share compiled programs side by side."""
    return [
        Run(task, architecture, *rest)
        for task, config in sweep.tasks.items()
        for architecture in config.architectures
        for rest in product(config.learning_rates, config.decays, config.seeds)
    ]


def run_sweep(sweep: SweepConfig, report: Report) -> list[Result]:
    """Do the runs that ``results.jsonl`` in the output folder lacks, and return the results of all.

    A run's result is written when it ends: who is killed loses the runs that were under way, one for each worker.
    ``report`` gets each new result. One sweep at a time works in a folder.

    Raises:
        InputError: the folder has results of another configuration, or a damaged file.
        OSError: a file cannot be read or written.
    """
    folder = sweep.output_folder
    _claim_folder(sweep)
    results = read_results(folder / RESULTS_NAME)
    done = {result.run for result in results}
    runs = runs_of(sweep)
    missing = [run for run in runs if run not in done]
    lock = threading.Lock()

    def add(result: Result) -> None:
        with lock:
            results.append(result)
            with write_then_rename(folder / RESULTS_NAME) as temporary:
                temporary.write_text("".join(f"{json.dumps(each.to_json())}\n" for each in results))
            report(result)

    if sweep.num_workers == 1:
        for run in missing:
            add(train(sweep, run))
    else:
        _share(sweep, missing, add)
    return [result for result in results if result.run in set(runs)]


def _share(sweep: SweepConfig, runs: Iterable[Run], add: Report) -> None:
    """Let processes take one architecture of one task after the other, so that each program is compiled once."""
    groups = [list(group) for _, group in groupby(runs, key=lambda run: (run.task, run.architecture))]
    # The largest first, so that at the end no process is left alone with much to do.
    groups.sort(key=lambda group: len(group) * _most_tokens(sweep, group[0].task), reverse=True)
    # Small models do not use many threads well: each process gets its share of the cores.
    os.environ.setdefault("NPROC", str(max(1, (os.cpu_count() or 1) // sweep.num_workers)))
    stopped = threading.Event()

    def work(group: list[Run]) -> None:
        with ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent) as process:
            for run in group:
                if not stopped.is_set():
                    add(process.submit(train, sweep, run).result())

    with ThreadPoolExecutor(sweep.num_workers) as threads:
        waiting = [threads.submit(work, group) for group in groups]
        try:
            for each in waiting:
                each.result()
        finally:
            stopped.set()


def _most_tokens(sweep: SweepConfig, name: str) -> int:
    """Tokens that a run of a task reads where no stage ends early."""
    task = make_task(name, sweep.tasks[name].max_length)
    return sum(stage.num_steps * sweep.num_tokens(task, stage.length) for stage in sweep.tasks[name].stages)


def _end_with_parent() -> None:
    """Make this process end when the one that has started it is killed, instead of waiting for work for good."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _claim_folder(sweep: SweepConfig) -> None:
    """Keep the configuration beside the results, and refuse to add to those of another."""
    claim_folder(
        sweep.output_folder / CONFIG_NAME,
        to_mapping(sweep),
        (RESULTS_NAME,),
        lambda found, saved: (_deciding(found), _deciding(saved)),
    )


def _deciding(record: Record) -> Record:
    """What decides a run's result."""
    tasks = {
        name: {key: value for key, value in config.items() if key not in _FREE_OF_TASKS}
        for name, config in record["tasks"].items()
    }
    return {key: value for key, value in record.items() if key not in _FREE} | {"tasks": tasks}
