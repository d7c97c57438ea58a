"""Real processes of one run on loopback: they compute what one process does, and end together however one ends."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from copy import copy
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from hybrid_jax.data.config import PreferenceConfig
from hybrid_jax.sharding import MeshConfig
from hybrid_jax.training.metrics import read_metrics
from hybrid_jax.training.run_config import CheckpointConfig, DpoConfig, LoggingConfig
from hybrid_jax.training.start import StartConfig
from hybrid_jax.yaml_config import to_yaml
from tests.environment import ROOT, child_environment
from tests.training.toy import LENGTH, toy_model, toy_run, write_pairs

NUM_DEVICES, NUM_STEPS, SAVED = 8, 6, 3
ENDLESS = ("--num-steps", "1000000", "--checkpoint.interval", "1000000")


class Cluster:
    """Starts runs of several processes, which share one compilation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "run.yaml"
        run = toy_run(
            folder,
            num_steps=NUM_STEPS,
            mesh=MeshConfig(fsdp=2, context=4),
            checkpoint=CheckpointConfig(interval=SAVED),
            logging=LoggingConfig(interval=1),
        )
        self.config.write_text(to_yaml(run))

    def start(
        self, name: str, num_processes: int, *flags: str, one: tuple[str, ...] = (), shell_prefix: str = ""
    ) -> list:
        """Train into the folder ``name``; the last process gets the flags ``one`` and the shell's command as well."""
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        environment = child_environment(
            NUM_DEVICES // num_processes, compiled=self.folder / f"compiled_{num_processes}"
        )
        command = [sys.executable, str(ROOT / "scripts/train.py"), str(self.config)]
        command += ["--output-folder", str(self.folder / name), *flags]
        processes = []
        for index in range(num_processes):
            joining = ["--distributed.coordinator-address", address]
            joining += [
                "--distributed.num-processes",
                str(num_processes),
                "--distributed.process-id",
                str(index),
            ]
            own = [*command, *(joining if num_processes > 1 else ())]
            if index == num_processes - 1:
                own += one
                if shell_prefix:
                    own = ["bash", "-c", f'{shell_prefix} && exec "$@"', "bash", *own]
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(own, env=environment, stdout=pipe, stderr=pipe, text=True))
        return processes

    def finish(self, name: str, num_processes: int, *flags: str) -> None:
        """Train to the end."""
        for code, _, err in outcomes(self.start(name, num_processes, *flags)):
            assert code == 0, err

    def losses(self, name: str) -> list[float]:
        lines = list(read_metrics(self.folder / name / "metrics.jsonl"))
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        return [line["train/CE loss"] for line in lines]

    def arrays(self, name: str, step: int = NUM_STEPS) -> dict[str, np.ndarray]:
        folder = self.folder / name / "checkpoints" / str(step) / "model"
        with closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
            names = reader.metadata(folder).item_metadata.tree
            wanted = {leaf: ocp.RestoreArgs(restore_type=np.ndarray) for leaf in names}
            return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=wanted))


