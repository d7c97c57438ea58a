import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from hybrid_jax.errors import InputError
from hybrid_jax.scaling import FitConfig, fit_law
from hybrid_jax.scaling.fit import _Problem
from hybrid_jax.scaling.savings import bootstrap_interval
from tests.scaling.ladder import KNOWN, SIZES, point, points

COEFFICIENTS = ("E", "A", "alpha", "B", "beta")
FEW = FitConfig(num_bootstrap=40)


@pytest.fixture(scope="module")
def noisy():
    return fit_law(points(noise=0.003), config=FEW)


def test_known_coefficients_come_back_without_noise():
    law = fit_law(points(), config=FitConfig(num_bootstrap=2)).law
    for name in COEFFICIENTS:
        assert getattr(law, name) == pytest.approx(getattr(KNOWN, name), rel=2e-3), name


def test_known_coefficients_come_back_from_noise(noisy):
    law = fit_law(points(noise=0.001), config=FitConfig(num_bootstrap=2)).law
    for name, tolerance in zip(COEFFICIENTS, (0.02, 0.2, 0.04, 0.2, 0.04), strict=True):
        assert getattr(law, name) == pytest.approx(getattr(KNOWN, name), rel=tolerance), name
    assert noisy.r_squared > 0.999
    assert noisy.resampled.B.shape == (40,)


def test_intervals_hold_the_known_coefficients_as_often_as_they_say():
    held = []
    for seed in range(5):
        fit = fit_law(points(noise=0.003, seed=seed), config=FitConfig(num_bootstrap=40))
        for name in COEFFICIENTS:
            low, high = bootstrap_interval(getattr(fit.resampled, name))
            held.append(low <= getattr(KNOWN, name) <= high)
    # 95% would be 24 of 25, but the five coefficients of a fit err together.
    assert np.mean(held) >= 0.8


def test_fit_predicts_as_the_known_law_does(noisy):
    flops = np.array([1e19, 1e21])
    np.testing.assert_allclose(noisy.law.optimum(flops).loss, KNOWN.optimum(flops).loss, rtol=0.01)


def test_given_exponents_are_kept_and_the_rest_is_surer(noisy):
    fixed = fit_law(points(noise=0.003), (0.252, 0.213), FEW)
    assert (fixed.law.alpha, fixed.law.beta) == (0.252, 0.213)
    assert set(fixed.resampled.alpha) == {0.252}
    np.testing.assert_allclose(fixed.law.B, KNOWN.B, rtol=0.05)
    assert fixed.resampled.B.std() < noisy.resampled.B.std() / 3


def objective_as_written(law_numbers, ladder):
    """The objective of the paper's own terms, transcribed without any of the code."""
    e, a, alpha, b, beta = law_numbers
    total = 0.0
    for each in ladder:
        r = np.log(each.loss) - np.log(e + a / each.num_params**alpha + b / each.tokens**beta)
        total += 0.5 * r * r if abs(r) <= 1e-3 else 1e-3 * (abs(r) - 0.5e-3)
    return total


def test_no_search_in_the_coefficients_themselves_finds_a_lower_minimum(noisy):
    ladder = list(noisy.points)
    fitted = tuple(getattr(noisy.law, name) for name in COEFFICIENTS)
    best = objective_as_written(fitted, ladder)
    for start in (fitted, (1.0, 100.0, 0.3, 100.0, 0.3), (1.6, 200.0, 0.26, 50.0, 0.2)):
        other = minimize(
            objective_as_written, start, args=(ladder,), method="Nelder-Mead", options={"maxiter": 1500}
        )
        assert best <= other.fun * (1 + 1e-9)


def test_gradient():
    problem = _Problem(points(noise=0.003), None)
    weights = np.linspace(0.5, 1.5, len(SIZES) * 5)
    for start in problem.starts(weights)[::12]:
        error = check_grad(
            lambda x: problem.objective(x, weights)[0], lambda x: problem.objective(x, weights)[1], start
        )
        assert error < 1e-3 * np.linalg.norm(problem.objective(start, weights)[1])


def test_weights_say_whose_residuals_count():
    ladder = points()
    spoilt = [
        point(**{**vars(each), "flops": 6.0 * each.num_params * each.tokens, "loss": each.loss * factor})
        for each, factor in zip(ladder, [1.05] * 5 + [1.0] * 30, strict=True)
    ]
    errors = {}
    for weights in ("uniform", "sqrt_flops", "flops"):
        law = fit_law(spoilt, (0.3, 0.3), FitConfig(num_bootstrap=2, weights=weights)).law
        errors[weights] = abs(float(law.loss(1.279e9, 2e11)) / float(KNOWN.loss(1.279e9, 2e11)) - 1)
    assert errors["flops"] < errors["sqrt_flops"] < errors["uniform"]


def test_a_seed_gives_the_same_resamples():
    ladder = points(noise=0.003, horizons=(0.5, 2.0, 8.0))
    first, second, other = (
        fit_law(ladder, (0.22, 0.22), FitConfig(num_bootstrap=3, seed=seed)).resampled.B for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("ladder", "exponents", "message"),
    [
        ([], None, "no architecture: found 0 points, expected at least 5"),
        (points()[:4], None, "olmo3: found 4 points, expected at least 5 to fit 5 coefficients"),
        (points()[:2], (0.22, 0.22), "found 2 points, expected at least 3 to fit 3 coefficients"),
        (points()[:10], None, "num_params: found 2 different values, expected at least 3"),
        (points()[:5], (0.22, 0.22), "num_params: found 1 different values, expected at least 2"),
        (
            points() + points(architecture="gdn"),
            None,
            "architecture: found gdn, olmo3, expected points of one",
        ),
        (points(), (0.0, 0.22), "exponents: found .0.0, 0.22., expected alpha and beta between"),
    ],
)
def test_what_cannot_be_fitted(ladder, exponents, message):
    with pytest.raises(InputError, match=message):
        fit_law(ladder, exponents)


def test_bootstrap_needs_resamples():
    with pytest.raises(InputError, match="num_bootstrap: found 1, expected at least 2"):
        FitConfig(num_bootstrap=1)


def test_losses_that_follow_no_law_are_fitted_badly_and_say_so():
    rng = np.random.default_rng(0)
    shuffled = [
        point(**{**vars(each), "loss": float(rng.uniform(3, 4))}) for each in points(horizons=(0.5, 2.0))
    ]
    fit = fit_law(shuffled, config=FitConfig(num_bootstrap=5))
    assert fit.r_squared < 0.6
    for law in (fit.law, fit.resampled):
        assert np.isfinite(law.optimum(1e21).loss).all()
        assert all((getattr(law, name) > 0).all() for name in ("A", "B"))
