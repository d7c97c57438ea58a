"""The decoder and its parts, as Flax NNX modules that are plain JAX pytrees."""

from hybrid_jax.models.cache import Cache
from hybrid_jax.models.causal_lm import CausalLM, CausalLMOutput, create_model

__all__ = ["Cache", "CausalLM", "CausalLMOutput", "create_model"]
