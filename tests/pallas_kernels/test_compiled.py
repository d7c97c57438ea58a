"""The kernels compiled for an H200 that is not there, with CUDA's wheels and nothing else."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11"),
    pytest.mark.skipif(
        find_spec("jax_cuda13_plugin") is None, reason="needs the plan extra: pip install 'hybrid-jax[plan]'"
    ),
]

WHOLE_OP = """
import functools
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from hybrid_jax.gpus import gpu_kind
from hybrid_jax.planning.target import described_devices, use_described_gpus

use_described_gpus()
from pallas_kernels.gated_delta_rule import chunk_gated_delta_rule, dispatch, recurrent_gated_delta_rule

dispatch.gpu_refusal = lambda: None
mesh = Mesh(np.array(described_devices(gpu_kind("h200"), 4)).reshape(2, 2), ("rows", "heads"))
explicit = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * 2)
one_device = Mesh(mesh.devices[:1, :1], mesh.axis_names)
TOKENS, STATES = P("rows", None, "heads"), P("rows", "heads")
FORWARD, BACKWARD = 2, 2
op = functools.partial(chunk_gated_delta_rule, use_qk_l2norm=True)

def arrays(mesh, length=128, tokens=TOKENS, states=STATES):
    def array(*shape, dtype=jnp.bfloat16, spec=tokens):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    q, v, g = array(4, length, 4, 96), array(4, length, 4, 192), array(4, length, 4, dtype=jnp.float32)
    return q, q, v, g, g, array(4, 4, 96, 192, dtype=jnp.float32, spec=states)

def loss(rule):
    def total(*xs):
        o, state = rule(*xs[:5], initial_state=xs[5])
        return jnp.sum(o.astype(jnp.float32) ** 2) + jnp.sum(state**2)
    return total

def gradient(rule):
    return jax.grad(loss(rule), argnums=tuple(range(6)))

def check(name, function, arguments, num_kernels, split=False):
    lowered = jax.jit(function).lower(*arguments)
    found = lowered.as_text().count("stablehlo.custom_call @mosaic_gpu_v2")
    assert found == num_kernels, (name, found)
    if split:
        gathers = re.findall("all-gather|all-to-all|collective-permute", lowered.compile().as_text())
        assert not gathers, (name, gathers)

sharded = jax.shard_map(gradient(op), mesh=mesh, in_specs=(*[TOKENS] * 5, STATES), out_specs=(*[TOKENS] * 5, STATES))
check("shard_map", sharded, arrays(mesh), FORWARD + BACKWARD, split=True)
with jax.set_mesh(explicit):
    check("Explicit axes", gradient(op), arrays(explicit), FORWARD + BACKWARD, split=True)
q, k, v, g, beta, state = arrays(explicit)
whole_gates = arrays(explicit, tokens=P())[3]
check("Explicit axes, gates that lie otherwise", op, (q, k, v, whole_gates, beta), FORWARD, split=True)
documents = jax.ShapeDtypeStruct((4, 128), jnp.int32, sharding=NamedSharding(explicit, P("rows")))
packed = lambda *xs: op(*xs[:5], segment_ids=xs[5])
check("Explicit axes, documents and no state", packed, (q, k, v, g, beta, documents), FORWARD, split=True)
check("Auto axes, which only the arrays know", gradient(op), arrays(mesh), 0)
with jax.set_mesh(mesh):
    check("Auto axes, set", gradient(op), arrays(mesh), 0)
one = arrays(one_device, tokens=P(), states=P())
remat = gradient(jax.checkpoint(op))
check("remat", remat, one, 2 * FORWARD + BACKWARD)

def layers(*xs):
    def layer(v, _):
        return jax.checkpoint(lambda v: op(xs[0], v[..., :96], v, *xs[3:5], initial_state=xs[5])[0])(v), None
    return jnp.sum(jax.lax.scan(layer, xs[2], None, length=3)[0].astype(jnp.float32))

check("scan of remat", jax.grad(layers, argnums=2), one, 2 * FORWARD + BACKWARD)
rows = lambda rule: jax.vmap(lambda *xs: gradient(rule)(*(x[None] for x in xs)))
check("vmap", rows(op), one, FORWARD + BACKWARD)
decode = jax.jit(lambda *xs: recurrent_gated_delta_rule(*xs[:5], initial_state=xs[5]), donate_argnums=5)
text = decode.lower(*arrays(one_device, length=1, tokens=P(), states=P())).compile().as_text()
copies = [line for line in text.splitlines() if re.search(r"= f32\\[4,4,96,192\\]\\S* copy\\(", line)]
assert not copies and "mosaic_gpu" in text, text
"""


def run(*command: str) -> str:
    # Whatever toolkit the machine has must not be needed.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=400, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_tuned_kernel_spills_and_none_wants_too_much_shared_memory():
    table = run(str(ROOT / "scripts/compile_kernels.py"))
    rows = re.findall(r"│ (.+?) +│ (\d+ / \d+) +│ (\d+) +│ (\d+) +│ ([\d.]+) +│", table)
    assert len(rows) == 18, table
    assert {shape for _, shape, *_ in rows} == {"96 / 192", "128 / 128", "256 / 256"}
    assert not any(int(spilled) for _, shape, _, spilled, _ in rows if shape != "256 / 256")


def test_the_whole_op_under_every_transformation():
    """Shards gather nothing; remat, scan and vmap keep to the kernels; a donated state is not copied."""
    run("-c", WHOLE_OP)
