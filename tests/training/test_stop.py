"""A grace period: a process that was asked to end does so in time, whatever it waits for."""

import signal
import subprocess
import sys
import time

import pytest

from hybrid_jax.training.metrics import read_metrics
from hybrid_jax.training.run_config import CheckpointConfig, LoggingConfig
from hybrid_jax.yaml_config import to_yaml
from tests.environment import child_environment
from tests.training.toy import ATTENTION_ONLY, toy_model, toy_run

LONG_STEP = """
import os, signal, sys, time
from hybrid_jax.training.stop import StopRequest

with StopRequest(grace_seconds=float(sys.argv[1])) as stop:
    os.kill(os.getpid(), signal.Signals[sys.argv[2]])
    time.sleep(float(sys.argv[3]))
assert stop.reached(7)
stop.end_process()
"""
# A mutex that is never unlocked: a native call that no signal interrupts, so that Python cannot run its handlers.
STUCK_IN_NATIVE_CODE = """
import ctypes, os, signal, threading
from hybrid_jax.training.stop import StopRequest

lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
with StopRequest(grace_seconds=0.2):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    lock(mutex)
    lock(mutex)
"""
# The run's only save is asked to end when the loop is long over.
SIGNAL_IN_LAST_SAVE = """
import os, pathlib, signal, sys, time
from hybrid_jax.training import checkpointing, trainer
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.yaml_config import load

write = checkpointing.write_file_list
def write_late(folder):
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    write(folder)
checkpointing.write_file_list = write_late
trainer.train(load(RunConfig, pathlib.Path(sys.argv[1])))
"""
# The list of files is the last thing written before a checkpoint gets its name.
LONG_SAVE = """
import pathlib, sys, time
from hybrid_jax.training import checkpointing, trainer
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.yaml_config import load

write = checkpointing.write_file_list
checkpointing.write_file_list = lambda folder: write(folder) if folder.name.startswith("5.") else time.sleep(60)
trainer.train(load(RunConfig, pathlib.Path(sys.argv[1])))
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=child_environment(), stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize(
    ("grace", "number", "length", "code", "said"),
    [
        (0.2, "SIGTERM", 50, 143, "not saved within 0.2 s of SIGTERM (checkpoint.grace_seconds): "),
        (50, "SIGTERM", 0.2, 143, ""),
        (0.2, "SIGINT", 1, -signal.SIGINT, "Traceback"),
    ],
    ids=["too long", "in time", "only SIGTERM has one"],
)
def test_the_end_comes_in_time(grace, number, length, code, said):
    began = time.monotonic()
    process = start(LONG_STEP, grace, number, length)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 40
    assert process.returncode == code, err
    assert err.startswith(said)
    assert said or not err


def test_a_native_call_that_never_returns_is_ended():
    process = start(STUCK_IN_NATIVE_CODE)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert err.startswith("not saved within 0.2 s of SIGTERM")


def test_a_signal_during_the_last_save_lets_it_end(tmp_path):
    fields = {"num_steps": 2, "checkpoint": CheckpointConfig(interval=1000)}
    config = toy_run(tmp_path, model=toy_model(**ATTENTION_ONLY), **fields)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    process = start(SIGNAL_IN_LAST_SAVE, tmp_path / "run.yaml")
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    assert [path.name for path in (config.output_folder / "checkpoints").iterdir()] == ["2"]


def test_a_save_that_takes_too_long_is_abandoned(tmp_path):
    config = toy_run(
        tmp_path,
        model=toy_model(**ATTENTION_ONLY),
        num_steps=1_000_000,
        checkpoint=CheckpointConfig(interval=1_000_000, permanent_steps=(5,), grace_seconds=1.0),
        logging=LoggingConfig(interval=1),
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    process = start(LONG_SAVE, tmp_path / "run.yaml")
    folder = config.output_folder / "checkpoints"
    for _ in process.stdout:
        if (folder / "5").exists():
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert err.endswith("what was saved before is intact, and the same command continues from there\n")
    last = list(read_metrics(config.output_folder / "metrics.jsonl"))[-1]["step"]
    found = {path.name.partition(".")[0] for path in folder.iterdir()}
    assert found == {"5", str(last)}, "the last was being saved"
    assert not (folder / str(last)).exists()
