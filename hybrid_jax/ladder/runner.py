"""Train and evaluate what a ladder's results lack; whenever it is stopped, it goes on from there."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean

import jax
import numpy as np

from hybrid_jax.checkpoints import load_orbax
from hybrid_jax.checkpoints.orbax_io import RUN_CHECKPOINTS
from hybrid_jax.claim import Record, claim_folder
from hybrid_jax.data.pipeline import describe_shards
from hybrid_jax.data.prepare import prepare_stdlib_corpus
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.differences import differences
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation import Document, border_token_id, pooled, read_documents, score_documents
from hybrid_jax.evaluation.bits_per_byte import check_document
from hybrid_jax.ladder.config import LadderConfig
from hybrid_jax.ladder.plan import PlannedRun, ladder_point, plan_ladder
from hybrid_jax.models import CausalLM
from hybrid_jax.scaling.points import ARCHITECTURES, LadderPoint, append_point, read_points
from hybrid_jax.training.trainer import train
from hybrid_jax.yaml_config import to_mapping

RESULTS_NAME = "ladder.jsonl"
RECORD_NAME = "ladder.yaml"
# What may change between two starts in one folder: which runs there are and how they are computed, not what they are.
_FREE = ("output_folder", "architectures", "checkpoint", "logging", "mesh")

HeldOut = Mapping[Path, Sequence[Document]]


def run_ladder(
    config: LadderConfig, say: Callable[[str], None], devices: Sequence[jax.Device] | None = None
) -> tuple[LadderPoint, ...]:
    """Do the runs and evaluations that the results in the output folder lack, and return the points of all.

    A run ends and is continued as ``train`` says; its checkpoints are evaluated when it has come to its last horizon,
    and each evaluation is written at once. Further sizes, architectures and later horizons may be added to a folder.
    One process at a time works in it.

    Args:
        config: the ladder.
        say: gets a line for every run that begins and every checkpoint that was evaluated.
        devices: as for ``train``.

    Raises:
        InputError: the folder has results of another configuration or other data, a file is missing or damaged, and
            whatever ``train`` raises.
        OSError: a file cannot be written.
    """
    runs = plan_ladder(config)
    held_out = _read_held_out(config)
    _claim_folder(config, held_out)
    path = config.output_folder / RESULTS_NAME
    done = _done(config, runs, path)
    waiting = [
        run
        for run in runs
        if any(ladder_point(config, run, each, loss=1.0) not in done for each in run.checkpoints)
    ]
    began, spent = time.perf_counter(), 0.0
    for number, run in enumerate(waiting):
        left = sum(each.flops(each.config.num_steps) for each in waiting[number:])
        pace = (time.perf_counter() - began) / spent if spent else None
        ending = "" if pace is None else f"; all done in about {round(pace * left / 60)} minutes"
        say(f"run {len(runs) - len(waiting) + number + 1} of {len(runs)}: {_describe(run)}{ending}")
        train(run.config, devices)
        for each in run.checkpoints:
            if ladder_point(config, run, each, loss=1.0) in done:
                continue
            model = load_orbax(
                run.config.output_folder / RUN_CHECKPOINTS / str(each.step), mesh=config.mesh.make(devices)
            )
            point = ladder_point(config, run, each, held_out_loss(model, held_out, config))
            append_point(path, point)
            say(f"  horizon {each.horizon:g}{'' if each.decayed else ' before its decay'}: {point.loss:.4f}")
        spent += run.flops(run.config.num_steps)
    expected = {ladder_point(config, run, each, loss=1.0) for run in runs for each in run.checkpoints}
    return tuple(point for point in read_points(path) if replace(point, loss=1.0) in expected)


def held_out_loss(model: CausalLM, held_out: HeldOut, config: LadderConfig) -> float:
    """Nats per token, the mean over the files of ``held_out``, each read in pieces of a training row's length."""
    length = config.data.sequence_length
    border = border_token_id(model.config)
    return fmean(
        pooled(
            str(path),
            score_documents(
                model, documents, border, max_length=length, window=length, batch_size=config.microbatch_size
            ),
        ).cross_entropy
        for path, documents in held_out.items()
    )


