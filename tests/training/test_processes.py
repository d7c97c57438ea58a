"""Real processes of scripts/train.py: stopped in every way, they end in the same bits as one never stopped."""

import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from hybrid_jax.training.metrics import read_metrics
from hybrid_jax.training.run_config import CheckpointConfig, LoggingConfig
from hybrid_jax.yaml_config import to_yaml
from tests.environment import ROOT, child_environment
from tests.training.toy import toy_run

NUM_STEPS, INTERVAL = 150, 7


class Runs:
    """Starts training processes that share one compilation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "run.yaml"
        run = toy_run(
            folder,
            num_steps=NUM_STEPS,
            num_microbatches=2,
            checkpoint=CheckpointConfig(interval=INTERVAL),
            logging=LoggingConfig(interval=1),
        )
        self.config.write_text(to_yaml(run))
        self._environment = child_environment(compiled=folder / "compiled")

    def start(self, name: str, *flags: str, shell_prefix: str = "") -> subprocess.Popen:
        """Train into the folder ``name``."""
        command = [sys.executable, str(ROOT / "scripts/train.py"), str(self.config)]
        command += ["--output-folder", str(self.folder / name), *flags]
        if shell_prefix:
            command = ["bash", "-c", f'{shell_prefix} && exec "$@"', "bash", *command]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self._environment, stdout=pipe, stderr=pipe, text=True)

    def finish(self, name: str, *flags: str, shell_prefix: str = "") -> tuple[int, str, str]:
        """Train to the end: exit code, stdout and stderr."""
        process = self.start(name, *flags, shell_prefix=shell_prefix)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def stop(self, name: str, number: signal.Signals, after: int) -> tuple[int, str, str]:
        """Train and send a signal once ``after`` steps have been reported."""
        process = self.start(name)
        seen = ""
        for line in process.stdout:
            seen += line
            if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= after:
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
        return process.returncode, seen + out, err

    def arrays(self, name: str, step: int) -> dict[str, np.ndarray]:
        """Every array of a checkpoint by item and name."""
        with closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as reader:
            folder = self.folder / name / "checkpoints" / str(step)
            items = {item: reader.restore(folder / item) for item in ("model", "optimizer")}
        return {f"{item}/{leaf}": np.asarray(value) for item in items for leaf, value in items[item].items()}

    def losses(self, name: str) -> list[tuple[int, float]]:
        lines = read_metrics(self.folder / name / "metrics.jsonl")
        return [(line["step"], line["train/CE loss"]) for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("runs"))
    code, _, err = runs.finish("undisturbed")
    assert code == 0, err
    return runs


def test_a_run_stopped_in_every_way_ends_in_the_same_bits(runs):
    code, out, err = runs.stop("disturbed", signal.SIGINT, after=3)
    assert (code, err) == (130, "interrupted\n")
    assert "which is saved: the same command continues from there" in out

    code, out, err = runs.stop("disturbed", signal.SIGTERM, after=20)
    assert (code, err) == (143, "")
    assert "continuing after step" in out

    code, *_ = runs.stop("disturbed", signal.SIGKILL, after=60)
    assert code == -signal.SIGKILL
    assert runs.losses("disturbed")[-1][0] < NUM_STEPS, "killed too late to show anything"

    code, _, err = runs.finish("disturbed")
    assert (code, err) == (0, "")
    expected = runs.arrays("undisturbed", NUM_STEPS)
    found = runs.arrays("disturbed", NUM_STEPS)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert array.dtype == found[name].dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert runs.losses("disturbed") == runs.losses("undisturbed")
    assert [step for step, _ in runs.losses("disturbed")] == list(range(1, NUM_STEPS + 1))


def test_failing_to_write_a_checkpoint_leaves_the_previous_one(runs):
    folder = runs.folder / "limited"
    shutil.copytree(runs.folder / "undisturbed", folder)
    shutil.rmtree(folder / "checkpoints" / str(NUM_STEPS))
    previous = NUM_STEPS - NUM_STEPS % INTERVAL
    (folder / "metrics.jsonl").unlink()
    # Files beyond 16 KiB fail as on a full disk: the arrays do, what is left of the metrics does not.
    code, out, err = runs.finish("limited", shell_prefix="ulimit -f 16")
    assert code == 1, out
    assert err.startswith(f"error: {folder}/checkpoints: cannot write the checkpoint of step {NUM_STEPS}: ")
    assert err.endswith(f"File too large; the one of step {previous} is intact\n")
    assert err.count("\n") == 1, "one error, no traceback"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [str(previous)]
    found = runs.arrays("limited", previous)
    for name, array in runs.arrays("undisturbed", previous).items():
        np.testing.assert_array_equal(found[name], array)


def test_user_errors_exit_with_1_and_no_traceback(runs):
    code, out, err = runs.finish("undisturbed", "--model.intermediate-size", "48")
    assert (code, out) == (1, "")
    assert "made with another model: model.intermediate_size: found 48, the checkpoint has 32" in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
