"""The smallest ladder that has every part: on random tokens, in runs of some dozen steps."""

from pathlib import Path
from typing import Any

import numpy as np

from hybrid_jax.config import ModelConfig
from hybrid_jax.data.config import DataConfig
from hybrid_jax.ladder import LadderConfig, SizeConfig
from hybrid_jax.sharding import MeshConfig
from hybrid_jax.training.run_config import CheckpointConfig, LoggingConfig
from tests.training.toy import EOS, LENGTH, VOCAB_SIZE, toy_data, write_tokens

NUM_HELD_OUT, HELD_OUT_LENGTH = 6, 20


def small_size(width: int = 8, num_layers: int = 1) -> SizeConfig:
    return SizeConfig(
        hidden_size=width, num_attention_heads=2, num_hidden_layers=num_layers, intermediate_size=2 * width
    )


def small_data(folder: Path) -> DataConfig:
    """Shards to train on, ``tokens.npy``, and to evaluate on, ``held_out.npy``."""
    held_out = (
        np.random.default_rng(1).integers(3, VOCAB_SIZE, (NUM_HELD_OUT, HELD_OUT_LENGTH + 1)).astype(np.uint8)
    )
    held_out[:, -1] = EOS
    held_out.tofile(folder / "held_out.npy")
    return toy_data(write_tokens(folder / "tokens.npy"))


def small_ladder(folder: Path, **overrides: Any) -> LadderConfig:
    own: dict[str, Any] = {
        "output_folder": folder / "ladder",
        "architectures": ("olmo3", "gdn"),
        "sizes": {"a": small_size(8), "b": small_size(12)},
        "horizons": (0.1, 0.2),
        "corpus": "random",
        "tokenizer": "none",
        "held_out": (folder / "held_out.npy",),
        "model": ModelConfig(
            vocab_size=VOCAB_SIZE,
            sliding_window=LENGTH // 2,
            max_position_embeddings=LENGTH,
            eos_token_id=EOS,
            pad_token_id=0,
        ),
        "linear_key_head_multiple": 2,
        "microbatch_size": 4,
        "checkpoint": CheckpointConfig(interval=1000, keep_last=1),
        "logging": LoggingConfig(interval=50),
        "mesh": MeshConfig(fsdp=1),
    }
    if "data" not in overrides:
        own["data"] = small_data(folder)
    return LadderConfig(**{**own, **overrides})
