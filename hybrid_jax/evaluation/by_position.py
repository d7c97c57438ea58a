"""Bits per byte by position: whether what lies far back still helps to foretell what comes."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.token_scores import Stretch, score_stretches
from hybrid_jax.models import CausalLM


class PositionScore(NamedTuple):
    """How well tokens of some positions are foretold, pooled over texts.

    Attributes:
        start: the first position, counted from 0.
        stop: the one after the last.
        bits_per_byte: of the text that the tokens stand for.
    """

    start: int
    stop: int
    bits_per_byte: float


def bits_by_position(
    model: CausalLM,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    edges: Sequence[int],
    start_token_id: int,
    *,
    window: int = 512,
    batch_size: int = 8,
) -> list[PositionScore]:
    """Score the beginnings of texts, all tokens given all before them, and pool them by position.

    Args:
        model: what is scored.
        tokenizer: makes the tokens.
        texts: only those of at least ``edges[-1]`` tokens count, so that all positions are of the same texts.
        edges: where ranges of positions begin and end, ascending.
        start_token_id: what the model knows as the border of documents.
        window: tokens of a row read at once; decides speed and memory only.
        batch_size: rows read at once; likewise.

    Raises:
        InputError: no text is that long, or ``edges`` are not two or more ascending numbers.
    """
    if len(edges) < 2 or list(edges) != sorted(set(edges)) or edges[0] < 0:
        raise InputError(f"edges: found {list(edges)}, expected two or more ascending positions")
    length = edges[-1]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    long_enough = [(text, each) for text, each in zip(texts, encoded, strict=True) if len(each.ids) >= length]
    if not long_enough:
        longest = max((len(each.ids) for each in encoded), default=0)
        raise InputError(
            f"texts: found none of {length} tokens (the longest has {longest}), expected at least one"
        )
    stretches = [
        Stretch(np.array([start_token_id, *each.ids[:length]], np.int32), 1) for _, each in long_enough
    ]
    scores = score_stretches(model, stretches, window=window, batch_size=batch_size)
    bits = np.array([score.log_probs for score in scores], np.float64).sum(axis=0) / -math.log(2)
    sizes = np.array([bytes_by_token(text, each.offsets[:length]) for text, each in long_enough]).sum(axis=0)
    return [
        PositionScore(start, stop, float(np.sum(bits[start:stop]) / np.sum(sizes[start:stop])))
        for start, stop in pairwise(edges)
    ]


def bytes_by_token(text: str, offsets: Sequence[tuple[int, int]]) -> Int[np.ndarray, " n"]:
    """UTF-8 bytes that each token adds to the text before it; of tokens that share a character the first has all."""
    ends = np.maximum.accumulate([stop for _, stop in offsets])
    sizes = np.cumsum([0] + [len(character.encode()) for character in text[: ends[-1]]])
    return np.diff(sizes[ends], prepend=0)