def _read_held_out(config: LadderConfig) -> HeldOut:
    """The texts to evaluate on, after making those of the standard library if the ladder is about them."""
    tokenizer = None
    if config.stdlib_corpus is not None:
        prepare_stdlib_corpus(config.stdlib_corpus, config.model.vocab_size)
        tokenizer = load_tokenizer(config.stdlib_corpus)
    held_out = {path: tuple(read_documents(path, config.model, tokenizer)) for path in config.held_out}
    for path, documents in held_out.items():
        if not documents:
            raise InputError(f"{path}: found no document, expected at least one")
        for document in documents:
            check_document(document, config.model.vocab_size)
    return held_out


def _claim_folder(config: LadderConfig, held_out: HeldOut) -> None:
    """Keep beside the results what decides them, and refuse to add to those of something else."""
    record = {
        "config": to_mapping(config),
        "shards": {name: describe_shards(source) for name, source in config.data.sources.items()},
        "held_out": {str(path): _digest(documents) for path, documents in held_out.items()},
    }
    results = (RESULTS_NAME, f"*/*/{RUN_CHECKPOINTS}")
    claim_folder(config.output_folder / RECORD_NAME, record, results, _deciding)


def _digest(documents: Sequence[Document]) -> str:
    """What tells the tokens of texts from all others."""
    digest = sha256()
    for document in documents:
        digest.update(len(document.ids).to_bytes(8, "little") + np.asarray(document.ids, np.int64).tobytes())
    return digest.hexdigest()


def _deciding(found: Record, saved: Record) -> tuple[Record, Record]:
    """Of two records, what must agree: sizes that both have, and horizons as far as the saved ones go."""
    num_horizons = len(saved["config"]["horizons"])
    sizes = found["config"]["sizes"].keys() & saved["config"]["sizes"].keys()

    def deciding(record: Record) -> Record:
        config = {name: value for name, value in record["config"].items() if name not in _FREE}
        return {
            **config,
            "sizes": {name: config["sizes"][name] for name in sorted(sizes)},
            "horizons": config["horizons"][:num_horizons],
            "shards": record["shards"],
            "held_out": record["held_out"],
        }

    return deciding(found), deciding(saved)


def _done(config: LadderConfig, runs: Sequence[PlannedRun], path: Path) -> set[LadderPoint]:
    """The points of a results file, their loss set to 1.

    Raises:
        InputError: a point that this configuration does not give.
    """
    if not path.exists():
        return set()
    done = {replace(point, loss=1.0) for point in read_points(path)}
    planned = {(run.architecture, run.size): run for run in runs}
    for point in done:
        run = planned.get((point.architecture, point.size))
        if run is None:  # of runs that this ladder does not ask for, but on its texts
            vocab_size = config.model.vocab_size
            expected = {
                replace(point, corpus=config.corpus, tokenizer=config.tokenizer, vocab_size=vocab_size)
            }
        else:
            expected = {ladder_point(config, run, each, loss=1.0) for each in run.checkpoints}
        if point not in expected:
            nearest = min(
                expected, key=lambda each: (each.decayed != point.decayed, abs(each.tokens - point.tokens))
            )
            found = differences(to_mapping(nearest), to_mapping(point), "", "the file")
            raise InputError(
                f"{path}: found a point of {point.architecture}, size {point.size}, of another ladder, expected the "
                f"same or another output_folder: {'; '.join(found)}"
            )
    return done


def _describe(run: PlannedRun) -> str:
    return (
        f"{ARCHITECTURES[run.architecture]}, size {run.size} (N = {run.num_params:,}): {run.config.num_steps:,} steps "
        f"of {run.config.tokens_per_step:,} tokens, {run.flops(run.config.num_steps):.2g} FLOPs"
    )
