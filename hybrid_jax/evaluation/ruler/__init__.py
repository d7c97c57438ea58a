"""RULER (Hsieh et al. 2024, arXiv:2404.06654) without downloads: what a model finds in a text of a given length."""

from hybrid_jax.evaluation.ruler.samples import make_samples
from hybrid_jax.evaluation.ruler.scores import Cell, score_reply, score_task
from hybrid_jax.evaluation.ruler.tasks import TASKS, Sample
from hybrid_jax.evaluation.ruler.texts import Texts, read_haystack

__all__ = [
    "TASKS",
    "Cell",
    "Sample",
    "Texts",
    "make_samples",
    "read_haystack",
    "score_reply",
    "score_task",
]
