"""What every implementation of the gated delta rule must do: subclass, name the op, and pytest runs the lot.

Inputs are float32, the reference is the float64 recurrence of `reference.py` on the same numbers, and gradients are
those of all six differentiable inputs for random cotangents of both outputs. What takes other inputs than float32
subclasses the invariances, and compares with the reference as exactly as it can.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from tests.pallas_kernels import reference
from tests.pallas_kernels.inputs import HARD_INPUTS, PACKINGS, make_inputs, packed_inputs

NAMES = ("o", "final_state", *(f"d_{name}" for name in reference.DIFFERENTIABLE))


def relative_error(found, expected):
    """Norm of the difference over the norm of what is expected; where nothing is, the norm of what was found."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    norm = np.linalg.norm(expected)
    return np.linalg.norm(found - expected) / (norm if norm else 1.0)


def errors(found, expected):
    return {name: relative_error(found[name], expected[name]) for name in NAMES}


def assert_close(found, expected, forward=tolerances.FLOAT32_FORWARD, gradient=tolerances.FLOAT32_GRADIENT):
    for name, error in errors(found, expected).items():
        assert error <= (gradient if name.startswith("d_") else forward), f"{name} is off by {error:.1e}"


def call(op, arrays, segment_ids, options):
    q, k, v, g, beta, initial_state = arrays
    return op(q, k, v, g, beta, initial_state=initial_state, segment_ids=segment_ids, **options)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _outputs_and_gradients(op, arrays, cotangents, segment_ids, options):
    outputs, pullback = jax.vjp(lambda *xs: call(op, xs, segment_ids, dict(options)), *arrays)
    cotangents = tuple(c.astype(o.dtype) for c, o in zip(cotangents, outputs, strict=True))
    return *outputs, *pullback(cotangents)


def run(op, inputs, segment_ids=None, **options):
    """Outputs and gradients by name."""
    arrays, cotangents = inputs
    arrays = tuple(arrays[name] for name in reference.DIFFERENTIABLE)
    results = _outputs_and_gradients(op, arrays, cotangents, segment_ids, tuple(options.items()))
    return dict(zip(NAMES, map(np.asarray, results), strict=True))


class GatedDeltaRuleInvariances:
    """What an implementation must make of the same numbers given otherwise, however exact it is.

    Subclass with `op` a staticmethod of the public signature; `GatedDeltaRuleConformance` has the rest.
    """

    op = None
    lengths = (64, 1, 65)  # of documents
    remat = True
    reordered, rescheduled = tolerances.FLOAT32_REORDERED, tolerances.FLOAT32_RESCHEDULED

    def inputs(self, length):
        """Two rows of arrays and cotangents as the op takes them."""
        return make_inputs(length=length)

    def test_packed_equals_documents_run_alone(self):
        lengths = self.lengths
        arrays, cotangents = self.inputs(sum(lengths))
        arrays = {**arrays, "initial_state": 0 * arrays["initial_state"]}
        segment_ids = np.tile(np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths), (2, 1))
        packed = run(self.op, (arrays, (cotangents[0], 0 * cotangents[1])), segment_ids)
        start = 0
        for length in lengths:
            tokens = slice(start, start + length)
            document = {name: x if "state" in name else x[:, tokens] for name, x in arrays.items()}
            alone = run(self.op, (document, (cotangents[0][:, tokens], 0 * cotangents[1])))
            for output in NAMES:
                if "state" not in output:
                    error = relative_error(packed[output][:, tokens], alone[output])
                    assert error <= self.reordered, f"{output} of {tokens} is off by {error:.1e}"
            start += length
        assert relative_error(packed["final_state"], alone["final_state"]) <= self.reordered

    def test_split_in_two_with_the_state_carried(self):
        arrays, (d_o, d_state) = self.inputs(130)
        whole = run(self.op, (arrays, (d_o, d_state)))
        head = {name: x if "state" in name else x[:, :65] for name, x in arrays.items()}
        tail = {name: x if "state" in name else x[:, 65:] for name, x in arrays.items()}
        tail["initial_state"] = run(self.op, (head, (d_o[:, :65], d_state)))["final_state"]
        after = run(self.op, (tail, (d_o[:, 65:], d_state)))
        before = run(self.op, (head, (d_o[:, :65], after["d_initial_state"])))
        for name in NAMES:
            joined = np.concatenate([before[name], after[name]], axis=1)
            if "state" in name:
                joined = (before if name == "d_initial_state" else after)[name]
            assert relative_error(joined, whole[name]) <= self.reordered, name

    def test_vmap_scan_and_remat_change_nothing(self):
        arrays, cotangents = self.inputs(24)
        arrays = tuple(arrays[name] for name in reference.DIFFERENTIABLE)
        cotangents = tuple(map(jnp.asarray, cotangents))

        def row(*xs):
            o, state = call(self.op, [x[None] for x in xs], None, {})
            return o[0], state[0]

        def rows_in_turn(*xs):
            return jax.lax.scan(lambda _, x: (None, row(*x)), None, xs)[1]

        @functools.partial(jax.jit, static_argnums=0)
        def outputs_and_gradients(function, *xs):
            outputs, pullback = jax.vjp(function, *xs)
            return *outputs, *pullback((cotangents[0].astype(outputs[0].dtype), cotangents[1]))

        def batch(*xs):
            return call(self.op, xs, None, {})

        expected = outputs_and_gradients(batch, *arrays)
        rematted = [jax.checkpoint(batch)] if self.remat else []
        for changed in (jax.vmap(row), rows_in_turn, *rematted):
            for name, x, y in zip(NAMES, outputs_and_gradients(changed, *arrays), expected, strict=True):
                assert relative_error(x, y) <= self.rescheduled, name

    def test_jit_changes_nothing(self):
        arrays, _ = self.inputs(3)
        arrays = [jnp.asarray(arrays[name]) for name in reference.DIFFERENTIABLE]
        jitted = jax.jit(lambda *xs: call(self.op, xs, None, {}))(*arrays)
        for x, y in zip(call(self.op, arrays, None, {}), jitted, strict=True):
            assert relative_error(x, y) <= self.rescheduled


