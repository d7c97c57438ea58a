from dataclasses import replace

import numpy as np
import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.scaling.quantization import Language, QuantizationConfig, predict
from hybrid_jax.scaling.quantization_study import SHARES, study
from tests.tolerances import FLOAT64

SMALL = QuantizationConfig(
    inexpressible=0.3,
    inexpressible_gain=2.0,
    inexpressible_params=3.0,
    inexpressible_tokens=5.0,
    num_tasks=2000,
    seed=1,
)


def learn_one_by_one(config, num_params, tokens):
    """Definitions 3 and 4 as they stand, task after task."""
    drawn = np.random.default_rng(config.seed).random(config.num_tasks) < config.inexpressible
    ranks = np.arange(1, 10**6)
    zeta = (ranks ** -(config.exponent + 1.0)).sum() + (10.0**6) ** -config.exponent / config.exponent
    loss, spent = config.unlearned_loss, 0.0
    for rank in range(1, config.num_tasks + 1):
        frequency = rank ** -(config.exponent + 1) / zeta
        hard = drawn[rank - 1]
        if tokens * frequency < (config.inexpressible_tokens if hard else config.tokens):
            continue
        spent += config.inexpressible_params if hard else config.params
        if spent > num_params:
            break
        loss -= frequency * (config.inexpressible_gain if hard else config.gain)
    return loss


@pytest.mark.parametrize("tokens", [np.inf, 300.0, 3000.0])
def test_losses_are_those_of_learning_one_by_one(tokens):
    budgets = np.array([0.0, 5.0, 60.0, 400.0])
    expected = [learn_one_by_one(SMALL, each, tokens) for each in budgets]
    np.testing.assert_allclose(Language(SMALL).loss(budgets, tokens), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def studies():
    return [study(world, share, num_draws=12) for world in ("costs 20 times as much",) for share in SHARES]


def test_what_brings_less_is_never_learnt_to_the_end():
    found = study("brings half as much", SHARES[-1], num_draws=12)
    assert found.measured.irreducible == pytest.approx(found.theory.irreducible, rel=0.03)
    assert found.measured.param_exponent == pytest.approx(found.theory.param_exponent, abs=0.006)
    assert found.measured.token_exponent == pytest.approx(found.theory.token_exponent, abs=0.003)


def test_expressivity_changes_coefficients_and_no_exponent(studies):
    for each in studies:
        measured, theory = each.measured, each.theory
        assert measured.param_exponent == pytest.approx(theory.param_exponent, abs=0.006)
        assert measured.token_exponent == pytest.approx(theory.token_exponent, abs=0.003)
        assert measured.param_coefficient == pytest.approx(theory.param_coefficient, rel=0.06)
        assert measured.token_coefficient == pytest.approx(theory.token_coefficient, rel=0.03)
        assert measured.irreducible == pytest.approx(theory.irreducible, abs=1e-9)
    coefficients = [each.measured.token_coefficient for each in studies]
    assert coefficients == sorted(coefficients)


def test_loss_falls_with_every_task_that_becomes_expressible():
    losses = [
        Language(replace(SMALL, inexpressible=share)).loss(np.array([50.0, 500.0]), 2000.0)
        for share in (0.4, 0.2, 0.0)
    ]
    assert (np.diff(losses, axis=0) < 0).all()


def test_irreducible_loss_moves_only_where_less_is_gained():
    costly = replace(SMALL, inexpressible_gain=SMALL.gain)
    assert predict(costly).irreducible == pytest.approx(SMALL.unlearned_loss - SMALL.gain, rel=FLOAT64)
    assert predict(SMALL).irreducible == pytest.approx(1.0 + 0.3 * (7.0 - 2.0), rel=FLOAT64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inexpressible": 1.2}, "inexpressible: found 1.2, expected a share"),
        ({"inexpressible_gain": 7.5}, "expected them in this order"),
        ({"exponent": 0.0}, "exponent: found 0.0, expected more than 0"),
        ({"inexpressible_tokens": 0.5}, "inexpressible_tokens: found 0.5, expected at least tokens, 1.0"),
    ],
)
def test_impossible_worlds(changes, message):
    with pytest.raises(InputError, match=message):
        QuantizationConfig(**changes)


def test_budgets_beyond_the_tasks():
    with pytest.raises(InputError, match=r"num_tasks: found 2000, too few for 1e\+09 parameters"):
        Language(SMALL).loss(np.array([1e9]))
