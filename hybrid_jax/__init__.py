"""OLMo Hybrid and OLMo 3 in JAX and Flax: load, run, train, generate, save."""

from hybrid_jax.checkpoints import from_pretrained, save_pretrained
from hybrid_jax.config import ModelConfig
from hybrid_jax.generation import generate

__all__ = ["ModelConfig", "from_pretrained", "generate", "save_pretrained"]
