"""Plans: what is kept and sent, and whole plans where CUDA's compiler is installed (the ``plan`` extra)."""

import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.gpus import gpu_kind
from hybrid_jax.models import create_model
from hybrid_jax.planning.cost import Collective
from hybrid_jax.planning.plan import summarize
from hybrid_jax.sharding import MeshConfig, batch_sharding
from hybrid_jax.training.objectives import LanguageModeling
from hybrid_jax.training.optimizer import OptimizerConfig, make_optimizer
from hybrid_jax.training.schedule import ScheduleConfig, make_schedule
from hybrid_jax.training.state import state_shapes
from hybrid_jax.training.step import saved_activations
from hybrid_jax.yaml_config import to_yaml
from tests.environment import ROOT, child_environment
from tests.training.toy import ATTENTION_ONLY, toy_model, toy_run

needs_cuda_compiler = pytest.mark.skipif(
    find_spec("jax_cuda13_plugin") is None, reason="needs the plan extra: pip install 'hybrid-jax[plan]'"
)


def kept(num_microbatches: int = 1, batch_size: int = 8, **model) -> int:
    """Bytes that a device of a mesh of eight keeps for the backward pass."""
    mesh = MeshConfig(fsdp=2, context=2, tensor=2).make()
    config = toy_model(num_key_value_heads=2, linear_num_key_heads=2, **model)
    schedule = make_schedule(ScheduleConfig(), 10)
    optimizer = make_optimizer(OptimizerConfig(), schedule, jax.eval_shape(partial(create_model, config)))
    state = state_shapes(config, optimizer, 0, mesh)
    rows = jax.ShapeDtypeStruct((batch_size, 512), jnp.int32, sharding=batch_sharding(mesh))
    batch = dict.fromkeys(("input_ids", "labels", "segment_ids"), rows)
    saved = saved_activations(state, batch, LanguageModeling(), mesh, num_microbatches)
    return sum(np.prod(leaf.shape, dtype=int) * leaf.dtype.itemsize for leaf in saved)


def test_activations_kept():
    tokens_of_a_device = 8 * 512 // 4
    layer_input = tokens_of_a_device * 16 * 4
    block = kept(remat="block")
    assert 2 * layer_input <= block <= 6 * layer_input
    assert kept(remat="none") > 3 * block
    assert block < kept(remat="dots") < kept(remat="none")
    assert kept(remat="block", batch_size=16) == pytest.approx(2 * block, rel=0.02)
    assert kept(remat="block", batch_size=16, num_microbatches=2) == block


def test_collectives_by_axis_and_host():
    mesh = {"data": 2, "fsdp": 4, "context": 2, "tensor": 1}  # two hosts of eight
    devices = np.arange(16).reshape(2, 4, 2)
    over_data = devices.reshape(2, 8).T
    over_fsdp = devices.transpose(0, 2, 1).reshape(4, 4)
    over_all = devices.reshape(1, 16)
    found = summarize(
        (
            Collective(kind="all-reduce", num_bytes=1000, times=3, groups=over_data),
            Collective(kind="all-gather", num_bytes=10, times=2, groups=over_fsdp),
            Collective(kind="all-gather", num_bytes=20, times=1, groups=over_fsdp),
            Collective(kind="all-reduce", num_bytes=4, times=1, groups=over_all),
        ),
        mesh,
    )
    assert [(each.kind, each.axes, each.times, each.members, each.per_host) for each in found] == [
        ("all-reduce", ("data",), 3, 2, 1),
        ("all-gather", ("fsdp",), 3, 4, 4),
        ("all-reduce", ("data", "fsdp", "context"), 1, 16, 8),
    ]
    assert [each.crosses_hosts for each in found] == [True, False, True]
    assert [each.num_bytes for each in found] == [3000, 120, 7.5]


def test_kinds_of_gpu():
    with pytest.raises(
        InputError, match="kind: found 'v100', expected one of a100-40gb, a100-80gb, h100-80gb"
    ):
        gpu_kind("v100")


