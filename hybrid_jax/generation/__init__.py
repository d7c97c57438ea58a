"""Text from prompts: sampling, prefill in chunks, and the decode loop on device."""

from hybrid_jax.generation.api import generate, stream

__all__ = ["generate", "stream"]
