"""Fitting the law: Huber loss on logarithms, L-BFGS from many starts, bootstrap (arXiv 2203.15556, Approach 3;
OLMo-core ``model_ladder/analysis/scaling_laws.py`` on the branch of the paper's ladders).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from hybrid_jax.errors import InputError
from hybrid_jax.scaling.law import ScalingLaw
from hybrid_jax.scaling.points import LadderPoint

_Rows = Int64[np.ndarray, "points"]

Weights = Literal["uniform", "flops", "sqrt_flops"]
_POWERS: dict[str, float] = {"uniform": 0.0, "flops": 1.0, "sqrt_flops": 0.5}

HUBER_DELTA = 1e-3
"""Of residuals of ln L: a thousandth of the loss."""

# The published grid: six values each of E in [0, least loss], A and B in [1, 500], alpha and beta in [0.1, 0.5].
_GRID_SIZE = 6
_COEFFICIENTS = (1.0, 500.0)
_EXPONENTS = (0.1, 0.5)
_EXPONENT_BOUNDS = (0.01, 2.0)
# A term that has vanished from the loss stays above 0, so that A and B have logarithms.
_LEAST_LOG_TERM = -30.0
# Least relative gain of a step, of an objective in units of delta. Resamples and starts are told apart long before the
# last digits of the best fit are.
_SEARCH, _POLISH = 1e-9, 1e-14

# Positions in what is optimised over: E, ln(A/N0^alpha), alpha, ln(B/D0^beta), beta.
_E, _LOG_A, _ALPHA, _LOG_B, _BETA = range(5)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How the law is fitted.

    Attributes:
        weights: of the points: all alike (the paper says of none), proportional to FLOPs (the default of the
            paper's script) or to their square root (what that script's help says).
        num_bootstrap: resamples of the points, with replacement, that intervals are taken from.
        seed: of the resamples.
    """

    weights: Weights = "uniform"
    num_bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_bootstrap < 2:
            raise InputError(f"num_bootstrap: found {self.num_bootstrap}, expected at least 2")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law fitted to the points of one architecture.

    Attributes:
        architecture: whose.
        law: the best of all starts.
        resampled: the laws of the bootstrap's resamples, coefficients of shape [num_bootstrap].
        r_squared: of ln L, over the points fitted, each counted once.
        points: the points fitted.
    """

    architecture: str
    law: ScalingLaw
    resampled: ScalingLaw
    r_squared: float
    points: tuple[LadderPoint, ...]


def fit_law(
    points: Sequence[LadderPoint],
    exponents: tuple[float, float] | None = None,
    config: FitConfig | None = None,
) -> Fit:
    """Fit E, A, B and, unless they are given, alpha and beta to points of one architecture.

    L-BFGS-B starts, for each pair of exponents in the published grid, from the best of all E, A and B in it: 36
    starts chosen from 7,776, or one from 216 with given exponents. Resamples start from the fit to all points.
    Bounds as published for E (0 to the least loss) and exponents (0.01 to 2); A and B are positive.

    Args:
        points: after the learning rate's decay.
        exponents: alpha and beta, to be kept.
        config: weights and bootstrap.

    Raises:
        InputError: points of several architectures, fewer points than coefficients, too few different sizes or
            token counts to tell the coefficients apart, exponents that are not positive.
    """
    config = config or FitConfig()
    architecture = _check(points, exponents)
    problem = _Problem(points, exponents)
    sizes = np.array([each.flops for each in points]) ** _POWERS[config.weights]
    weights = sizes * len(points) / sizes.sum()
    rng = np.random.default_rng(config.seed)
    # L-BFGS-B calls BLAS on a few numbers at a time: on busy cores its threads made this 20 times as long.
    with threadpool_limits(limits=1, user_api="blas"):
        found = [problem.minimize(start, weights) for start in problem.starts(weights)]
        best = problem.minimize(min(found, key=lambda each: each.fun).x, weights, _POLISH)
        resamples = [
            problem.minimize(best.x, weights * np.bincount(rows, minlength=len(points))).x
            for rows in _resamples(problem, rng, config.num_bootstrap)
        ]
    law = problem.law(best.x)
    residuals = problem.log_loss - np.log(law.loss(problem.num_params, problem.tokens))
    spread = problem.log_loss - problem.log_loss.mean()
    return Fit(
        architecture=architecture,
        law=law,
        resampled=problem.law(np.array(resamples).T),
        r_squared=float(1 - residuals @ residuals / (spread @ spread)),
        points=tuple(points),
    )


class _Problem:
    """The objective over E, ln(A/N0^alpha), alpha, ln(B/D0^beta), beta, with N0 and D0 in the middle of the data.

    There a term's size and its exponent come apart, which A and alpha do not, and L-BFGS takes fewer steps.
    """

    def __init__(self, points: Sequence[LadderPoint], exponents: tuple[float, float] | None) -> None:
        self.num_params = np.array([each.num_params for each in points], dtype=np.float64)
        self.tokens = np.array([each.tokens for each in points], dtype=np.float64)
        self.log_loss = np.log([each.loss for each in points])
        self.min_distinct = 2 if exponents else 3
        log_params, log_tokens = np.log(self.num_params), np.log(self.tokens)
        self._middle_n, self._middle_d = float(log_params.mean()), float(log_tokens.mean())
        self._log_n, self._log_d = log_params - self._middle_n, log_tokens - self._middle_d
        self._exponents = exponents
        self._max_e = float(np.exp(self.log_loss.min()))

    def starts(self, weights: Float64[np.ndarray, "points"]) -> list[Float64[np.ndarray, "5"]]:
        """For each pair of exponents the best start with it."""
        values = np.linspace(*_EXPONENTS, _GRID_SIZE)
        pairs = [self._exponents] if self._exponents else list(itertools.product(values, values))
        coefficients = np.linspace(*_COEFFICIENTS, _GRID_SIZE)
        grid = itertools.product(np.linspace(0, self._max_e, _GRID_SIZE), coefficients, coefficients)
        e, a, b = np.array(list(grid)).T
        found = []
        for alpha, beta in pairs:
            log_a, log_b = np.log(a) - alpha * self._middle_n, np.log(b) - beta * self._middle_d
            columns = (e, log_a, np.full_like(e, alpha), log_b, np.full_like(e, beta))
            candidates = np.stack(columns, axis=1)
            objectives = [self.objective(each, weights)[0] for each in candidates]
            found.append(candidates[np.argmin(objectives)])
        return found

    def objective(
        self, x: Float64[np.ndarray, "5"], weights: Float64[np.ndarray, "points"]
    ) -> tuple[float, Float64[np.ndarray, "5"]]:
        """The weighted sum of Huber losses over delta, and its gradient."""
        e, log_a, alpha, log_b, beta = x
        # A line search may try exponents at which a term would overflow; far less is already far too much.
        of_params = np.exp(np.minimum(log_a - alpha * self._log_n, 100))
        of_tokens = np.exp(np.minimum(log_b - beta * self._log_d, 100))
        loss = np.maximum(e + of_params + of_tokens, 1e-300)
        residuals = np.log(loss) - self.log_loss
        clipped = np.clip(residuals, -HUBER_DELTA, HUBER_DELTA)
        huber = clipped * (residuals - 0.5 * clipped)
        slopes = weights * clipped / loss
        by_params, by_tokens = slopes * of_params, slopes * of_tokens
        gradient = (
            slopes.sum(),
            by_params.sum(),
            -by_params @ self._log_n,
            by_tokens.sum(),
            -by_tokens @ self._log_d,
        )
        return float(weights @ huber) / HUBER_DELTA, np.array(gradient) / HUBER_DELTA

    def minimize(
        self,
        start: Float64[np.ndarray, "5"],
        weights: Float64[np.ndarray, "points"],
        tolerance: float = _SEARCH,
    ) -> Any:
        """Run L-BFGS-B; returns what scipy does."""
        bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(start)
        bounds[_E] = (0.0, self._max_e)
        bounds[_LOG_A] = bounds[_LOG_B] = (_LEAST_LOG_TERM, None)
        bounds[_ALPHA] = bounds[_BETA] = _EXPONENT_BOUNDS
        if self._exponents:
            bounds[_ALPHA], bounds[_BETA] = ((each, each) for each in self._exponents)
        return minimize(
            self.objective,
            start,
            args=(weights,),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 10_000, "maxfun": 100_000, "ftol": tolerance, "gtol": 1e-9},
        )

    def law(self, x: Float64[np.ndarray, "5 *laws"]) -> ScalingLaw:
        """The coefficients themselves."""
        e, log_a, alpha, log_b, beta = x
        a, b = np.exp(log_a + alpha * self._middle_n), np.exp(log_b + beta * self._middle_d)
        return ScalingLaw(E=e, A=a, alpha=alpha, B=b, beta=beta)

    def determined(self, rows: _Rows) -> bool:
        """Whether these points have enough different sizes and token counts to tell the coefficients apart."""
        return all(len(np.unique(each[rows])) >= self.min_distinct for each in (self.num_params, self.tokens))


def _resamples(problem: _Problem, rng: np.random.Generator, number: int) -> list[_Rows]:
    """Points drawn with replacement; a draw that determines no law is drawn again."""
    num_points = len(problem.log_loss)
    found: list[_Rows] = []
    while len(found) < number:
        rows = rng.integers(0, num_points, num_points)
        if problem.determined(rows):
            found.append(rows)
    return found


def _check(points: Sequence[LadderPoint], exponents: tuple[float, float] | None) -> str:
    """The architecture, where there is a law to be fitted."""
    names = sorted({each.architecture for each in points})
    if len(names) > 1:
        raise InputError(f"architecture: found {', '.join(names)}, expected points of one for one fit")
    if exponents and not all(low <= each <= high for each in exponents for low, high in [_EXPONENT_BOUNDS]):
        low, high = _EXPONENT_BOUNDS
        raise InputError(f"exponents: found {exponents}, expected alpha and beta between {low} and {high}")
    needed, distinct = (3, 2) if exponents else (5, 3)
    what = "E, A and B" if exponents else "E, A, alpha, B and beta"
    name = names[0] if names else "no architecture"
    if len(points) < needed:
        raise InputError(
            f"{name}: found {len(points)} points, expected at least {needed} to fit {needed} coefficients ({what})"
        )
    for field in ("num_params", "tokens"):
        found = len({getattr(each, field) for each in points})
        if found < distinct:
            raise InputError(
                f"{name}: {field}: found {found} different values, expected at least {distinct} to fit {what}"
            )
    return name
