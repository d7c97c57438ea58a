"""What a model is: its configuration, presets, and the translation to and from Hugging Face's config.json."""

from hybrid_jax.config.model_config import LayerGroup, LayerSpec, ModelConfig
from hybrid_jax.config.presets import PRESETS
from hybrid_jax.config.rope import Rope, RopeParameters

__all__ = ["PRESETS", "LayerGroup", "LayerSpec", "ModelConfig", "Rope", "RopeParameters"]
