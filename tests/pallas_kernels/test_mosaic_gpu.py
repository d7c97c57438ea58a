"""The kernels for Hopper GPUs, on a CPU: interpreted as they are, by what watches for races between their threads."""

import functools
import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels.gated_delta_rule import chunk_gated_delta_rule, dispatch, recurrent_gated_delta_rule
from tests import tolerances
from tests.pallas_kernels import reference
from tests.pallas_kernels.conformance import (
    NAMES,
    GatedDeltaRuleInvariances,
    assert_close,
    call,
    errors,
    relative_error,
    run,
)
from tests.pallas_kernels.inputs import HARD_INPUTS, PACKINGS, bfloat16_inputs, make_inputs

pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="the interpreter of Mosaic GPU kernels needs jax 0.11"
)

op = functools.partial(chunk_gated_delta_rule, implementation="mosaic_gpu")
# jax 0.11 prints it, jax 0.12 raises it.
_RACE = "RACE DETECTED"
KERNELS = Path(dispatch.__file__).parent / "mosaic"


@pytest.fixture(autouse=True)
def interpreter(monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "gpu_refusal", lambda: None)
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        yield
    assert _RACE not in capsys.readouterr().out


def check(inputs, segment_ids=None, **options):
    low, rounded = bfloat16_inputs(inputs)
    expected = reference.float64(*rounded, segment_ids, **options)
    found = run(op, low, segment_ids, **options)
    assert_close(found, expected, tolerances.KERNEL_FORWARD, tolerances.KERNEL_GRADIENT)
    return found


@pytest.mark.parametrize(
    ("dims", "length"),
    [((96, 192), 130), ((128, 128), 128), ((64, 64), 65), ((72, 72), 20), ((256, 256), 70), ((32, 264), 70)],
)
def test_head_dims_and_any_length(dims, length):
    check(make_inputs(batch=1, length=length, heads=(1, 1), dims=dims))


def test_value_heads_share_key_heads():
    check(make_inputs(batch=1, length=70, heads=(1, 3), dims=(32, 64)), scale=0.3)


def rows_of(many):
    """Inputs of one batch from those of several."""
    arrays = {name: np.concatenate([each[0][name] for each in many]) for name in many[0][0]}
    return arrays, tuple(np.concatenate([each[1][output] for each in many]) for output in range(2))


def rows_apart(results, number):
    return {name: x[number : number + 1] for name, x in results.items()}


def test_documents_and_padding():
    """Documents of one token, borders at, before and after a chunk's edge, padding anywhere; garbage in it."""
    rows = [row for packing in PACKINGS.values() for row in packing]
    segment_ids = np.array([np.repeat(*np.array(row, np.int32).T) for row in rows], np.int32)
    low, rounded = bfloat16_inputs(make_inputs(*segment_ids.shape, heads=(1, 1), dims=(32, 64)))
    expected = reference.float64(*rounded, segment_ids)
    padding = segment_ids == 0
    for name, garbage in {"q": 1e30, "k": -3e38, "v": np.inf, "g": -np.inf, "beta": 1e20}.items():
        low[0][name] = jnp.where(
            padding.reshape(*padding.shape, *[1] * (low[0][name].ndim - 2)), garbage, low[0][name]
        )
    found = run(op, low, segment_ids)
    assert_close(found, expected, tolerances.KERNEL_FORWARD, tolerances.KERNEL_GRADIENT)
    for name in NAMES:
        if "state" not in name:
            assert not found[name][padding].any(), f"{name} of padding is not zero"


