"""The paper's three synthetic tasks (arXiv 2604.03444, Section 3.5 and Appendix C), as programs that Python runs.

State tracking: follow n swaps of five variables. Recall: look up one of m bits by its index. State-based recall: look
up the bit that a variable points to after n swaps, m = n. All rows of a call are made at once with numpy.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from hybrid_jax.errors import InputError
from hybrid_jax.expressivity.vocabulary import ABSENT, Programs

VARIABLES = "abcde"
# Ordered: ``a, b = b, a`` and ``b, a = a, b`` are the same swap written in two ways.
SWAPS = np.array([(x, y) for x in range(len(VARIABLES)) for y in range(len(VARIABLES)) if x != y])
# The share of state-based recall's programs that ask nothing before their end.
SHARE_WITHOUT_ASSERTS = 0.2

_NUM_VARIABLES, _NUM_SWAPS = len(VARIABLES), len(SWAPS)
_SWAP_LINES = tuple(
    f"{VARIABLES[x]}, {VARIABLES[y]} = {VARIABLES[y]}, {VARIABLES[x]}\n" for x, y in SWAPS.tolist()
)


class Task(ABC):
    """One of the tasks, with all that programs up to ``max_length`` can contain.

    Attributes:
        name: as in configurations and results.
        min_length: the shortest program that asks anything.
        chance: accuracy of guessing.
        pieces: the text of every piece; a program is a row of indices into it.

    Raises:
        InputError: ``max_length`` is below ``min_length``.
    """

    name: ClassVar[str]
    min_length: ClassVar[int]
    chance: ClassVar[float]
    pieces: tuple[str, ...]

    def __init__(self, max_length: int) -> None:
        self.check_length(max_length)
        self.max_length = max_length

    def check_length(self, length: int) -> None:
        """Raise InputError if there are no programs of this length."""
        if length < self.min_length:
            raise InputError(
                f"{self.name}: found length {length}, expected at least {self.min_length}, the task's shortest program"
            )

    @abstractmethod
    def generate(self, rng: np.random.Generator, length: int, intervals: Int[np.ndarray, " B"]) -> Programs:
        """A program for each entry of ``intervals``, the swaps from one assert to the next (0: only the last)."""

    def draw_intervals(
        self, rng: np.random.Generator, num_rows: int, length: int, num_asserts: int | None
    ) -> Int[np.ndarray, " B"]:
        """Intervals for training.

        An assert after every ``length // num_asserts`` steps; for None the spacing is drawn from the powers of 2 up to
        ``length``, and a fifth of the programs has only the last.
        """
        if num_asserts is not None:
            return np.full(num_rows, max(1, length // num_asserts))
        intervals = 2 ** rng.integers(0, length.bit_length(), num_rows)
        return np.where(rng.random(num_rows) < SHARE_WITHOUT_ASSERTS, 0, intervals)

    def longest(self, length: int, num_asserts: int | None) -> Programs:
        """One program with as many tokens as any that is drawn for training."""
        rng = np.random.default_rng(0)
        intervals = self.draw_intervals(rng, 1, length, length if num_asserts is None else num_asserts)
        return self.generate(rng, length, intervals)


class StateTracking(Task):
    """``a, b, c, d, e = range(5)``, n swaps, ``assert a == _``."""

    name = "state_tracking"
    min_length = 1
    chance = 1 / _NUM_VARIABLES
    pieces = (
        f"{', '.join(VARIABLES)} = range({_NUM_VARIABLES})\n",
        *_SWAP_LINES,
        *(f"assert {name} ==" for name in VARIABLES),
        *(f" {value}\n" for value in range(_NUM_VARIABLES)),
    )

    def generate(self, rng: np.random.Generator, length: int, intervals: Int[np.ndarray, " B"]) -> Programs:
        num_rows = len(intervals)
        start = np.broadcast_to(np.arange(_NUM_VARIABLES), (num_rows, _NUM_VARIABLES))
        swaps, asked, values = _swap(rng, start, length)
        first_assert, first_answer = 1 + _NUM_SWAPS, 1 + _NUM_SWAPS + _NUM_VARIABLES
        header = np.zeros((num_rows, 1), np.int64)
        return _assemble(header, 1 + swaps, first_assert + asked, first_answer + values, intervals)


class Recall(Task):
    """``bits = [...]`` of m bits, ``a = 36``, ``assert bits[a] == _``."""

    name = "recall"
    min_length = 2
    chance = 0.5

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length)
        self.pieces = (
            *_BITS,
            *(f"a = {index}\n" for index in range(max_length)),
        )

    def generate(self, rng: np.random.Generator, length: int, intervals: Int[np.ndarray, " B"]) -> Programs:
        num_rows = len(intervals)
        bits = rng.integers(0, 2, (num_rows, length))
        asked = rng.integers(0, length, (num_rows, 1))
        answers = np.take_along_axis(bits, asked, axis=1)
        question = np.stack(
            [_NUM_BITS + asked, np.full_like(asked, _BITS_ASSERT), _BITS_ANSWER + answers], -1
        )
        return _mark_answers(_list_of(bits), question)


class StateBasedRecall(Task):
    """``bits = [...]`` of n bits, five variables in [0, n - 1], n swaps, ``assert bits[a] == _``."""

    name = "state_based_recall"
    min_length = 2
    chance = 0.5

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length)
        self.pieces = (
            *_BITS,
            *_SWAP_LINES,
            *(f"assert bits[{name}] ==" for name in VARIABLES),
            f"{', '.join(VARIABLES)} =",
            "\n",
            *(f" {index}," for index in range(max_length)),
        )

    def generate(self, rng: np.random.Generator, length: int, intervals: Int[np.ndarray, " B"]) -> Programs:
        num_rows = len(intervals)
        bits = rng.integers(0, 2, (num_rows, length))
        start = rng.integers(0, length, (num_rows, _NUM_VARIABLES))
        swaps, asked, values = _swap(rng, start, length)
        answers = np.take_along_axis(bits, values, axis=1)
        first_assert = _NUM_BITS + _NUM_SWAPS
        variables = first_assert + _NUM_VARIABLES
        line = np.full((num_rows, 1), variables)
        header = np.concatenate([_list_of(bits), line, variables + 2 + start, line + 1], axis=1)
        return _assemble(header, _NUM_BITS + swaps, first_assert + asked, _BITS_ANSWER + answers, intervals)


TASKS: dict[str, type[Task]] = {task.name: task for task in (StateTracking, Recall, StateBasedRecall)}

# What recall and state-based recall share, and where it stands among their pieces.
_BITS = ("bits = [", "0,", "1,", "]\n", "assert bits[a] ==", " 0\n", " 1\n")
_LIST_OPENS, _FIRST_BIT, _LIST_CLOSES, _BITS_ASSERT, _BITS_ANSWER = 0, 1, 3, 4, 5
_NUM_BITS = len(_BITS)


def make_task(name: str, max_length: int) -> Task:
    """The task called ``name``. Raises InputError for an unknown one or a length that it does not have."""
    if name not in TASKS:
        raise InputError(f"task: found {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name](max_length)


def _swap(
    rng: np.random.Generator, start: Int[np.ndarray, "B 5"], num_lines: int
) -> tuple[Int[np.ndarray, "B n"], Int[np.ndarray, "B n"], Int[np.ndarray, "B n"]]:
    """Swaps, uniform over the 20 lines; a variable to ask for after each, uniform; and its value then."""
    num_rows = len(start)
    swaps = rng.integers(0, _NUM_SWAPS, (num_rows, num_lines))
    asked = rng.integers(0, _NUM_VARIABLES, (num_rows, num_lines))
    values = np.empty_like(asked)
    state, rows = start.copy(), np.arange(num_rows)
    for line in range(num_lines):
        x, y = SWAPS[swaps[:, line]].T
        state[rows, x], state[rows, y] = state[rows, y], state[rows, x]
        values[:, line] = state[rows, asked[:, line]]
    return swaps, asked, values


def _list_of(bits: Int[np.ndarray, "B m"]) -> Int[np.ndarray, "B m2"]:
    edge = np.zeros((len(bits), 1), np.int64)
    return np.concatenate([edge + _LIST_OPENS, _FIRST_BIT + bits, edge + _LIST_CLOSES], axis=1)


def _assemble(
    header: Int[np.ndarray, "B h"],
    swaps: Int[np.ndarray, "B n"],
    asserts: Int[np.ndarray, "B n"],
    answers: Int[np.ndarray, "B n"],
    intervals: Int[np.ndarray, " B"],
) -> Programs:
    """Header, swaps, an assert after every ``interval`` of them, and one after the last."""
    num_lines = np.arange(1, swaps.shape[1] + 1)
    every = np.where(intervals > 0, intervals, swaps.shape[1])
    is_asked = num_lines % every[:, None] == 0
    is_asked[:, -1] = True
    lines = np.stack([swaps, asserts, answers], axis=-1)
    lines[..., 1:][~is_asked] = ABSENT
    return _mark_answers(header, lines)


def _mark_answers(header: Int[np.ndarray, "B h"], lines: Int[np.ndarray, "B n 3"]) -> Programs:
    """One row of pieces; the last of the three in each line is an answer where there is one."""
    is_answer = np.zeros(lines.shape, bool)
    is_answer[..., 2] = lines[..., 2] != ABSENT
    num_rows = len(header)
    return Programs(
        np.concatenate([header, lines.reshape(num_rows, -1)], axis=1),
        np.concatenate([np.zeros(header.shape, bool), is_answer.reshape(num_rows, -1)], axis=1),
    )
