"""Scaling laws: fitted to a ladder's results, and the published ones put to the test (arXiv 2604.03444, Section 4)."""

from hybrid_jax.scaling.fit import Fit, FitConfig, fit_law
from hybrid_jax.scaling.law import Allocation, ScalingLaw
from hybrid_jax.scaling.points import LadderPoint, append_point, read_points
from hybrid_jax.scaling.savings import token_savings

__all__ = [
    "Allocation",
    "Fit",
    "FitConfig",
    "LadderPoint",
    "ScalingLaw",
    "append_point",
    "fit_law",
    "read_points",
    "token_savings",
]