def outcomes(processes: list, timeout: float = 240) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each process; those that do not end in time are killed and fail the test."""
    until = time.monotonic() + timeout
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(1.0, until - time.monotonic()))
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return found


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= step:
            return
    raise AssertionError(process.stderr.read())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Cluster:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.finish("one", 1)
    return cluster


@pytest.fixture(scope="module")
def two(cluster) -> list[tuple[int, str, str]]:
    return outcomes(cluster.start("two", 2))


def assert_same_run(cluster: Cluster, name: str) -> None:
    np.testing.assert_allclose(cluster.losses(name), cluster.losses("one"), rtol=1e-5)
    found = cluster.arrays(name)
    for leaf, expected in cluster.arrays("one").items():
        np.testing.assert_allclose(
            found[leaf], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=leaf
        )


def test_two_processes_train_as_one(cluster, two):
    assert [code for code, *_ in two] == [0, 0], two
    assert_same_run(cluster, "two")


@pytest.mark.slow
def test_two_processes_learn_preferences_as_one(cluster):
    """From what another run has ended with, moments included."""
    sides = {
        side: write_pairs(cluster.folder, side, seed) for seed, side in enumerate(("chosen", "rejected"), 1)
    }
    start = StartConfig(
        path=str(cluster.folder / "one"), optimizer_state=True, model_changes=("pad_token_id",)
    )
    run = toy_run(
        cluster.folder,
        model=toy_model(pad_token_id=1),
        num_steps=3,
        data=PreferenceConfig(**sides, sequence_length=LENGTH),
        dpo=DpoConfig(),
        start_from=start,
        mesh=MeshConfig(fsdp=2, context=4),
        logging=LoggingConfig(interval=1),
    )
    preferences = copy(cluster)
    preferences.config = cluster.folder / "preferences.yaml"
    preferences.config.write_text(to_yaml(run))
    for name, num_processes in (("alone", 1), ("together", 2)):
        preferences.finish(name, num_processes)
    expected, found = (preferences.arrays(name, 3) for name in ("alone", "together"))
    for leaf, array in expected.items():
        np.testing.assert_allclose(
            found[leaf], array, rtol=1e-5, atol=1e-5 * np.abs(array).max(), err_msg=leaf
        )
    references = [
        np.load(path)
        for name in ("alone", "together")
        for path in (cluster.folder / name).glob("reference-*")
    ]
    np.testing.assert_allclose(*references, rtol=1e-5)


def test_only_one_process_talks(two):
    (_, talk, _), (_, silence, errors) = two
    assert f"step {NUM_STEPS}/{NUM_STEPS}" in talk
    assert (silence, errors) == ("", "")


@pytest.mark.slow
def test_four_processes_train_as_one(cluster):
    cluster.finish("four", 4)
    assert_same_run(cluster, "four")


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 4])
def test_another_number_of_processes_continues(cluster, two, num_processes):
    name = f"two, then {num_processes}"
    shutil.copytree(cluster.folder / "two", cluster.folder / name)
    shutil.rmtree(cluster.folder / name / "checkpoints" / str(NUM_STEPS))
    cluster.finish(name, num_processes)
    assert_same_run(cluster, name)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(cluster):
    processes = cluster.start("stopped", 2, *ENDLESS)
    wait_for_step(processes[0], 3)
    processes[1].send_signal(signal.SIGTERM)
    (code, out, _), (other_code, *_) = outcomes(processes)
    assert (code, other_code) == (143, 143)
    step = int(out.partition("stopped after step ")[2].partition(",")[0])
    assert (cluster.folder / "stopped/checkpoints" / str(step)).is_dir()
    assert len(cluster.losses("stopped")) == step


@pytest.mark.slow
def test_all_end_in_time_when_one_is_given_a_grace_period(cluster):
    processes = cluster.start("grace", 2, *ENDLESS, "--checkpoint.grace-seconds", "0.001")
    wait_for_step(processes[0], 3)
    processes[1].send_signal(signal.SIGTERM)
    (code, _, err), (other_code, *_) = outcomes(processes, timeout=60)
    assert (code, other_code) == (143, 143)
    assert err.startswith("process 1: not saved within 0.001 s of SIGTERM (checkpoint.grace_seconds): ")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_all_pass_over_the_same_damaged_checkpoint(cluster, two):
    name = "two, damaged"
    shutil.copytree(cluster.folder / "two", cluster.folder / name)
    checkpoints = cluster.folder / name / "checkpoints"
    next((checkpoints / str(NUM_STEPS) / "model").rglob("process_1")).unlink()
    (_, out, _), (_, silence, errors) = found = outcomes(cluster.start(name, 2))
    assert [code for code, *_ in found] == [0, 0], found
    assert out.startswith(
        f"passed over and renamed to damaged-{NUM_STEPS}: {checkpoints}/{NUM_STEPS}: model/"
    )
    assert f"continuing after step {SAVED}" in out
    assert (silence, errors) == ("", "")
    assert_same_run(cluster, name)


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_all_end_when_one_is_killed(cluster, killed):
    processes = cluster.start(f"killed {killed}", 2, *ENDLESS)
    wait_for_step(processes[0], 3)
    processes[killed].kill()
    code, _, err = outcomes(processes, timeout=60)[1 - killed]
    if killed == 0:  # it runs the service that the others hang on: jax itself ends them
        assert code not in (0, None)
        assert "another task died" in err
    else:
        assert code == 1
        assert err.startswith("error: lost another process of the run: ")
        assert err.count("\n") == 1


@pytest.mark.slow
def test_all_end_when_one_hangs(cluster):
    processes = cluster.start("hanging", 2, *ENDLESS, "--distributed.heartbeat-timeout", "5")
    wait_for_step(processes[0], 3)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        _, err = processes[0].communicate(timeout=60)
    finally:
        processes[1].kill()
        processes[1].communicate()
    assert processes[0].returncode not in (0, None)
    assert "heartbeat" in err


def test_the_first_error_of_any_process_ends_all_and_is_told_once(cluster):
    found = outcomes(cluster.start("differing", 2, one=("--optimizer.weight-decay", "0.2")), timeout=60)
    assert [code for code, *_ in found] == [1, 1]
    (_, out, err), (_, silence, errors) = found
    assert err.splitlines()[-1] == (
        "process 1: error: process 1 has another run than process 0: optimizer.weight_decay: "
        "found 0.2, process 0 has 0.1. Give all processes the same file, flags and data"
    )
    assert (out, silence, errors) == ("", "", "")
    assert not (cluster.folder / "differing").exists()


@pytest.mark.slow
def test_all_end_when_one_cannot_write_its_part_of_a_checkpoint(cluster):
    flags = ("--num-steps", "1000000", "--checkpoint.interval", "5")
    # Files beyond 16 KiB fail as on a full disk.
    found = outcomes(cluster.start("limited", 2, *flags, shell_prefix="ulimit -f 16"), timeout=60)
    assert [code for code, *_ in found] == [1, 1]
    (_, _, err), (_, _, silence) = found
    folder = cluster.folder / "limited/checkpoints"
    assert err.startswith(
        f"process 1: error: {folder}: process 1 cannot write its part of the checkpoint of step 5: "
    )
    assert err.endswith("File too large; there is no earlier one\n")
    assert silence == ""


def test_a_coordinator_that_does_not_answer(cluster):
    first, second = cluster.start("lonely", 2, "--distributed.initialization-timeout", "3")
    first.kill()
    first.communicate()
    ((code, _, err),) = outcomes([second], timeout=60)
    assert code == 1
    assert err.startswith("error: distributed.coordinator_address: process 0 cannot be reached at 127.0.0.1:")
    assert err.endswith(" within 3 s: Connection refused\n")
