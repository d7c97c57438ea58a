"""How well a model does on text it has not seen: bits per byte, and the tasks of lm-eval."""

from hybrid_jax.evaluation.bits_per_byte import (
    Document,
    TextScore,
    compressed_bits_per_byte,
    pooled,
    score_documents,
)
from hybrid_jax.evaluation.inputs import border_token_id, read_documents
from hybrid_jax.evaluation.lm_eval_model import lm_eval_model, run_tasks

__all__ = [
    "Document",
    "TextScore",
    "border_token_id",
    "compressed_bits_per_byte",
    "lm_eval_model",
    "pooled",
    "read_documents",
    "run_tasks",
    "score_documents",
]
