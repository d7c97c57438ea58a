"""The smallest sweep that has every part."""

from pathlib import Path
from typing import Any

from hybrid_jax.config import ModelConfig
from hybrid_jax.expressivity.config import StageConfig, SweepConfig, TaskConfig
from hybrid_jax.expressivity.results import Check, Result, Run

MODEL: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "max_position_embeddings": 32,
}


def small_task(**overrides: Any) -> TaskConfig:
    own: dict[str, Any] = {
        "architectures": ("hybrid_1to1_neg",),
        "lengths": (2, 4),
        "stages": (StageConfig(length=2, num_steps=2), StageConfig(length=4, num_steps=4)),
    }
    return TaskConfig(**{**own, **overrides})


def small_sweep(folder: Path, model: dict[str, Any] | None = None, **overrides: Any) -> SweepConfig:
    own: dict[str, Any] = {
        "output_folder": folder,
        "tasks": {"state_tracking": small_task()},
        "vocabulary": "statements",
        "batch_size": 4,
        "warmup": 1,
        "check_interval": 2,
        "num_samples": 8,
    }
    return SweepConfig(model=ModelConfig(**{**MODEL, **(model or {})}), **{**own, **overrides})


def made_up(run: Run, accuracy: dict[int, float] | None = None) -> Result:
    """A result that no one computed."""
    return Result(
        run=run,
        accuracy=accuracy or {2: 1.0, 4: 0.5},
        num_steps=6,
        num_parameters=100,
        seconds=1.5,
        curve=(Check(2, 2, 1.25, 0.5), Check(6, 4, 1.0, 0.75)),
    )
