"""OLMo Hybrid and OLMo 3 in JAX and Flax: load, run, train, generate, save."""

from hybrid_jax.config import ModelConfig

__all__ = ["ModelConfig"]
