"""Models on disk: Hugging Face folders and Orbax checkpoints, read and written."""

from hybrid_jax.checkpoints.orbax_io import load_orbax, save_orbax
from hybrid_jax.checkpoints.pretrained import from_pretrained, save_pretrained

__all__ = ["from_pretrained", "load_orbax", "save_orbax", "save_pretrained"]
