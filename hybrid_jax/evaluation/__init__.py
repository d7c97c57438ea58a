"""How well a model does on text it has not seen."""

from hybrid_jax.evaluation.bits_per_byte import TextScore, compressed_bits_per_byte, score_documents

__all__ = ["TextScore", "compressed_bits_per_byte", "score_documents"]
