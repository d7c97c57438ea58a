"""The chunked form in plain JAX."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.gated_delta_rule import chunk_gated_delta_rule
from tests import tolerances
from tests.pallas_kernels import reference
from tests.pallas_kernels.conformance import (
    NAMES,
    GatedDeltaRuleConformance,
    assert_close,
    call,
    relative_error,
    run,
)
from tests.pallas_kernels.inputs import PACKINGS, make_inputs, packed_inputs


class TestChunked(GatedDeltaRuleConformance):
    op = staticmethod(functools.partial(chunk_gated_delta_rule, implementation="xla"))

    @pytest.mark.parametrize("chunk_size", [16, 32, 128])
    def test_any_chunk_size(self, chunk_size):
        inputs, segment_ids = packed_inputs(PACKINGS["padding everywhere"])
        found = run(self.op, inputs, segment_ids, chunk_size=chunk_size)
        assert_close(found, reference.float64(*inputs, segment_ids))


def test_float64_is_exact():
    """The algebra, free of rounding: any slip in a formula shows."""
    inputs, segment_ids = packed_inputs(PACKINGS["padding everywhere"])
    expected = reference.float64(*inputs, segment_ids)
    with jax.enable_x64(True):
        inputs = jax.tree.map(np.float64, inputs)
        found = run(chunk_gated_delta_rule, inputs, segment_ids)
    assert_close(found, expected, tolerances.FLOAT64, tolerances.FLOAT64)


def test_keeps_no_more_than_its_inputs_and_a_state_per_chunk():
    length, heads, (key_dim, value_dim) = 256, 4, (12, 24)
    arrays, _ = make_inputs(batch=1, length=length, heads=(2, heads), dims=(key_dim, value_dim))
    arrays = tuple(jnp.asarray(arrays[name]) for name in reference.DIFFERENTIABLE)
    _, pullback = jax.vjp(lambda *xs: call(chunk_gated_delta_rule, xs, None, {}), *arrays)
    kept = sum(math.prod(x.shape) for x in jax.tree.leaves(pullback))
    inputs = sum(math.prod(x.shape) for x in arrays[:5])
    states = (length // 64) * heads * key_dim * value_dim
    assert kept <= inputs + states


def test_shards_over_rows_and_heads():
    inputs, segment_ids = packed_inputs(PACKINGS["padding everywhere"])
    inputs = jax.tree.map(jnp.asarray, inputs)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    tokens = P("data", None, "model")

    def sharded_op(q, k, v, g, beta, initial_state, segment_ids):
        def op(*xs):
            return call(chunk_gated_delta_rule, xs[:6], xs[6], {})

        in_specs = (*[tokens] * 5, P("data", "model"), P("data"))
        sharded = jax.shard_map(op, mesh=mesh, in_specs=in_specs, out_specs=(tokens, P("data", "model")))
        return sharded(q, k, v, g, beta, initial_state, segment_ids)

    found = run(sharded_op, inputs, segment_ids)
    expected = run(chunk_gated_delta_rule, inputs, segment_ids)
    for name in NAMES:
        assert relative_error(found[name], expected[name]) <= tolerances.FLOAT32_REORDERED, name


def test_splits_itself_over_explicit_axes():
    """Rows and heads where the values lie; the other arrays wherever they are, the state nowhere if it is left out."""
    inputs, segment_ids = packed_inputs(PACKINGS["padding everywhere"])
    mesh = jax.make_mesh((2, 2, 2), ("data", "model", "other"), axis_types=(AxisType.Explicit,) * 3)

    def put(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    arrays, (d_o, d_state) = inputs
    spread = {name: put(x, "data", None, "model" if name in "qkv" else None) for name, x in arrays.items()}
    cotangents = put(d_o, "data", None, "model"), put(d_state, "data", "model")
    found = run(chunk_gated_delta_rule, (spread, cotangents), put(segment_ids, "data"))
    expected = run(chunk_gated_delta_rule, inputs, segment_ids)
    for name in NAMES:
        assert relative_error(found[name], expected[name]) <= tolerances.FLOAT32_REORDERED, name

    empty = {**arrays, "initial_state": np.zeros_like(arrays["initial_state"])}
    del spread["initial_state"]
    op = jax.jit(chunk_gated_delta_rule)
    for x, y in zip(op(**spread), op(**empty), strict=True):
        assert relative_error(x, y) <= tolerances.FLOAT32_REORDERED
