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


class Piece(NamedTuple):
    """A part of a text.

    Attributes:
        ids: its tokens.
        num_bytes: that each of them adds to the text.
    """

    ids: Int[np.ndarray, " n"]
    num_bytes: Int[np.ndarray, " n"]


def cut_pieces(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> list[Piece]:
    """Cut texts into pieces of ``length`` tokens, each to be read from its own beginning; what is left over is dropped.

    Raises:
        InputError: no text is that long.
    """
    pieces, longest = [], 0
    for text in texts:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        longest = max(longest, len(encoded.ids))
        ids, num_bytes = np.array(encoded.ids, np.int32), bytes_by_token(text, encoded.offsets)
        for start in range(0, len(ids) - length + 1, length):
            part = slice(start, start + length)
            pieces.append(Piece(ids[part], num_bytes[part]))
    if not pieces:
        raise InputError(
            f"texts: found none of {length} tokens (the longest has {longest}), expected at least one"
        )
    return pieces


def bits_by_position(
    model: CausalLM,
    pieces: Sequence[Piece],
    edges: Sequence[int],
    start_token_id: int,
    *,
    window: int = 512,
    batch_size: int = 8,
) -> list[PositionScore]:
    """Score pieces of texts, all tokens given all before them in their piece, and pool them by position.

    Args:
        model: what is scored.
        pieces: of at least ``edges[-1]`` tokens each, so that all positions are of the same texts.
        edges: where ranges of positions begin and end, ascending.
        start_token_id: what the model knows as the border of documents.
        window: tokens of a row read at once; decides speed and memory only.
        batch_size: rows read at once; likewise.

    Raises:
        InputError: ``edges`` are not two or more ascending numbers, or a piece is shorter than the last.
    """
    if len(edges) < 2 or list(edges) != sorted(set(edges)) or edges[0] < 0:
        raise InputError(f"edges: found {list(edges)}, expected two or more ascending positions")
    length = edges[-1]
    shortest = min((len(piece.ids) for piece in pieces), default=0)
    if shortest < length:
        raise InputError(f"pieces: found one of {shortest} tokens, expected at least {length}, the last edge")
    stretches = [Stretch(np.array([start_token_id, *piece.ids[:length]], np.int32), 1) for piece in pieces]
    scores = score_stretches(model, stretches, window=window, batch_size=batch_size)
    bits = np.array([score.log_probs for score in scores], np.float64).sum(axis=0) / -math.log(2)
    num_bytes = np.sum([piece.num_bytes[:length] for piece in pieces], axis=0)
    return [
        PositionScore(start, stop, float(np.sum(bits[start:stop]) / np.sum(num_bytes[start:stop])))
        for start, stop in pairwise(edges)
    ]


def bytes_by_token(text: str, offsets: Sequence[tuple[int, int]]) -> Int[np.ndarray, " n"]:
    """UTF-8 bytes that each token adds to the text before it; of tokens that share a character the first has all."""
    if not offsets:
        return np.zeros(0, np.int64)
    ends = np.maximum.accumulate([stop for _, stop in offsets])
    sizes = np.cumsum([0] + [len(character.encode()) for character in text[: ends[-1]]])
    return np.diff(sizes[ends], prepend=0)
