"""Whether a run can be trusted to lose nothing: disturb real training processes in every way, and compare their ends.

Each fault starts a run of its own on a tiny model, does its harm from outside, and then gives the same command again.
What the run ends with must equal a run never disturbed: all parameters and optimizer state bit for bit, and the loss
of every step. The end is exit code 1 if one of them differs, ends otherwise than it should or does not recover.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tyro

from hybrid_jax.checkpoints.checkpoint_files import LIST_NAME
from hybrid_jax.cli import run_script
from hybrid_jax.config import ModelConfig
from hybrid_jax.data.config import DataConfig, SourceConfig
from hybrid_jax.data.pipeline import epoch_order
from hybrid_jax.errors import InputError
from hybrid_jax.training import trainer
from hybrid_jax.training.metrics import JSONL_NAME, read_metrics
from hybrid_jax.training.optimizer import OptimizerConfig
from hybrid_jax.training.run_config import CheckpointConfig, LoggingConfig, RunConfig
from hybrid_jax.training.schedule import ScheduleConfig
from hybrid_jax.training.skip_step import SkipStepConfig
from hybrid_jax.training.state import TrainState
from hybrid_jax.training.step import Batch, Metrics, TrainStep
from hybrid_jax.yaml_config import from_command_line, to_yaml

NUM_STEPS, INTERVAL = 240, 12
VOCAB_SIZE, EOS, LENGTH, BATCH_SIZE = 2048, 2, 32, 4
# One window of this step's batch is like nothing before it.
SPIKE_STEP = 200
# Less than the smallest file that can hold the embeddings, more than all metrics.
FULL_DISK_KIB = 400
ROOT = Path(__file__).parents[1]
# A fault that comes when there is nothing to disturb any more, or yet, is tried again.
_TRIES = 8
# Seconds after which a process counts as hanging and is killed.
_TIMEOUT = 300


class Missed(Exception):
    """The moment for a fault has passed, or has not come yet."""


class Wrong(Exception):
    """A process did not do what it should."""


class Child:
    """A training process, of which every step can be followed.

    Attributes:
        out: what it has printed so far.
        err: what it has said on stderr; known once it has ended.
        recovery: seconds from its start to the end of its first step; None before.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._began = time.monotonic()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        self._overdue = threading.Timer(_TIMEOUT, self.process.kill)
        self._overdue.daemon = True
        self._overdue.start()
        self.out, self.err = "", ""
        self.recovery: float | None = None

    def wait_for_step(self, step: int) -> None:
        """Return once ``step`` or a later one is done. Raises Missed if the process ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.out += line
            if line.startswith("step "):
                if self.recovery is None:
                    self.recovery = time.monotonic() - self._began
                if int(line.split()[1].partition("/")[0]) >= step:
                    return
        raise Missed

    def end(self, expected: int) -> None:
        """Follow it to its end. Raises Missed if it ended well and not with ``expected``, Wrong if in a third way."""
        with suppress(Missed):
            self.wait_for_step(sys.maxsize)
        _, self.err = self.process.communicate()
        self._overdue.cancel()
        if self.process.returncode == expected:
            return
        if self.process.returncode == 0:
            raise Missed
        raise Wrong(f"ended with {self.process.returncode} instead of {expected}: {self.err}")


class Run:
    """One run: its folder, and the command that starts and continues it."""

    def __init__(self, workplace: Path, name: str) -> None:
        self.folder = workplace / name
        self.checkpoints = self.folder / "checkpoints"
        self._arguments = [str(workplace / "run.yaml"), "--output-folder", str(self.folder)]
        self._environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(workplace / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *harm: str, flags: tuple[str, ...] = (), full_disk: bool = False) -> Child:
        """Train, with ``harm`` done in the process itself (see ``train_harmed``), or without space for arrays."""
        script = [__file__, "harmed", *harm] if harm else [str(ROOT / "scripts/train.py")]
        command = [sys.executable, *script, *self._arguments, *flags]
        if full_disk:  # writing beyond the limit fails in the same places
            command = ["bash", "-c", f'ulimit -f {FULL_DISK_KIB} && exec "$@"', "bash", *command]
        return Child(command, self._environment)

    def started(self, random: Random) -> Child:
        """A process that trains and has come to a random step; a checkpoint or more may have been saved."""
        child = self.start()
        child.wait_for_step(random.randrange(1, NUM_STEPS - INTERVAL))
        return child

    def newest(self) -> Path:
        """The newest of two complete checkpoints or more. Raises Missed if there are not, or it is the last."""
        steps = [int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit()]
        if len(steps) < 2 or max(steps) == NUM_STEPS:
            raise Missed
        return self.checkpoints / str(max(steps))

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of the last checkpoint by item and name."""
        with closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as reader:
            items = {
                item: reader.restore(self.checkpoints / str(NUM_STEPS) / item)
                for item in ("model", "optimizer")
            }
        return {f"{item}/{leaf}": np.asarray(value) for item in items for leaf, value in items[item].items()}

    def losses(self) -> list[tuple[int, float]]:
        """Step and loss of every line of the metrics."""
        return [(line["step"], line["train/CE loss"]) for line in read_metrics(self.folder / JSONL_NAME)]

    def check_same(self, reference: "Run") -> None:
        """Raise Wrong unless this run has ended as ``reference`` did."""
        found, expected = self.arrays(), reference.arrays()
        if found.keys() != expected.keys():
            raise Wrong(f"arrays differ: {sorted(found.keys() ^ expected.keys())}")
        for name, array in expected.items():
            if found[name].dtype != array.dtype or found[name].tobytes() != array.tobytes():
                raise Wrong(f"{name} differs")
        if self.losses() != reference.losses():
            raise Wrong(f"{JSONL_NAME} differs")


