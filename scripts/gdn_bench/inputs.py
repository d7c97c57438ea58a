"""Inputs of the gated delta rule: ordinary ones, hard ones, documents with padding between; all by name.

q, k, v and the gradient of the output are bfloat16, everything else float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scripts.gdn_bench.settings import Arrays

# What padding holds must not matter.
_GARBAGE = {"q": 1e30, "k": -3e38, "v": np.inf, "g": -np.inf, "beta": 1e20}


def make_inputs(
    seed: int, rows: int, length: int, heads: tuple[int, int], dims: tuple[int, int], documents: bool = False
) -> Arrays:
    """Unit q and k, beta in (0, 2), all rates of decay, a state before, gradients of both outputs; one document a row.

    Args:
        seed: of everything.
        rows, length: B and T.
        heads: of keys and values.
        dims: K and V.
        documents: many documents a row instead, with garbage between them.
    """
    random = np.random.default_rng(seed)
    (num_key_heads, num_heads), (key_dim, value_dim) = heads, dims

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    tokens, state = (rows, length, num_heads), (rows, num_heads, key_dim, value_dim)
    q, k = (normal(rows, length, num_key_heads, key_dim) for _ in range(2))
    arrays = {
        "q": q / np.linalg.norm(q, axis=-1, keepdims=True),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": normal(*tokens, value_dim),
        "g": -np.exp(2 * normal(*tokens) - 3),
        "beta": 2 / (1 + np.exp(-normal(*tokens))),
        "initial_state": normal(*state),
        "d_o": normal(*tokens, value_dim),
        "d_state": normal(*state),
        "segment_ids": np.ones((rows, length), np.int32),
    }
    if documents:
        arrays["segment_ids"] = np.stack([_documents(random, length) for _ in range(rows)])
        for name, garbage in _GARBAGE.items():
            arrays[name][arrays["segment_ids"] == 0] = garbage
    return _rounded(arrays)


def _documents(random: np.random.Generator, length: int) -> np.ndarray:
    """Ids [T] of documents of one token, about a chunk, and any length; now and then of padding (0)."""
    ids: list[int] = []
    while len(ids) < length:
        size = random.choice([1, 2, 63, 64, 65, 128, int(random.integers(1, 200))])
        ids += [len(ids) + 1 if random.random() < 0.7 else 0] * size
    return np.array(ids[:length], np.int32)


def _rounded(arrays: Arrays) -> Arrays:
    return arrays | {name: arrays[name].astype(jnp.bfloat16) for name in ("q", "k", "v", "d_o")}


Value = float | Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _with(arrays: Arrays, key_of: Any = None, **values: Value) -> Arrays:
    """The inputs with the key of token key_of(t) for token t, and every token's g or beta as given."""
    arrays, random = dict(arrays), np.random.default_rng(1)
    if key_of is not None:
        arrays["k"] = arrays["k"][:, key_of(random, np.arange(arrays["k"].shape[1]))]
    for name, value in values.items():
        shape = arrays[name].shape
        arrays[name] = np.full(shape, value(random, shape) if callable(value) else value, np.float32)
    return arrays


def _sometimes(value: float) -> Value:
    return lambda random, shape: np.where(random.random(shape) < 0.1, value, -0.01)


def _runs(random: np.random.Generator, tokens: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(np.where(random.random(tokens.shape) < 0.1, tokens, 0))


def _zeros(arrays: Arrays) -> Arrays:
    q, k = arrays["q"].copy(), arrays["k"].copy()
    q[:, 10:20], k[:, 15:25] = 0, 0
    return arrays | {"q": q, "k": k}


HARD: dict[str, Callable[[Arrays], Arrays]] = {
    "decay e^-60": partial(_with, g=-60.0),
    "decay e^-60 at times": partial(_with, g=_sometimes(-60.3)),
    "decay 0": partial(_with, g=-np.inf),
    "decay 0 at times": partial(_with, g=_sometimes(-np.inf)),
    "any decay": partial(_with, g=lambda random, shape: -20 * random.random(shape)),
    "beta 0": partial(_with, beta=0.0),
    "zeros for q and k": _zeros,
}
# Each token takes back what one before it wrote, nearly twice, or nothing is ever forgotten: so it is with errors,
# which grow without bound where the inverse is not kept precisely.
LASTING: dict[str, Callable[[Arrays], Arrays]] = {
    "one key throughout": partial(_with, key_of=lambda _, tokens: 0 * tokens, beta=1.98, g=-1e-3),
    "two keys in turn": partial(_with, key_of=lambda _, tokens: tokens % 2, beta=1.98, g=-1e-2),
    "runs of one key": partial(_with, key_of=_runs, beta=1.98, g=-1e-2),
    "no decay, beta 2": partial(_with, g=0.0, beta=2.0),
}


@partial(jax.jit, static_argnums=(1, 2))
def timed_inputs(key: jax.Array, num_tokens: int, shape: tuple[int, int, int]) -> Arrays:
    """q, k, v, g, beta and d_o of one long row, made on the device: K, V and heads are given."""
    key_dim, value_dim, num_heads = shape
    keys = jax.random.split(key, 6)
    q, k = (jax.random.normal(each, (1, num_tokens, num_heads, key_dim)) for each in keys[:2])
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    v, d_o = (jax.random.normal(each, (1, num_tokens, num_heads, value_dim)) for each in keys[2:4])
    g, beta = (jax.random.normal(each, (1, num_tokens, num_heads)) for each in keys[4:])
    low = {name: x.astype(jnp.bfloat16) for name, x in {"q": q, "k": k, "v": v, "d_o": d_o}.items()}
    return low | {"g": -jnp.exp(g - 3), "beta": 2 * jax.nn.sigmoid(beta)}
