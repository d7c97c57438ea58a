"""How processes find each other: flags, SLURM, Kubernetes; and what is wrong with them."""

import jax
import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.processes import DistributedConfig, joined, joining

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


@pytest.fixture
def initialized(monkeypatch) -> list[dict]:
    """The arguments ``jax.distributed.initialize`` is called with, which then fails."""
    calls: list[dict] = []

    def initialize(**arguments: object) -> None:
        calls.append(arguments)
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name in (*SLURM, *KUBERNETES):
        monkeypatch.delenv(name, raising=False)
    return calls


def join(config: DistributedConfig) -> None:
    with joined(config):
        pass


def arguments_of(initialized: list[dict], config: DistributedConfig) -> dict:
    with pytest.raises(InputError) as caught:
        join(config)
    assert (
        str(caught.value) == "distributed: cannot join the other processes: DEADLINE_EXCEEDED: nobody there"
    )
    (arguments,) = initialized
    assert arguments.pop("heartbeat_timeout_seconds") == 30
    assert arguments.pop("initialization_timeout") == 300
    return arguments


def test_alone_nothing_is_joined(initialized):
    join(DistributedConfig())
    assert initialized == []


def test_flags(initialized):
    config = DistributedConfig(coordinator_address="node3:1234", num_processes=2, process_id=0)
    assert arguments_of(initialized, config) == {
        "coordinator_address": "node3:1234",
        "num_processes": 2,
        "process_id": 0,
        "cluster_detection_method": "deactivate",
    }


def test_slurm_with_one_task_on_each_host_leaves_it_all_devices(initialized, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert arguments_of(initialized, DistributedConfig()) == {
        "cluster_detection_method": "slurm",
        "local_device_ids": (),
    }


def test_slurm_with_a_task_for_each_device(initialized, monkeypatch):
    for name, value in {**SLURM, "SLURM_NTASKS": "16"}.items():
        monkeypatch.setenv(name, value)
    assert arguments_of(initialized, DistributedConfig()) == {"cluster_detection_method": "slurm"}


def test_a_shell_or_a_single_task_under_slurm_is_alone(initialized, monkeypatch):
    for name, value in {**SLURM, "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    join(DistributedConfig())
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    join(DistributedConfig())
    assert initialized == []


def test_kubernetes(initialized, monkeypatch):
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(joining, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"the package kubernetes is missing: pip install 'hybrid-jax\[k8s\]'"
    ):
        join(DistributedConfig())
    monkeypatch.setattr(joining, "find_spec", lambda name: object())
    assert arguments_of(initialized, DistributedConfig()) == {}


def test_one_process_stays_alone_whatever_the_cluster_says(initialized, monkeypatch):
    for name, value in {**SLURM, **KUBERNETES}.items():
        monkeypatch.setenv(name, value)
    join(DistributedConfig(num_processes=1))
    assert initialized == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_processes": 2}, "coordinator_address: found nothing, expected a value beside num_processes"),
        (
            {"coordinator_address": "a:1", "process_id": 0},
            "num_processes: found nothing, expected a value beside coordinator_address, process_id",
        ),
        (
            {"coordinator_address": "a", "num_processes": 2, "process_id": 0},
            "coordinator_address: found 'a', expected HOST:PORT of process 0",
        ),
        (
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 2},
            "process_id: found 2, expected 0 to 1",
        ),
        ({"num_processes": 0}, "num_processes: found 0, expected at least 1"),
        ({"heartbeat_timeout": 0}, "heartbeat_timeout: found 0, expected at least 1"),
    ],
)
def test_contradictory_flags(fields, message):
    with pytest.raises(InputError) as caught:
        DistributedConfig(**fields)
    assert str(caught.value) == message
