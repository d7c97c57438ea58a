import numpy as np
import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.scaling import ScalingLaw, token_savings
from hybrid_jax.scaling.rounding import Printed, RoundedLaw
from hybrid_jax.scaling.savings import bootstrap_interval, check_target
from tests.scaling.ladder import KNOWN


def test_optimum_is_the_lowest_loss_of_its_budget():
    best = KNOWN.optimum(1e21)
    assert 6 * best.num_params * best.tokens == pytest.approx(1e21)
    sizes = best.num_params * np.geomspace(0.1, 10, 2001)
    losses = KNOWN.loss(sizes, 1e21 / 6 / sizes)
    assert best.loss == pytest.approx(losses.min(), abs=1e-9)
    assert sizes[losses.argmin()] == pytest.approx(best.num_params, rel=1e-3)


def test_an_optimum_needs_a_parameter_and_a_token():
    for name, expected in (("A", 1.0), ("B", 1e21 / 6)):
        vanishing = ScalingLaw(**{**vars(KNOWN), name: 1e-30})
        assert vanishing.optimum(1e21).num_params == pytest.approx(expected)


def test_tokens_invert_the_loss():
    sizes = np.array([1e9, 7e9])
    tokens = KNOWN.tokens_for_loss(sizes, 2.474)
    np.testing.assert_allclose(KNOWN.loss(sizes, tokens), 2.474, rtol=1e-12)
    assert KNOWN.tokens_for_loss(1e8, 2.474) == np.inf


def test_a_batch_of_laws_is_asked_like_one():
    batch = ScalingLaw(**{name: np.array([value, value]) for name, value in vars(KNOWN).items()})
    np.testing.assert_array_equal(batch.loss(1e9, 1e11), [KNOWN.loss(1e9, 1e11)] * 2)
    assert batch.tokens_for_loss(np.array([[1e9], [7e9]]), 2.474).shape == (2, 2)


def test_savings_where_a_loss_is_out_of_reach():
    better = ScalingLaw(**{**vars(KNOWN), "E": 1.5})
    ratios = token_savings(KNOWN, better, np.array([1e7, 1e8, 1e9]), 2.6)
    assert np.isnan(ratios[0])
    assert ratios[1] == np.inf
    assert 1 < ratios[2] < 100
    assert token_savings(better, KNOWN, 1e8, 2.6) == 0


def test_intervals_leave_undefined_samples_out():
    samples = np.concatenate([np.arange(1.0, 101.0), [np.nan] * 50])
    np.testing.assert_array_equal(bootstrap_interval(samples), [3.0, 98.0])
    samples[:10] = np.inf
    assert bootstrap_interval(samples)[1] == np.inf
    assert np.isnan(bootstrap_interval(np.full((5, 2), np.nan))).all()


@pytest.mark.parametrize("loss", [1.65, 1.0, float("nan")])
def test_target_below_the_irreducible_loss(loss):
    with pytest.raises(InputError, match=r"target_loss: found .*, expected more than .* of olmo3, E = 1.65"):
        check_target({"olmo3": KNOWN}, loss)


def test_printed_digits():
    assert Printed("1.60").half_unit == 0.005
    assert Printed("108.83").half_unit == 0.005
    assert Printed("12").half_unit == 0.5
    assert Printed("1.32").overlaps(1.3249, 2.0)
    assert not Printed("1.32").overlaps(1.3251, 2.0)


def test_interval_holds_whatever_rounds_to_the_digits():
    rounded = RoundedLaw(*map(Printed, ("1.65", "108.83", "0.252", "83.45", "0.213")))
    moves = np.random.default_rng(0).uniform(-1, 1, (5, 2000))
    inside = rounded.moved(moves)
    for quantity in (
        lambda law: law.loss(1e9, 1e11),
        lambda law: law.tokens_for_loss(7e9, 2.474),
        lambda law: law.optimum(1e22).loss,
        lambda law: law.optimum(1e22).num_params,
        lambda law: law.optimum(1e18).tokens,
    ):
        low, high = rounded.interval(quantity)
        values = quantity(inside)
        assert low <= values.min()
        assert values.max() <= high
        assert values.max() - values.min() > 0.5 * (high - low)
