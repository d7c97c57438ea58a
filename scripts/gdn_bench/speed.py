"""How fast: whole sequences and decoding, by the kernels, plain JAX and others; and how exact beside the others."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta_rule import recurrent_gated_delta_rule
from scripts.gdn_bench.inputs import LASTING, make_inputs, timed_inputs
from scripts.gdn_bench.others import TorchOp
from scripts.gdn_bench.programs import KERNELS, XLA, by_definition, by_kernels, error, forward, with_backward
from scripts.gdn_bench.report import FAILED, Report, Row, attempt
from scripts.gdn_bench.settings import Arrays, Settings
from scripts.gdn_bench.timing import BANDWIDTH, NUM_INPUTS, Clock, Timing, floors

_PROGRAMS = {"forward": forward, "with backward": with_backward}
# Several times the cache between a GPU's cores and its memory, which is 60 MB.
_OUT_OF_CACHE = 256e6


class JaxOp:
    """One of this project's implementations, by name; timed as `others.TorchOp`."""

    directions = tuple(_PROGRAMS)

    def __init__(self, name: str):
        self._name = name

    def time(self, direction: str, clock: Clock, several: list[Arrays]) -> Timing:
        """Median milliseconds, and the bytes that the compiled program holds, its inputs among them."""
        compiled = _PROGRAMS[direction].lower(self._name, several[0]).compile()
        memory: Any = compiled.memory_analysis()
        peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        return Timing(clock.median(lambda i: compiled(several[i]), jax.block_until_ready), peak)


Op = JaxOp | TorchOp


def speed(settings: Settings, report: Report, others: dict[str, TorchOp]) -> None:
    """Kernels first and plain JAX last, so that what matters most is there if time runs out."""
    title = "Milliseconds for whole sequences, share of the floor's speed, GiB for one call (with backward, if any)"
    names = [f"{direction} {what}" for direction in _PROGRAMS for what in ("ms", "share")]
    report.begin("speed", title, ["K / V x heads", "(B, T)", "by", *names, "GiB"])
    ops: dict[str, Op] = {KERNELS: JaxOp(KERNELS), **others, XLA: JaxOp(XLA)}
    for by, op in ops.items():
        for shape in settings.shapes:
            for size in settings.sizes:
                where = {**_where(shape), "(B, T)": str(size), "by": by}
                found, reasons = attempt("inputs", partial(_times, settings, op, shape, size))
                report.row({**where, FAILED: reasons, **(found or {})})


def _times(settings: Settings, op: Op, shape: tuple[int, int, int], size: tuple[int, int]) -> Row:
    """Each direction alone: where one cannot be had, the other may."""
    num_tokens = math.prod(size)
    several = [
        {name: x.reshape(*size, *x.shape[2:]) for name, x in timed_inputs(key, num_tokens, shape).items()}
        for key in jax.random.split(jax.random.key(0), NUM_INPUTS)
    ]
    row: Row = {FAILED: []}
    for direction in op.directions:
        timing, reasons = attempt(direction, partial(op.time, direction, Clock(settings.rounds), several))
        row[FAILED] += reasons
        if timing is not None:
            row[f"{direction} ms"] = timing.milliseconds
            row[f"{direction} share"] = floors(num_tokens, *shape)[direction] / timing.milliseconds
            row["GiB"] = timing.peak_bytes / 2**30
    return row


def decoding(settings: Settings, report: Report) -> None:
    """One token of every sequence, in place in one state after the other, which together do not fit the cache."""
    title = "Microseconds to decode one token of every sequence, and times the state's own way through memory"
    report.begin("decoding", title, ["K / V x heads", "batch", "by", "us", "x memory"])
    for name in (KERNELS, XLA):
        for shape in settings.shapes:
            for batch in settings.decode_batches:
                row = {**_where(shape), "batch": str(batch), "by": name}
                found, reasons = attempt("decoding", partial(_decoding, settings, name, shape, batch))
                report.row({**row, **(found or {}), FAILED: reasons})


def _decoding(settings: Settings, name: str, shape: tuple[int, int, int], batch: int) -> Row:
    key_dim, value_dim, num_heads = shape
    state_bytes = 4 * batch * num_heads * key_dim * value_dim
    num_states = 2 if settings.interpret else max(2, math.ceil(_OUT_OF_CACHE / state_bytes))
    states = [jnp.zeros((batch, num_heads, key_dim, value_dim)) for _ in range(num_states)]
    tokens = timed_inputs(jax.random.key(0), batch, shape)
    token = {each: tokens[each].swapaxes(0, 1) for each in ("q", "k", "v", "g", "beta")}

    def work(_: int) -> list[jax.Array]:
        nonlocal states
        states, outputs = _one_token(name, states, token)
        return outputs

    seconds = Clock(settings.rounds).median(work, jax.block_until_ready) / 1e3 / num_states
    return {"us": seconds * 1e6, "x memory": seconds / (2 * state_bytes / BANDWIDTH)}


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _one_token(name: str, states: list[jax.Array], token: Arrays) -> tuple[list[jax.Array], list[jax.Array]]:
    """New states and outputs: an output that nobody asks for is one that XLA would not compute."""
    pairs = [recurrent_gated_delta_rule(**token, initial_state=s, implementation=name) for s in states]
    return [state for _, state in pairs], [o for o, _ in pairs]


def accuracy(settings: Settings, report: Report, others: dict[str, TorchOp]) -> None:
    """The same inputs for all; after the timings, as others tune themselves on the first length that they see."""
    title = "Errors beside others', relative to the recurrence in float64, one row of inputs"
    report.begin("accuracy", title, ["K / V x heads", "input", "by", "o", "dq", "dk", "dv", "dg", "dbeta"])
    one_key = "one key throughout"
    for key_dim, value_dim, num_heads in settings.shapes:
        length = 64 if settings.interpret else 512
        ordinary = make_inputs(0, 1, length, (num_heads, num_heads), (key_dim, value_dim))
        for kind, arrays in {"ordinary": ordinary, one_key: LASTING[one_key](ordinary)}.items():
            expected = by_definition(with_backward, arrays)
            on_device = jax.device_put(arrays)
            where = {**_where((key_dim, value_dim, num_heads)), "input": kind}
            ours, reasons = attempt("kernels", partial(by_kernels, with_backward, on_device))
            report.row({**where, "by": KERNELS, **_errors(ours, expected), FAILED: reasons})
            for by, op in others.items():
                row: Row = {**where, "by": by, FAILED: []}
                for direction in op.directions:
                    found, reasons = attempt(direction, partial(op.results, direction, on_device))
                    row |= _errors(found, expected)
                    row[FAILED] += reasons
                report.row(row)


def _errors(found: Arrays | None, expected: Arrays) -> Row:
    return {name: error(x, expected[name]) for name, x in (found or {}).items()}


def _where(shape: tuple[int, int, int]) -> Row:
    key_dim, value_dim, num_heads = shape
    return {"K / V x heads": f"{key_dim} / {value_dim} x {num_heads}"}