class GatedDeltaRuleConformance(GatedDeltaRuleInvariances):
    """Beside those, the reference's outputs and gradients from float32, on ordinary inputs and hard ones."""

    def check(self, inputs, segment_ids=None, **options):
        expected = reference.float64(*inputs, segment_ids, **options)
        assert_close(run(self.op, inputs, segment_ids, **options), expected)

    @pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 130, 200])
    def test_any_length(self, length):
        self.check(make_inputs(length=length))

    @pytest.mark.parametrize(("key_dim", "value_dim"), [(96, 192), (7, 5)])
    def test_any_head_dims(self, key_dim, value_dim):
        self.check(make_inputs(batch=1, length=70, heads=(1, 1), dims=(key_dim, value_dim)))

    @pytest.mark.parametrize("heads", [(3, 3), (1, 3)])
    def test_value_heads_share_key_heads(self, heads):
        self.check(make_inputs(batch=1, length=40, heads=heads))

    def test_scale_and_no_initial_state(self):
        arrays, (d_o, _) = make_inputs(length=40)
        without = {**arrays, "initial_state": np.zeros_like(arrays["initial_state"])}
        expected = reference.numpy_forward(without, scale=0.3)
        names = [name for name in reference.DIFFERENTIABLE if name != "initial_state"]
        found = jax.jit(functools.partial(self.op, scale=0.3))(*(arrays[name] for name in names))
        for x, y in zip(found, expected, strict=True):
            assert relative_error(x, y) <= tolerances.FLOAT32_FORWARD
        assert found[0].shape == d_o.shape

    @pytest.mark.parametrize("name", HARD_INPUTS)
    def test_hard_inputs_as_well_as_the_recurrence(self, name):
        inputs = HARD_INPUTS[name](make_inputs(length=130, heads=(1, 2), dims=(24, 16)))
        expected = reference.float64(*inputs)
        found = run(self.op, inputs)
        own = errors(reference.float32(*inputs), expected)
        for output, error in errors(found, expected).items():
            assert np.isfinite(found[output]).all(), f"{output} is not finite"
            allowed = max(tolerances.HARD_INPUT_FACTOR * own[output], tolerances.FLOAT32_ROUNDING)
            assert error <= allowed, f"{output} is off by {error:.1e}, the recurrence by {own[output]:.1e}"

    def test_bfloat16(self):
        arrays, cotangents = make_inputs(length=130)
        low = {name: jnp.asarray(arrays[name], jnp.bfloat16) for name in ("q", "k", "v")}
        rounded = {**arrays, **{name: np.asarray(x, np.float32) for name, x in low.items()}}
        cotangents = (np.asarray(jnp.asarray(cotangents[0], jnp.bfloat16), np.float32), cotangents[1])
        found = run(self.op, ({**arrays, **low}, cotangents))
        assert found["o"].dtype == found["d_v"].dtype == jnp.bfloat16
        assert found["final_state"].dtype == found["d_g"].dtype == np.float32
        expected = reference.float64(rounded, cotangents)
        assert_close(found, expected, tolerances.BFLOAT16, tolerances.BFLOAT16)

    def test_l2_norm_of_any_row_even_zero(self):
        arrays, cotangents = make_inputs(length=130)
        arrays = {**arrays, "q": 3 * arrays["q"], "k": 0.1 * arrays["k"]}
        arrays["q"][:, 10:20] = arrays["k"][:, 15:25] = 0
        self.check((arrays, cotangents), use_qk_l2norm=True)

    def test_zero_rows_without_normalisation(self):
        arrays, cotangents = make_inputs(length=130)
        arrays["q"][:, 10:20] = arrays["k"][:, 15:25] = 0
        self.check((arrays, cotangents))

    @pytest.mark.parametrize("name", PACKINGS)
    def test_packed_documents_and_padding(self, name):
        inputs, segment_ids = packed_inputs(PACKINGS[name])
        self.check(inputs, segment_ids)

    def test_padding_holds_garbage_and_gets_no_gradient(self):
        inputs, segment_ids = packed_inputs(PACKINGS["padding everywhere"])
        padding = segment_ids == 0
        clean = run(self.op, inputs, segment_ids)
        arrays = {name: x.copy() for name, x in inputs[0].items()}
        for name, garbage in {"q": 1e30, "k": -3e38, "v": np.inf, "g": -np.inf, "beta": 1e20}.items():
            arrays[name][padding] = garbage
        found = run(self.op, (arrays, inputs[1]), segment_ids)
        for name in NAMES:
            np.testing.assert_array_equal(found[name], clean[name], err_msg=name)
            if "state" not in name:
                assert not found[name][padding].any(), f"{name} of padding is not zero"
