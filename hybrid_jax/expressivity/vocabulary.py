"""Programs as tokens: a program is a row of pieces of text, and a vocabulary says what tokens a piece is made of."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

Granularity = Literal["words", "statements"]
PADDING = "<pad>"
# What stands in a row of pieces or tokens where there is nothing.
ABSENT = -1
_WORD = re.compile(r" ?(?:\w+|==|[^\w\s])|\n")


class Programs(NamedTuple):
    """Rows of pieces, ``ABSENT`` where a row has nothing, and which of them are answers to be checked."""

    pieces: Int[np.ndarray, "B P"]
    is_answer: Bool[np.ndarray, "B P"]


class TokenRows(NamedTuple):
    """The same as token ids, padding last; an answer is the first token of its piece."""

    ids: Int32[np.ndarray, "B T"]
    is_answer: Bool[np.ndarray, "B T"]


class Vocabulary:
    """Token ids of pieces; the joined tokens of a program are its text, and Python runs it.

    Attributes:
        pieces: the pieces' text.
        tokens: every token's text; id 0 is padding.
    """

    def __init__(self, pieces: Sequence[str], granularity: Granularity) -> None:
        """Make every piece a token ("statements"), or every word, sign and line end of it ("words")."""
        self.pieces = tuple(pieces)
        split = [[piece] if granularity == "statements" else _WORD.findall(piece) for piece in pieces]
        self.tokens = (PADDING, *dict.fromkeys(token for tokens in split for token in tokens))
        ids = {token: index for index, token in enumerate(self.tokens)}
        width = max(map(len, split))
        self._table = np.array(
            # The last row is what index ABSENT finds.
            [[ids[token] for token in tokens] + [ABSENT] * (width - len(tokens)) for tokens in (*split, ())],
            np.int32,
        )

    def encode(self, programs: Programs, num_tokens: int) -> TokenRows:
        """Rows of ``num_tokens`` ids; no program may have more."""
        num_rows = len(programs.pieces)
        ids = self._table[programs.pieces]
        is_answer = np.zeros(ids.shape, bool)
        is_answer[..., 0] = programs.is_answer
        ids, is_answer = ids.reshape(num_rows, -1), is_answer.reshape(num_rows, -1)
        kept = np.argsort(ids == ABSENT, axis=1, kind="stable")[:, :num_tokens]
        ids, is_answer = (np.take_along_axis(each, kept, axis=1) for each in (ids, is_answer))
        padding = ((0, 0), (0, num_tokens - ids.shape[1]))
        return TokenRows(np.pad(np.maximum(ids, 0), padding), np.pad(is_answer, padding))

    def count_tokens(self, programs: Programs) -> Int[np.ndarray, " B"]:
        """How many tokens each program has."""
        return (self._table[programs.pieces] != ABSENT).sum((1, 2))

    def decode(self, ids: Int[np.ndarray, " T"]) -> str:
        """The program's text."""
        return "".join(self.tokens[index] for index in ids if index)
