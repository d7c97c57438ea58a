"""Whether the kernels are right on this device, and the same every time: threads that race seldom do so alike."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from scripts.gdn_bench.inputs import HARD, LASTING, make_inputs
from scripts.gdn_bench.programs import Program, by_definition, by_kernels, error, everything, token_by_token
from scripts.gdn_bench.report import FAILED, Report, Row, attempt
from scripts.gdn_bench.settings import Arrays, Settings

_SAME = "same twice"


class Bounds(NamedTuple):
    """Errors that are allowed, relative to the recurrence in float64."""

    o: float
    state: float
    gradient: float

    def of(self, name: str) -> float:
        return getattr(self, name, self.gradient)


# States, errors and products are rounded to bfloat16 between matrix products that add up in float32.
ORDINARY = Bounds(5e-3, 5e-3, 1e-2)
# Where roundings of 2^-9 last, and are written back nearly twice.
LASTING_ERRORS = Bounds(4e-2, 4e-2, 1e-1)
# Decoding is float32 throughout; only the output is rounded.
DECODE = Bounds(5e-3, 1e-4, 0.0)
# What float32 knows as 0, and the norm that it may have.
_NOTHING, _OF_NOTHING = 1e-30, 1e-6


class Case(NamedTuple):
    """Inputs of one shape, which share a compiled program."""

    name: str
    dims: tuple[int, int]
    inputs: Iterator[Arrays]
    bounds: Bounds
    program: Program = everything


def conformance(settings: Settings, report: Report) -> None:
    """Every case, with its worst error of each array; what is out of bounds is a problem."""
    title = (
        "Worst error of the kernels, relative to the recurrence token by token in float64; every input twice"
    )
    names = ["o", "state", "dq", "dk", "dv", "dg", "dbeta", "dstate"]
    report.begin("conformance", title, ["case", "K / V", _SAME, *names])
    for case in cases(settings):
        where = {"case": case.name, "K / V": " / ".join(map(str, case.dims))}
        worst, reasons = attempt(case.name, partial(_worst, case))
        report.row(where | (worst or {}) | {FAILED: reasons})
        for fault in reasons or _faults(worst, case.bounds):
            report.problem(f"{where['K / V']}, {case.name}: {fault}")


def cases(settings: Settings) -> Iterator[Case]:
    """What is checked: everything at the tuned K and V, documents at all others, and decoding."""
    rows, length = settings.checked
    make = partial(make_inputs, heads=settings.checked_heads)

    def seeds(dims: tuple[int, int], number: int) -> Iterator[Arrays]:
        return (make(seed, rows, length, dims=dims, documents=seed % 2 == 0) for seed in range(number))

    for dims in settings.tuned_dims:
        yield Case(f"{settings.num_seeds} seeds", dims, seeds(dims, settings.num_seeds), ORDINARY)
        for hard, bounds in ((HARD, ORDINARY), (LASTING, LASTING_ERRORS)):
            for name, change in list(hard.items())[:: settings.hard_stride]:
                yield Case(name, dims, iter([change(make(0, rows, length, dims=dims))]), bounds)
    for dims in settings.other_dims:
        yield Case("2 seeds", dims, seeds(dims, 2), ORDINARY)
    yield Case(
        "one token", settings.tuned_dims[0], iter([make(0, rows, 1, dims=settings.tuned_dims[0])]), ORDINARY
    )
    for dims in settings.decode_dims:
        arrays = make(0, rows, 3 if settings.interpret else 20, dims=dims)
        arrays["g"][:, 1] = -np.inf  # a document begins
        yield Case("decoding", dims, iter([arrays]), DECODE, token_by_token)


def _worst(case: Case) -> Row:
    """Largest error of each array, NaN if anything is not finite, and whether both runs agree to the bit."""
    worst: dict[str, float] = {}
    same = True
    for arrays in case.inputs:
        found, again = (by_kernels(case.program, arrays) for _ in range(2))
        for name, expected in by_definition(case.program, arrays).items():
            off = _error(found[name], expected)
            worst[name] = float(np.maximum(worst.get(name, 0.0), off))  # keeps NaN, as max does not
            same &= np.array_equal(found[name], again[name], equal_nan=True)
    return {**worst, _SAME: same}


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    if np.linalg.norm(expected) < _NOTHING:
        return 0.0 if np.linalg.norm(np.asarray(found, np.float64)) <= _OF_NOTHING else np.inf
    return error(found, expected)


def _faults(worst: Row, bounds: Bounds) -> list[str]:
    faults = [] if worst[_SAME] else ["two runs of one program differ"]
    for name, off in worst.items():
        if name != _SAME and not off <= bounds.of(name):
            faults.append(f"{name} is off by {off:.1e}, expected at most {bounds.of(name):.0e}")
    return faults
