"""Learning rate by step: warmup, then cosine, linear or warmup-stable-decay (OLMo-core's ``optim/scheduler.py``)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int

from hybrid_jax.errors import InputError

Schedule = Callable[[Int[Array, ""] | int], Float32[Array, ""]]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate's course over a run of T steps.

    Lengths are steps if written as integers, and shares of T if written as fractions below 1 (``0.03``).

    Attributes:
        kind: "cosine" or "linear" decay from the end of warmup to T; "wsd" (warmup, stable, decay) stays at the
            peak until the last ``decay`` and falls linearly.
        learning_rate: the peak.
        warmup: length of the linear rise from 0.
        decay: length of the fall; only "wsd" has one.
        final_fraction: the rate at T as a share of the peak; None is 0.1 for "cosine" and 0 otherwise.

    Raises:
        InputError: a field is out of its range.
    """

    kind: Literal["cosine", "linear", "wsd"] = "cosine"
    learning_rate: float = 3e-4
    warmup: int | float = 0
    decay: int | float = 0.1
    final_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "linear", "wsd"):
            raise InputError(f"kind: found {self.kind!r}, expected 'cosine', 'linear' or 'wsd'")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate: found {self.learning_rate}, expected a positive number")
        for name, length in (("warmup", self.warmup), ("decay", self.decay)):
            if length < 0 or (isinstance(length, float) and not length < 1):
                raise InputError(f"{name}: found {length}, expected a number of steps or a fraction below 1")
        if self.final_fraction is not None and not 0 <= self.final_fraction <= 1:
            raise InputError(f"final_fraction: found {self.final_fraction}, expected 0 to 1")


def make_schedule(config: ScheduleConfig, num_steps: int) -> Schedule:
    """The learning rate (float32) of the update after ``count`` earlier ones, as optax counts.

    OLMo-core counts the first update as s = 1, so s = count + 1; from s = ``num_steps`` on the rate is the final one.

    Raises:
        InputError: warmup, or warmup and decay together, are longer than the run.
    """
    warmup = _as_steps(config.warmup, num_steps)
    decay = _as_steps(config.decay, num_steps) if config.kind == "wsd" else max(num_steps - warmup, 0)
    if warmup + decay > num_steps:
        lengths = f"warmup {warmup}" + (f" and decay {decay}" if config.kind == "wsd" else "")
        raise InputError(f"schedule: found {lengths} steps, expected at most num_steps = {num_steps}")
    peak = config.learning_rate
    final = config.final_fraction
    if final is None:
        final = 0.1 if config.kind == "cosine" else 0.0

    def schedule(count: Int[Array, ""] | int) -> Float32[Array, ""]:
        step = jnp.asarray(count, jnp.float32) + 1
        rise = jnp.minimum(step / max(warmup, 1), 1.0)
        progress = jnp.clip((step - (num_steps - decay)) / max(decay, 1), 0.0, 1.0)
        fall = (1 + jnp.cos(jnp.pi * progress)) / 2 if config.kind == "cosine" else 1 - progress
        return peak * jnp.where(step < warmup, rise, final + (1 - final) * fall)

    return schedule


def _as_steps(length: int | float, num_steps: int) -> int:
    return length if isinstance(length, int) else round(length * num_steps)
