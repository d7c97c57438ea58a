"""OLMo Hybrid in JAX and Flax."""