def test_hard_inputs():
    """Repeated keys written with beta near 2, decay by e^-60 and to nothing, none at all."""
    make = functools.partial(make_inputs, batch=1, length=130, heads=(1, 1), dims=(96, 64))
    low, rounded = bfloat16_inputs(rows_of([change(make()) for change in HARD_INPUTS.values()]))
    expected = reference.float64(*rounded)
    found = run(op, low)
    for number, name in enumerate(HARD_INPUTS):
        off = errors(rows_apart(found, number), rows_apart(expected, number))
        repeated = "key" in name
        for output, error in off.items():
            assert np.isfinite(found[output][number]).all(), f"{name}: {output} is not finite"
            is_gradient = output.startswith("d_")
            if repeated:
                allowed = tolerances.KERNEL_REPEATED_GRADIENT if is_gradient else tolerances.KERNEL_REPEATED
            else:
                allowed = tolerances.KERNEL_GRADIENT if is_gradient else tolerances.KERNEL_FORWARD
            if np.linalg.norm(expected[output][number]) == 0:
                allowed = tolerances.KERNEL_OF_NOTHING
            assert error <= allowed, f"{name}: {output} is off by {error:.1e}"


def test_rows_of_zeros_with_and_without_normalisation():
    arrays, cotangents = make_inputs(batch=1, length=70, heads=(1, 1), dims=(32, 64))
    arrays["q"][:, 10:20] = arrays["k"][:, 15:25] = 0
    check((arrays, cotangents))
    check(({**arrays, "q": 3 * arrays["q"], "k": 0.1 * arrays["k"]}, cotangents), use_qk_l2norm=True)


class TestInvariances(GatedDeltaRuleInvariances):
    op = staticmethod(op)
    lengths = (65, 65)
    remat = False  # what the interpreter calls has side effects, which jax.checkpoint refuses
    test_jit_changes_nothing = None  # `test_shard_map_changes_nothing` compares with what is not jitted
    # A document, or the second half of a row, has other chunks when it is alone: what is rounded to bfloat16 differs.
    reordered = tolerances.KERNEL_GRADIENT

    def inputs(self, length):
        low, _ = bfloat16_inputs(make_inputs(length=length, heads=(1, 1), dims=(32, 64)))
        return low


def test_shard_map_changes_nothing():
    """Over one device: the interpreter mixes up kernels that several run at once. `compiled_programs.py` has four."""
    low, _ = bfloat16_inputs(make_inputs(batch=2, length=3, heads=(1, 1), dims=(32, 64)))
    arrays = [low[0][name] for name in reference.DIFFERENTIABLE]
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))

    def rows(*xs):
        return call(op, xs, None, {})

    split = jax.shard_map(rows, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))
    for x, y in zip(jax.jit(split)(*arrays), rows(*arrays), strict=True):
        assert relative_error(x, y) <= tolerances.FLOAT32_RESCHEDULED


@pytest.mark.parametrize(("heads", "dims"), [((2, 4), (96, 192)), ((1, 1), (128, 128)), ((1, 2), (8, 72))])
def test_decode_is_the_recurrence(heads, dims):
    low, _ = bfloat16_inputs(make_inputs(batch=2, length=1, heads=heads, dims=dims))
    arrays = tuple(low[0][name] for name in reference.DIFFERENTIABLE)
    (o, state), (expected_o, expected_state) = (
        jax.jit(
            lambda *xs, name=name: call(
                recurrent_gated_delta_rule, xs, None, {"use_qk_l2norm": True, "implementation": name}
            )
        )(*arrays)
        for name in ("mosaic_gpu", "xla")
    )
    assert o.dtype == jnp.bfloat16
    assert relative_error(o, expected_o) <= tolerances.BFLOAT16
    assert relative_error(state, expected_state) <= tolerances.FLOAT32_REORDERED


def test_decode_forgets_what_it_is_told_to_and_passes_over_padding():
    low, _ = bfloat16_inputs(make_inputs(batch=2, length=1, heads=(1, 2), dims=(32, 64)))
    before = low[0]["initial_state"]
    forgotten = low[0] | {"g": low[0]["g"].at[0, :, 1].set(-jnp.inf)}
    padded = jnp.array([[3], [0]])
    (o, state), (expected_o, expected_state) = (
        recurrent_gated_delta_rule(**inputs, segment_ids=padded, implementation=name)
        for name, inputs in {
            "mosaic_gpu": forgotten | {"initial_state": before.at[0, 1].set(jnp.inf)},
            "xla": forgotten | {"initial_state": before.at[0, 1].set(0)},
        }.items()
    )
    assert relative_error(o, expected_o) <= tolerances.BFLOAT16
    assert relative_error(state, expected_state) <= tolerances.FLOAT32_REORDERED
    np.testing.assert_array_equal(state[1], before[1])
    assert not o[1].any()