def kill(run: Run, random: Random) -> str:
    """Kill -9 at a random moment."""
    child = run.started(random)
    time.sleep(random.uniform(0, 0.05))
    child.process.kill()
    child.end(-signal.SIGKILL)
    return ""


def kill_while_saving(run: Run, random: Random) -> str:
    """Kill -9 while a checkpoint is half-written."""
    child = run.started(random)
    half_written = "*.orbax-checkpoint-tmp*"
    while not any(run.checkpoints.glob(half_written)):
        if child.process.poll() is not None:
            raise Missed
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.03))
    child.process.kill()
    child.end(-signal.SIGKILL)
    if not any(run.checkpoints.glob(half_written)):
        raise Missed
    return ""


def terminate(run: Run, random: Random) -> str:
    """SIGTERM, after which a run saves and ends."""
    child = run.started(random)
    child.process.terminate()
    child.end(128 + signal.SIGTERM)
    _expect("which is saved: the same command continues from there", child.out)
    return "continuing after step"


def truncate(run: Run, random: Random) -> str:
    """A file of the newest checkpoint cut off, after kill -9."""
    kill(run, random)
    path = _any_file(run.newest(), random)
    os.truncate(path, random.randrange(path.stat().st_size))
    return _passed_over(run)


def delete(run: Run, random: Random) -> str:
    """A file of the newest checkpoint deleted, after kill -9."""
    kill(run, random)
    _any_file(run.newest(), random).unlink()
    return _passed_over(run)


def fill_the_disk(run: Run, random: Random) -> str:
    """No space for the next checkpoint, after kill -9: the run must stop and leave the one before as it is."""
    kill(run, random)
    before = _content(run.newest())
    step = int(run.newest().name)
    child = run.start(full_disk=True)
    child.end(1)
    _expect("cannot write the checkpoint of step", child.err)
    _expect(f"the one of step {step} is intact\n", child.err)
    if _content(run.newest()) != before:
        raise Wrong(f"{run.newest()} has changed")
    return f"continuing after step {step}"


def spoil(run: Run, random: Random) -> str:
    """A step with NaN parameters, once, so that its figures are NaN: the run must stop before any of it is saved."""
    step = random.randrange(2 * INTERVAL, NUM_STEPS)
    child = run.start("nan", str(step))
    child.end(1)
    _expect(f"error: step {step}: found loss nan, expected a finite number.", child.err)
    return f"continuing after step {(step - 1) // INTERVAL * INTERVAL}"


