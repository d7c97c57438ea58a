"""Scaling ladders: sizes x architectures x horizons, trained and evaluated (arXiv 2604.03444, Appendix D)."""

from hybrid_jax.ladder.config import LadderConfig, SizeConfig
from hybrid_jax.ladder.plan import PlannedRun, plan_ladder
from hybrid_jax.ladder.runner import run_ladder

__all__ = ["LadderConfig", "PlannedRun", "SizeConfig", "plan_ladder", "run_ladder"]
