"""Three ways in which tasks can be inexpressible, simulated beside the power laws derived for them.

The paper's Figure 11, with task-by-task simulations in the place of its formulas.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from hybrid_jax.scaling.fit import FitConfig, fit_law
from hybrid_jax.scaling.points import LadderPoint
from hybrid_jax.scaling.quantization import Language, PowerLaws, QuantizationConfig, predict

WORLDS: dict[str, dict[str, Any]] = {
    "brings half as much": {"inexpressible_gain": 3.5},
    "costs 20 times as much": {"inexpressible_params": 20.0, "inexpressible_tokens": 20.0},
    "does both": {"inexpressible_gain": 3.5, "inexpressible_params": 20.0, "inexpressible_tokens": 20.0},
}
"""What an inexpressible task does -> how it differs from others."""

SHARES = (0.0, 0.1, 0.3)
PARAMS = np.logspace(2, 4, 9)
TOKENS = np.logspace(3, 6, 9)
NUM_DRAWS = 32


@dataclass(frozen=True, kw_only=True)
class Study:
    """Simulated losses of one world and share, and what they look like.

    Attributes:
        world: key of ``WORLDS``.
        share: of tasks that are inexpressible.
        by_params: loss at ``PARAMS`` with tokens without end, for each draw.
        by_tokens: loss at ``TOKENS`` with parameters without end, for each draw.
        theory: Theorem 4 for it.
        measured: power laws through each draw's losses above its own irreducible loss, averaged over draws.
    """

    world: str
    share: float
    by_params: Float64[np.ndarray, "draws budgets"]
    by_tokens: Float64[np.ndarray, "draws budgets"]
    theory: PowerLaws
    measured: PowerLaws


def study(world: str, share: float, num_draws: int = NUM_DRAWS) -> Study:
    """Simulate ``num_draws`` languages of ``world`` (without any inexpressible task all are the same)."""
    config = QuantizationConfig(inexpressible=share, **WORLDS[world])
    languages = [Language(replace(config, seed=seed)) for seed in range(num_draws if share else 1)]
    unlimited = np.array([np.inf])
    by_params = np.array([each.loss(PARAMS) for each in languages])
    by_tokens = np.array([[each.loss(unlimited, tokens)[0] for tokens in TOKENS] for each in languages])
    measured = []
    for language, params, tokens in zip(languages, by_params, by_tokens, strict=True):
        of_params, of_tokens = (
            _power_law(budgets, losses - language.irreducible)
            for budgets, losses in ((PARAMS, params), (TOKENS, tokens))
        )
        measured.append((language.irreducible, *of_params, *of_tokens))
    return Study(
        world=world,
        share=share,
        by_params=by_params,
        by_tokens=by_tokens,
        theory=predict(config),
        measured=PowerLaws(*np.mean(measured, axis=0)),
    )


def additive_fit() -> tuple[float, float]:
    """R^2 and largest relative error of E + A/N^alpha + B/D^beta, fitted to a ladder simulated with both budgets.

    Seven sizes and five horizons, all tasks expressible. The model's own joint law is no sum: tasks are learned until
    either budget is spent, and the other could as well be infinite.
    """
    language = Language(QuantizationConfig())
    points = []
    for size in np.logspace(2, 3.5, 7).round():
        for horizon in (0.5, 1.0, 2.0, 4.0, 8.0):
            tokens = round(size * 30 * horizon)
            point = LadderPoint(
                architecture="olmo3",
                size=f"{size:g}",
                num_params=int(size),
                tokens=tokens,
                flops=6.0 * size * tokens,
                loss=float(language.loss(np.array([size]), float(tokens))[0]),
                corpus="simulated",
                tokenizer="none",
                vocab_size=1,
                horizon=horizon,
                decayed=True,
                seed=0,
            )
            points.append(point)
    fit = fit_law(points, config=FitConfig(num_bootstrap=2))
    errors = [
        float(fit.law.loss(float(each.num_params), float(each.tokens))) / each.loss - 1 for each in points
    ]
    return fit.r_squared, float(np.abs(errors).max())


def _power_law(
    budgets: Float64[np.ndarray, "budgets"], reducible: Float64[np.ndarray, "budgets"]
) -> tuple[float, float]:
    """Coefficient and exponent of c x^-a through the logarithms."""
    slope, intercept = np.polyfit(np.log(budgets), np.log(reducible), 1)
    return float(np.exp(intercept)), float(-slope)
