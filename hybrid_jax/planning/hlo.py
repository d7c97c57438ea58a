"""Reading the text of a compiled XLA program: its computations, and how often each of them runs in one execution."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"\{?((?:%[\w.-]+(?:, )?)+)\}?"
)
# Instructions that run other computations as they stand; a fusion's or a reduction's are part of the instruction.
_CALLERS = ("while", "call", "conditional", "async-start")


class Shape(NamedTuple):
    """One array of a program."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        digits = re.search(r"\d+", self.dtype)  # none: a token, which is nothing but order
        bits = _BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return math.prod(self.dims) * bits // 8


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in its computation.
        opcode: as XLA writes it: "fusion", "all-gather-start".
        shapes: of its results, tuples flattened.
        operands: names of instructions of the same computation.
        attributes: the rest of the line.
        is_root: whether it is what the computation returns.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def num_bytes(self) -> int:
        """Size of its results."""
        return sum(shape.num_bytes for shape in self.shapes)

    def attribute(self, name: str) -> tuple[int, ...]:
        """The numbers of ``name={1,2}``; none if the line has no such attribute."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return _numbers(found[1]) if found else ()

    def called(self) -> tuple[str, ...]:
        """Names of the computations this one refers to."""
        return tuple(name for found in _CALLED.findall(self.attributes) for name in _OPERAND.findall(found))


Computation = dict[str, Instruction]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program of one device.

    Attributes:
        computations: their instructions by name, in the order they run.
        entry: the computation that runs first.
        num_devices: how many devices run the program together.
    """

    computations: dict[str, Computation]
    entry: str
    num_devices: int

    def executed(self) -> Iterator[tuple[Computation, int]]:
        """Every computation that runs by itself, with the number of times it does.

        Of a conditional's branches each counts as often as the conditional. Raises ValueError for a loop of which
        the compiler does not know how often it runs.
        """
        times: Counter[str] = Counter()
        self._count(self.entry, 1, times)
        for name, number in times.items():
            yield self.computations[name], number

    def _count(self, name: str, number: int, times: Counter[str]) -> None:
        times[name] += number
        for instruction in self.computations[name].values():
            if instruction.opcode in _CALLERS:
                trips = _TRIP_COUNT.search(instruction.attributes)
                if instruction.opcode == "while" and not trips:
                    raise ValueError(f"the loop {instruction.name} runs an unknown number of times")
                for called in instruction.called():
                    self._count(called, number * (int(trips[1]) if trips else 1), times)


def parse(text: str) -> Program:
    """Read what ``compiled.as_text()`` gives."""
    header, *lines = text.splitlines()
    partitions = re.search(r"num_partitions=(\d+)", header)
    computations: dict[str, Computation] = {}
    entry = ""
    for line in lines:
        if begins := _COMPUTATION.match(line):
            computations[begins[2]] = current = {}
            entry = begins[2] if begins[1] else entry
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found[2], found[3], is_root=bool(found[1]))
            current[instruction.name] = instruction
    return Program(
        computations=computations, entry=entry, num_devices=int(partitions[1]) if partitions else 1
    )


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ") - 1
    shape, rest = text[: end + 1], text[end + 2 :]
    opcode, _, rest = rest.partition("(")
    end = _closing(f"({rest}", 0)
    arguments, attributes = rest[: end - 1], rest[end:]
    return Instruction(
        name=name,
        opcode=opcode,
        shapes=tuple(Shape(dtype, _numbers(dims)) for dtype, dims in _ARRAY.findall(shape)),
        operands=tuple(_OPERAND.findall(arguments)),
        attributes=attributes,
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at ``start`` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
