"""Where the kernels do not serve: each refusal says why, before anything of a kernel is touched."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.gated_delta_rule import chunk_gated_delta_rule, dispatch, recurrent_gated_delta_rule
from tests.pallas_kernels.inputs import make_inputs

NAMES = ("q", "k", "v", "g", "beta")
TOKENS = P("data", None, "model")


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    monkeypatch.setattr(dispatch, "gpu_refusal", lambda: None)


def arrays(length=2):
    inputs, _ = make_inputs(batch=2, length=length, heads=(2, 2), dims=(8, 64))
    return [jnp.asarray(inputs[name], jnp.bfloat16 if name in "qkv" else jnp.float32) for name in NAMES]


def mesh(kind):
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)


def refuses(reason, op, inputs):
    with pytest.raises(ValueError, match=f"^implementation 'mosaic_gpu' does not serve .* here: {reason}"):
        jax.jit(functools.partial(op, implementation="mosaic_gpu")).trace(*inputs)


@pytest.mark.parametrize("op", [chunk_gated_delta_rule, recurrent_gated_delta_rule])
def test_axes_left_to_the_compiler_whoever_knows_them(op):
    reason = "mesh axes data, model are left to the compiler"
    auto = mesh(AxisType.Auto)
    refuses(reason, op, jax.device_put(arrays(), NamedSharding(auto, TOKENS)))
    with jax.set_mesh(auto):
        refuses(reason, op, arrays())


@pytest.mark.parametrize(
    "specs", [[P(None, "data")] * 3, [P(None, None, None, "model")] * 3, [TOKENS, P(), P()]]
)
def test_explicit_axes_that_split_something_else(specs):
    inputs = arrays()
    inputs[:3] = [
        jax.device_put(x, NamedSharding(mesh(AxisType.Explicit), spec))
        for x, spec in zip(inputs[:3], specs, strict=True)
    ]
    refuses("q, k and v are sharded as .*, expected all over the same axes", chunk_gated_delta_rule, inputs)


def test_decoding_of_what_differs_between_devices():
    state = P("data", "model")
    op = functools.partial(recurrent_gated_delta_rule, implementation="mosaic_gpu")
    split = jax.shard_map(
        op, mesh=mesh(AxisType.Auto), in_specs=(TOKENS,) * 5, out_specs=(TOKENS, state), check_vma=True
    )
    with pytest.raises(ValueError, match="the arrays differ between devices inside shard_map"):
        jax.jit(split).trace(*arrays(length=1))


def test_types_of_64_bits():
    """In which indices come too; plain JAX is left to serve gates in float64."""
    with jax.enable_x64(True):
        q, k, v, g, beta = arrays()
        inputs = q, k, v, g.astype(jnp.float64), beta
        refuses("jax_enable_x64 is on, expected off", chunk_gated_delta_rule, inputs)
        assert jax.eval_shape(chunk_gated_delta_rule, *inputs)[1].dtype == jnp.float64


def test_arrays_that_lie_on_the_cpu_of_a_machine_with_a_gpu(monkeypatch):
    inputs = arrays()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    reason = "the arrays lie on the CPU, expected a GPU"
    with pytest.raises(ValueError, match=reason):
        chunk_gated_delta_rule(*inputs, implementation="mosaic_gpu")
    one = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    refuses(reason, chunk_gated_delta_rule, jax.device_put(inputs, NamedSharding(one, P())))
    with jax.default_device("cpu"):
        refuses(reason, chunk_gated_delta_rule, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs])