def test_decode_can_be_differentiated():
    low, _ = bfloat16_inputs(make_inputs(batch=1, length=1, heads=(1, 1), dims=(8, 64)))
    found, expected = (
        run(functools.partial(recurrent_gated_delta_rule, implementation=name), low)
        for name in ("mosaic_gpu", "xla")
    )
    for name in NAMES:
        assert relative_error(found[name], expected[name]) <= tolerances.BFLOAT16, name


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"v": jnp.float32}, {}, "v is float32, expected bfloat16"),
        ({}, {"chunk_size": 32}, "chunk_size is 32, expected 64"),
        ({"dims": (12, 64)}, {}, "the keys' length is 12, expected a multiple of 8 up to 256"),
        ({"dims": (264, 8)}, {}, "the keys' length is 264, expected a multiple of 8 up to 256"),
        ({"dims": (8, 520)}, {}, "the values' length is 520, expected a multiple of 8 up to 512"),
    ],
)
def test_what_the_kernels_do_not_serve(changes, options, reason, caplog):
    low, _ = bfloat16_inputs(make_inputs(batch=1, length=3, heads=(1, 1), dims=changes.get("dims", (8, 64))))
    arrays = low[0] | {name: low[0][name].astype(dtype) for name, dtype in changes.items() if name != "dims"}
    with pytest.raises(ValueError, match=re.escape(reason)):
        op(**arrays, **options)
    dispatch._tell_once.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            chunk_gated_delta_rule(**arrays, **options)
    (record,) = caplog.records
    assert record.getMessage() == f"chunk_gated_delta_rule runs as xla: not mosaic_gpu, as {reason}"


def test_kernels_are_taken_where_they_serve(caplog):
    low, _ = bfloat16_inputs(make_inputs(batch=1, length=3, heads=(1, 1), dims=(32, 64)))
    dispatch._tell_once.cache_clear()
    with caplog.at_level(logging.INFO):
        found, expected = chunk_gated_delta_rule(**low[0]), op(**low[0])
    np.testing.assert_array_equal(found[0], expected[0])
    assert "chunk_gated_delta_rule runs as mosaic_gpu" in caplog.text


def test_decode_takes_one_token_and_a_tile_at_least():
    for length, value_dim, reason in (
        (2, 64, "q has 2 tokens, expected one"),
        (1, 56, "the values' length is 56, expected at least 64"),
    ):
        low, _ = bfloat16_inputs(make_inputs(batch=1, length=length, heads=(1, 1), dims=(8, value_dim)))
        with pytest.raises(ValueError, match=re.escape(reason)):
            recurrent_gated_delta_rule(**low[0], implementation="mosaic_gpu")


def test_a_race_is_seen(capsys):
    def body(x_memory, out_memory, x, arrived):
        plgpu.copy_gmem_to_smem(x_memory, x, arrived)
        out_memory[...] = x[...]  # before it has arrived
        plgpu.barrier_wait(arrived)

    shape = jax.ShapeDtypeStruct((128,), jnp.float32)
    kernel = plgpu.kernel(
        body, out_type=shape, scratch_types=[plgpu.SMEM((128,), jnp.float32), plgpu.Barrier()]
    )
    try:
        jax.block_until_ready(kernel(jnp.ones(128)))
        said = ""
    except Exception as error:
        said = str(error)
    assert _RACE in said + capsys.readouterr().out


def test_what_is_tested_is_what_runs():
    """No kernel asks whether it is interpreted; wgmma only where its operands are committed and its end is awaited."""
    calls = {}
    for path in KERNELS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "interpret" not in text, path
        calls[path.name] = len(re.findall(r"plgpu\.wgmma\(", text))
    assert calls.pop("tiles.py") == 1
    assert not any(calls.values()), calls
