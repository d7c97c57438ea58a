"""Reading ahead in worker processes: the same batches, whoever is killed, and nobody left behind."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import closing
from itertools import islice

import numpy as np
import pytest

from hybrid_jax.data import read_ahead
from hybrid_jax.data.config import DataConfig, LoaderConfig, SourceConfig
from hybrid_jax.data.pipeline import make_batches
from hybrid_jax.data.read_ahead import ReadAhead
from hybrid_jax.errors import InputError
from tests.environment import child_environment

LENGTH = 4


@pytest.fixture
def config(tmp_path):
    np.arange(400, dtype="<u2").tofile(tmp_path / "a.npy")
    sources = {"only": SourceConfig(paths=(f"{tmp_path}/a.npy",))}
    return DataConfig(sources=sources, sequence_length=LENGTH, worker_processes=2, num_prefetch=1)


def open_batches(config, start_step=0):
    return closing(make_batches(config, 4096, 0, None, 3, start_step))


def test_killed_workers_change_nothing(config, caplog):
    with open_batches(dataclasses.replace(config, worker_processes=0), 5) as batches:
        expected = list(islice(batches, 40))
    with open_batches(config, 5) as batches:
        found = list(islice(batches, 3))
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGKILL)
        found += list(islice(batches, 37))
        assert len(caplog.records) == 1
        assert "terminated unexpectedly with exit code -9: new ones read on from batch " in caplog.text
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                assert type(one[name]) is np.ndarray
                np.testing.assert_array_equal(one[name], other[name])
    assert multiprocessing.active_children() == []


class Deadly:
    """Kills whoever reads batch 2."""

    def __len__(self):
        return 9

    def __getitem__(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"step": np.array([step])}


def test_a_batch_that_kills_every_worker_ends_the_run(monkeypatch, caplog):
    monkeypatch.setattr(read_ahead, "_MAX_RESTARTS", 1)
    config = LoaderConfig(sequence_length=LENGTH, worker_processes=1, num_prefetch=1)
    # Batch 1 may still be on its way when its reader dies of the next.
    message = r"died 2 times before batch [12] came, .* exit code -9"
    with closing(ReadAhead(Deadly(), config, 1)) as batches, pytest.raises(ChildProcessError, match=message):
        list(batches)
    assert len(caplog.records) >= 2


def test_bad_data_is_the_same_error_from_a_worker(config, tmp_path):
    np.full(400, 5000, dtype="<u2").tofile(tmp_path / "a.npy")
    alone = dataclasses.replace(config, worker_processes=1)
    with open_batches(alone) as batches, pytest.raises(InputError, match=r"a\.npy: found token id 5000"):
        next(batches)


LOOP = """
import sys
from hybrid_jax.cli import run_script
from hybrid_jax.data.config import DataConfig, SourceConfig
from hybrid_jax.data.pipeline import make_batches

def main():
    config = DataConfig(sources={"only": SourceConfig(paths=(sys.argv[1],))}, sequence_length=4, worker_processes=2)
    for step, batch in enumerate(make_batches(config, 4096, 0, None, 3)):
        if step == 5:
            print("running", flush=True)
        if step == 5 and sys.argv[2] == "leave":
            return

if __name__ == "__main__":
    run_script(main)
"""


@pytest.mark.parametrize(
    ("ending", "code", "stderr"), [("leave", 0, ""), ("interrupt", 130, "interrupted\n"), ("kill", -9, None)]
)
def test_workers_end_with_the_run(config, tmp_path, ending, code, stderr):
    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(script), config.sources["only"].paths[0], ending],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
        start_new_session=True,
    )
    with process:
        assert process.stdout.readline() == "running\n"
        if ending == "interrupt":
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        elif ending == "kill":
            process.kill()
        # Workers hold these pipes too: there is no end to read before they have ended.
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr is None or errors == stderr