def test_what_leaves_a_host_is_shared_by_its_network_cards():
    mesh = {"data": 1, "fsdp": 16, "context": 1, "tensor": 1}
    everyone = np.arange(16)[None]
    (found,) = summarize((Collective(kind="all-gather", num_bytes=8, times=1, groups=everyone),), mesh)
    assert found.num_bytes == 15 * 8
    # Each host must get the other's eight parts of 8 bytes, through eight cards.
    assert found.network_bytes == 8
    (alone,) = summarize((Collective(kind="all-gather", num_bytes=8, times=1, groups=everyone[:, :8]),), mesh)
    assert alone.network_bytes == 0


def plan(config: str | Path, *flags: str) -> subprocess.CompletedProcess:
    # Whatever toolkit the machine has must not be needed. Optimised, as a plan is of what will run.
    environment = child_environment(COLUMNS="120", PATH="/usr/bin:/bin", JAX_DISABLE_MOST_OPTIMIZATIONS="0")
    command = [sys.executable, str(ROOT / "scripts/plan.py"), str(ROOT / "configs" / config), *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@needs_cuda_compiler
def test_a_run_that_fits():
    flags = ("--gpus", "16", "--kind", "h200", "--batch-size", "16", "--num-microbatches", "1")
    done = plan("ladder/60m.yaml", *flags, "--mesh.data", "2", "--mesh.fsdp", "4", "--mesh.context", "2")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "16 x NVIDIA H200: data 2 x fsdp 4 x context 2 x tensor 1; 131,072 tokens in a step" in out
    assert re.search(r"it fits: [\d.]+ of 129.2 GiB", out)
    assert re.search(r"all-gather +│ fsdp +│ +\d+ │ +[\d.]+ GB │ NVLink", out)
    assert re.search(r"all-reduce +│ data( x context)? +│ +\d+ │ +[\d.]+ GB │ network", out)
    assert re.search(r"collective-permute +│ context", out)
    # 73M weights and an embedding of 38.5M, each float32, on 4 devices.
    parameters = float(re.search(r"parameters \(float32\) +│ +([\d.]+) GiB", out)[1])
    assert parameters == pytest.approx((73.4e6 + 38.5e6) * 4 / 4 / 2**30, rel=0.1)
    assert re.search(r"model FLOPs per token [\d.]+ G; by the roofline a step takes [\d.]+ s, bound by", out)


@needs_cuda_compiler
def test_a_run_that_does_not_fit_says_what_is_largest(tmp_path):
    run = toy_run(tmp_path, model=toy_model(**ATTENTION_ONLY), batch_size=2**22)
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    done = plan(tmp_path / "run.yaml", "--gpus", "1", "--kind", "a100-40gb")
    assert done.returncode == 1
    assert re.search(
        r"it does not fit: [\d.]+ GiB where a run can have 36.8; the largest:\n +[\d.]+ GiB  ", done.stdout
    )
    sizes = [float(size) for size in re.findall(r"^ +([\d.]+) GiB  ", done.stdout, re.MULTILINE)]
    assert len(sizes) == 10
    assert sizes == sorted(sizes, reverse=True)


@needs_cuda_compiler
def test_a_suggestion_fits(tmp_path):
    run = toy_run(tmp_path, model=toy_model(**ATTENTION_ONLY, dtype="bfloat16"), batch_size=4)
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    flags = ("--gpus", "4", "--kind", "a100-40gb")
    done = plan(tmp_path / "run.yaml", *flags, "--suggest")
    assert done.returncode == 0, done.stdout + done.stderr
    suggested = re.match(r"suggested: (--mesh.data 1 --mesh.fsdp 4 --mesh.context 1 .*)\n", done.stdout)
    again = plan(tmp_path / "run.yaml", *flags, *suggested[1].split())
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gpus", "8", "--kind", "v100"), "kind: found 'v100', expected one of a100-40gb"),
        (("--gpus", "8", "--network-gbit", "0"), "network_gbit: found 0.0, expected more than 0"),
        (("--gpus", "8", "--batch-sise", "3"), "unrecognized"),
        pytest.param(
            ("--gpus", "12"), "gpus: found 12, expected 1 to 8 or a multiple of 8", marks=needs_cuda_compiler
        ),
        pytest.param(("--gpus", "8", "--mesh.data", "3"), "mesh: found data 3 x", marks=needs_cuda_compiler),
    ],
)
def test_bad_flags(flags, message):
    done = plan("ladder/60m.yaml", *flags)
    assert done.returncode == 1
    assert message.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
