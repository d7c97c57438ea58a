"""The decoder and its parts, as Flax NNX modules that are plain JAX pytrees."""

from hybrid_jax.models.cache import Cache, init_cache
from hybrid_jax.models.causal_lm import CausalLM, CausalLMOutput, count_parameters, create_model
from hybrid_jax.models.paths import named_parameters

__all__ = [
    "Cache",
    "CausalLM",
    "CausalLMOutput",
    "count_parameters",
    "create_model",
    "init_cache",
    "named_parameters",
]