def kill_at_spike(run: Run, random: Random) -> str:
    """Kill -9 just after a step that was skipped because its loss was far beyond all before it."""
    child = run.start()
    child.wait_for_step(SPIKE_STEP + random.randrange(INTERVAL))
    child.process.kill()
    child.end(-signal.SIGKILL)
    skipped = {line["step"]: line["optim/step skipped"] for line in read_metrics(run.folder / JSONL_NAME)}
    if not skipped[SPIKE_STEP]:
        raise Wrong(f"step {SPIKE_STEP} was not skipped")
    return "continuing after step"


def kill_a_worker(run: Run, random: Random) -> None:
    """Kill -9 one of the processes that read the data: the run itself must go on to its end."""
    child = run.start(flags=("--data.worker-processes", "2"))
    child.wait_for_step(random.randrange(1, NUM_STEPS - INTERVAL))
    threads = Path(f"/proc/{child.process.pid}/task").glob("*/children")
    children = [each for thread in threads for each in thread.read_text().split()]
    workers = [each for each in children if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]
    if not workers:
        raise Wrong("has no worker processes")
    os.kill(int(random.choice(workers)), signal.SIGKILL)
    if child.process.poll() is not None:
        raise Missed
    child.end(0)
    if "new ones read on from batch" not in child.err:
        raise Missed  # it had read all that was needed


class Fault(NamedTuple):
    """A way to disturb a run.

    Attributes:
        what: happens, for the table.
        times: how often it is done.
        inject: starts the run and does it; returns what the recovering process must say, None if the run has gone on.
    """

    what: str
    times: int
    inject: Callable[[Run, Random], str | None]


FAULTS = {
    "kill": Fault("kill -9 at a random moment", 12, kill),
    "kill-saving": Fault("kill -9 during a save", 8, kill_while_saving),
    "sigterm": Fault("SIGTERM", 4, terminate),
    "truncated": Fault("a file of the newest checkpoint truncated", 4, truncate),
    "deleted": Fault("a file of the newest checkpoint deleted", 4, delete),
    "worker": Fault("kill -9 of a data worker", 3, kill_a_worker),
    "disk-full": Fault("disk full while saving", 3, fill_the_disk),
    "nan": Fault("a step with NaN figures", 3, spoil),
    "spike": Fault("a spike batch (skipped), kill -9 just after", 3, kill_at_spike),
}


@dataclass(frozen=True, kw_only=True)
class Stress:
    """What to try.

    Attributes:
        seed: of the moments, steps and files that are chosen.
        faults: which, by default all.
        times: how often each, instead of its own number.
        folder: where the runs are made, new or empty; what goes wrong is left there. By default a temporary one.
    """

    seed: int = 0
    faults: tuple[str, ...] = tuple(FAULTS)
    times: int | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name in self.faults:
            if name not in FAULTS:
                raise InputError(f"faults: found {name!r}, expected some of {', '.join(FAULTS)}")
        if self.times is not None and self.times < 1:
            raise InputError(f"times: found {self.times}, expected at least 1")
        if self.folder is not None and self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"folder: found files in {self.folder}, expected an empty folder or none")


def main() -> None:
    """Try every fault and print what became of it; or be one of the processes that are tried."""
    if sys.argv[1:2] == ["harmed"]:
        train_harmed(*_taken_arguments())
        return
    stress = tyro.cli(Stress, description=(__doc__ or "").partition("\n\n")[2])
    workplace = stress.folder or Path(tempfile.mkdtemp(prefix="stress_resume_"))
    prepare(workplace)
    reference = Run(workplace, "undisturbed")
    child = reference.start()
    child.end(0)
    print(f"An undisturbed run of {NUM_STEPS} steps takes {child.recovery:.1f} s to its first step.\n")
    print("| fault | runs | recovered | bit-equal | worst recovery (s) |\n|---|---|---|---|---|", flush=True)
    failed = 0
    for name in stress.faults:
        fault = FAULTS[name]
        times = stress.times or fault.times
        recoveries: list[float] = []
        problems: list[str] = []
        for index in range(times):
            run = Run(workplace, f"{name}-{index}")
            try:
                recoveries.append(disturb(run, fault, Random(f"{stress.seed} {name} {index}")))
                run.check_same(reference)
                shutil.rmtree(run.folder)
            except Wrong as problem:
                problems.append(f"{run.folder}: {problem}")
        worst = f"{max(recoveries):.1f}" if recoveries else "-"
        equal = times - len(problems)
        print(f"| {fault.what} | {times} | {len(recoveries)} | {equal} | {worst} |", flush=True)
        print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
        failed += len(problems)
    if failed:
        raise InputError(f"{workplace}: {failed} runs did not end as the undisturbed one, see above")
    if stress.folder is None:
        shutil.rmtree(workplace)


