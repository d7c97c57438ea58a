"""RULER's score: the share of a question's answers that a model's reply contains."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.inputs import check_tokenizer
from hybrid_jax.evaluation.ruler.samples import make_samples
from hybrid_jax.evaluation.ruler.tasks import TASKS
from hybrid_jax.evaluation.ruler.texts import Texts
from hybrid_jax.generation import generate
from hybrid_jax.models import CausalLM

_NOT_PRINTABLE = re.compile(r"[\x00-\x1f]")


class Cell(NamedTuple):
    """A model's score on a task at a length.

    Attributes:
        model: its name.
        task: one of ``TASKS``.
        length: tokens of each question and its answer, at most.
        num_samples: how many questions.
        seed: that they were made from.
        dtype: of the model's weights and matmuls.
        haystack: ``Texts.digest`` of what they were made from.
        score: 0 to 100, the mean over the questions.
    """

    model: str
    task: str
    length: int
    num_samples: int
    seed: int
    dtype: str
    haystack: str
    score: float


def score_task(
    model: CausalLM,
    tokenizer: Tokenizer,
    task: str,
    length: int,
    texts: Texts,
    *,
    num_samples: int = 100,
    seed: int = 0,
    batch_size: int = 8,
) -> float:
    """Ask a model the questions of a task, and score its replies.

    Each is the likeliest continuation, of as many tokens as RULER gives the task.

    Args:
        model: what is scored.
        tokenizer: its tokenizer.
        task: one of ``TASKS``.
        length: tokens of each question and its answer, at most.
        texts: haystack and words.
        num_samples: how many questions.
        seed: for all that is drawn in them.
        batch_size: questions answered at once.

    Returns:
        The mean of ``score_reply`` in percent.

    Raises:
        InputError: as ``make_samples``; ``batch_size`` below 1; a tokenizer that makes tokens the model does not have;
            a length beyond a model's rotary positions.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: found {batch_size}, expected at least 1")
    check_length(model, length)
    check_tokenizer(tokenizer, model.config)
    samples = make_samples(task, tokenizer, length, num_samples, texts, seed=seed)
    prompts = [tokenizer.encode(sample.prompt).ids for sample in samples]
    replies: list[list[int]] = []
    for first in range(0, num_samples, batch_size):
        batch = prompts[first : first + batch_size]
        # A last batch of another size would be compiled for anew.
        missing = min(batch_size, num_samples) - len(batch)
        replies += generate(model, batch + batch[-1:] * missing, TASKS[task].max_new_tokens)[: len(batch)]
    texts_of_replies = tokenizer.decode_batch(replies)
    scores = [
        score_reply(reply, sample.answers) for reply, sample in zip(texts_of_replies, samples, strict=True)
    ]
    return 100 * float(np.mean(scores))


def score_reply(reply: str, answers: Sequence[str]) -> float:
    """Share of ``answers`` that stand anywhere in ``reply``, whatever their case (RULER's ``string_match_all``)."""
    found = _NOT_PRINTABLE.sub("\n", reply.strip()).lower()
    return sum(answer.lower() in found for answer in answers) / len(answers)


def check_length(model: CausalLM, length: int) -> None:
    """Refuse texts longer than a model's rotary positions reach.

    Raises:
        InputError: they are.
    """
    config = model.config
    if config.is_rotary and length > config.max_position_embeddings:
        raise InputError(
            f"length: found {length} tokens, expected at most the model's max_position_embeddings "
            f"{config.max_position_embeddings}, where its rotary positions end"
        )
