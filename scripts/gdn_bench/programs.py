"""The op as compiled programs, each compiled once for inputs of one shape; and how far results are apart."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from pallas_kernels.gated_delta_rule import chunk_gated_delta_rule, recurrent_gated_delta_rule
from scripts.gdn_bench.settings import Arrays

KERNELS, XLA, RECURRENCE = "mosaic_gpu", "xla", "recurrence"
OPS: dict[str, Callable[..., Any]] = {
    KERNELS: partial(chunk_gated_delta_rule, implementation=KERNELS),
    XLA: partial(chunk_gated_delta_rule, implementation=XLA),
    RECURRENCE: partial(recurrent_gated_delta_rule, implementation=XLA),
}
_INPUTS = ("q", "k", "v", "g", "beta")
_STATE = "initial_state"
Program = Callable[[str, Arrays], Arrays]


@partial(jax.jit, static_argnums=0)
def forward(name: str, arrays: Arrays) -> jax.Array:
    """The output alone, with no state before."""
    return OPS[name](**{each: arrays[each] for each in _INPUTS})[0]


@partial(jax.jit, static_argnums=0)
def with_backward(name: str, arrays: Arrays) -> Arrays:
    """The output and the gradients of the five inputs, with no state before and no gradient of the one after."""
    o, pullback = jax.vjp(lambda given: OPS[name](**given)[0], {each: arrays[each] for each in _INPUTS})
    return {"o": o} | {f"d{each}": x for each, x in pullback(arrays["d_o"])[0].items()}


@partial(jax.jit, static_argnums=0)
def everything(name: str, arrays: Arrays) -> Arrays:
    """Output, final state and all six gradients, of documents."""
    (o, state), pullback = jax.vjp(
        lambda given: OPS[name](**given, segment_ids=arrays["segment_ids"]),
        {each: arrays[each] for each in (*_INPUTS, _STATE)},
    )
    (gradients,) = pullback((arrays["d_o"], arrays["d_state"]))
    return {"o": o, "state": state} | {
        f"d{each.removeprefix('initial_')}": x for each, x in gradients.items()
    }


@partial(jax.jit, static_argnums=0)
def token_by_token(name: str, arrays: Arrays) -> Arrays:
    """Outputs and final state of decoding: the op is called for each token with the state that it left."""
    implementation = KERNELS if name == KERNELS else XLA

    def step(state: jax.Array, token: Arrays) -> tuple[jax.Array, jax.Array]:
        one = {each: x[:, None] for each, x in token.items()}
        o, state = recurrent_gated_delta_rule(**one, initial_state=state, implementation=implementation)
        return state, o[:, 0]

    tokens = {each: arrays[each].swapaxes(0, 1) for each in _INPUTS}
    state, o = jax.lax.scan(step, arrays[_STATE], tokens)
    return {"o": o.swapaxes(0, 1), "state": state}


def by_kernels(program: Program, arrays: Arrays) -> Arrays:
    """Of the kernels, as numpy arrays."""
    return jax.device_get(program(KERNELS, arrays))


def by_definition(program: Program, arrays: Arrays) -> Arrays:
    """Of the recurrence token by token in float64, from the same numbers."""
    exact = {name: x if x.dtype == np.int32 else np.asarray(x, np.float64) for name, x in arrays.items()}
    with jax.enable_x64(True):
        return jax.device_get(program(RECURRENCE, exact))


def error(found: Any, expected: Any) -> float:
    """Norm of the difference over that of what is expected. NaN if anything is."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