def disturb(run: Run, fault: Fault, random: Random) -> float:
    """Do the fault and give the same command again.

    Returns:
        Seconds from there to the end of the first step; 0 if the run has gone on by itself.

    Raises:
        Wrong: a process ended otherwise than it should, or did not say what it should.
    """
    for _ in range(_TRIES):
        shutil.rmtree(run.folder, ignore_errors=True)
        try:
            expected = fault.inject(run, random)
        except Missed:
            continue
        if expected is None:
            return 0.0
        child = run.start()
        child.end(0)
        _expect(expected, child.out)
        if child.err or child.recovery is None:
            raise Wrong(f"recovered with {child.err or 'no step left to do'}")
        return child.recovery
    raise Wrong(f"missed the moment {_TRIES} times")


def prepare(workplace: Path) -> None:
    """Write the data and the configuration of all runs."""
    workplace.mkdir(parents=True, exist_ok=True)
    shard = workplace / "tokens.npy"
    data = DataConfig(sources={"counting": SourceConfig(paths=(str(shard),))}, sequence_length=LENGTH)
    # Tokens that count up from the end of a document are soon learned; random ones are a spike.
    tokens = (np.arange(60_000) % 53 + EOS).astype(np.uint16)
    window = epoch_order(len(tokens) // LENGTH, data.seed, epoch=1)[(SPIKE_STEP - 1) * BATCH_SIZE]
    spike = np.random.default_rng(0).integers(EOS + 1, VOCAB_SIZE, LENGTH)
    tokens[window * LENGTH :][:LENGTH] = spike
    tokens.tofile(shard)
    model = ModelConfig.preset(
        "tiny",
        vocab_size=VOCAB_SIZE,
        eos_token_id=EOS,
        num_hidden_layers=2,
        layer_types=("linear_attention", "full_attention"),
    )
    config = RunConfig(
        output_folder=workplace / "run",
        num_steps=NUM_STEPS,
        batch_size=BATCH_SIZE,
        model=model,
        data=data,
        optimizer=OptimizerConfig(skip_step=SkipStepConfig()),
        schedule=ScheduleConfig(learning_rate=1e-2, warmup=20),
        checkpoint=CheckpointConfig(interval=INTERVAL, keep_last=3),
        logging=LoggingConfig(interval=1),
    )
    (workplace / "run.yaml").write_text(to_yaml(config), encoding="utf-8")


def train_harmed(kind: str, step: int) -> None:
    """Train as scripts/train.py does, but with ``kind`` of harm done to one step."""
    make = trainer.make_train_step
    harm = {"nan": _with_nan}[kind]
    with patch.object(trainer, "make_train_step", lambda *all_of: harm(make(*all_of), step)):
        trainer.train(from_command_line(RunConfig))


def _with_nan(train_step: TrainStep, at: int) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    def harmed(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if int(state.step) == at - 1:
            state = state._replace(model=jax.tree.map(lambda leaf: leaf * jnp.nan, state.model))
        return train_step(state, batch)

    return harmed


def _taken_arguments() -> tuple[str, int]:
    """The kind and step of harm, taken from the command line so that a training's own arguments are left."""
    _, kind, step = sys.argv[1:4]
    del sys.argv[1:4]
    return kind, int(step)


def _expect(text: str, found: str) -> None:
    if text not in found:
        raise Wrong(f"said {found!r} instead of {text!r}")


def _any_file(checkpoint: Path, random: Random) -> Path:
    listed: dict[str, Any] = json.loads((checkpoint / LIST_NAME).read_text())
    return checkpoint / random.choice([name for name, size in listed.items() if size])


def _passed_over(run: Run) -> str:
    return f"passed over and renamed to damaged-{run.newest().name}: {run.newest()}: "


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    run_script(main)
