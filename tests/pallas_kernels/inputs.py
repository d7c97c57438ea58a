"""Inputs of the gated delta rule: ordinary ones, hard ones, and rows of packed documents."""

import jax.numpy as jnp
import numpy as np


def make_inputs(batch=2, length=130, heads=(2, 4), dims=(12, 24), seed=0):
    """Float32 arrays by name and cotangents of both outputs; unit q and k, beta in (0, 2), every decay rate."""
    random = np.random.default_rng(seed)
    (num_key_heads, num_heads), (key_dim, value_dim) = heads, dims

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    def unit(*shape):
        x = normal(*shape)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    tokens = (batch, length, num_heads)
    arrays = {
        "q": unit(batch, length, num_key_heads, key_dim),
        "k": unit(batch, length, num_key_heads, key_dim),
        "v": normal(*tokens, value_dim),
        "g": -np.exp(2 * normal(*tokens) - 3),
        "beta": 2 / (1 + np.exp(-normal(*tokens))),
        "initial_state": normal(batch, num_heads, key_dim, value_dim),
    }
    return arrays, (normal(*tokens, value_dim), normal(batch, num_heads, key_dim, value_dim))


def bfloat16_inputs(inputs):
    """The inputs with q, k, v and the output's cotangent as bfloat16 has them, and for the reference as float32."""
    arrays, (d_o, d_state) = inputs
    low = {name: jnp.asarray(arrays[name], jnp.bfloat16) for name in ("q", "k", "v")}
    rounded = {**arrays, **{name: np.asarray(x, np.float32) for name, x in low.items()}}
    d_o = np.asarray(jnp.asarray(d_o, jnp.bfloat16), np.float32)
    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    return ({**arrays, **low}, (d_o, d_state)), (rounded, (d_o, d_state))


def packed_inputs(rows):
    """Inputs and segment ids for rows given as [(id, number of tokens), ...]."""
    segment_ids = np.array([np.repeat(*np.array(row, np.int32).T) for row in rows], np.int32)
    return make_inputs(*segment_ids.shape), segment_ids


PACKINGS = {
    "boundaries around chunk edges": [[(1, 63), (2, 1), (3, 1), (4, 65)], [(7, 64), (5, 64), (6, 2)]],
    "documents of one token": [[(i, 1) for i in range(1, 131)], [(1 + i % 2, 1) for i in range(130)]],
    "padding everywhere": [
        [(0, 3), (1, 20), (0, 2), (1, 30), (0, 9), (2, 1), (0, 63), (3, 2)],
        [(4, 60), (0, 8), (4, 50), (0, 12)],
    ],
    "whole chunks of padding": [[(0, 64), (2, 10), (0, 56)], [(1, 40), (0, 90)]],
    "nothing but padding in a row": [[(0, 130)], [(1, 65), (2, 65)]],
}


def _with(keys=None, beta=None, g=None):
    """Give token t the key of token keys[t], and every token that beta and g: numbers, or functions of a shape."""

    def change(inputs):
        arrays, cotangents = inputs
        arrays = dict(arrays)
        if keys is not None:
            arrays["k"] = arrays["k"][:, keys(np.arange(arrays["k"].shape[1]))]
        for name, value in {"beta": beta, "g": g}.items():
            if value is not None:
                shape = arrays[name].shape
                arrays[name] = (value(shape) if callable(value) else np.full(shape, value)).astype(np.float32)
        return arrays, cotangents

    return change


def _first(tokens):
    return 0 * tokens


def _alternating(tokens):
    return tokens % 2


def _runs(tokens):
    """Runs of one token, ten long on average."""
    new = np.random.default_rng(1).random(tokens.shape) < 0.1
    return np.maximum.accumulate(np.where(new, tokens, 0))


def _sometimes(value):
    return lambda shape: np.where(np.random.default_rng(2).random(shape) < 0.1, value, -0.01)


HARD_INPUTS = {
    "one key throughout": _with(keys=_first, beta=1.98, g=-0.01),
    "one key throughout, no decay": _with(keys=_first, beta=1.9, g=0.0),
    "runs of one key": _with(keys=_runs, beta=1.98, g=-0.01),
    "runs of one key, beta 2, no decay": _with(keys=_runs, beta=2.0, g=0.0),
    "two keys in turn": _with(keys=_alternating, beta=1.98, g=-0.01),
    "two keys in turn, beta 2, no decay": _with(keys=_alternating, beta=2.0, g=0.0),
    "beta 2": _with(beta=2.0),
    "beta 0": _with(beta=0.0),
    "no decay": _with(g=0.0),
    "no decay, beta 2": _with(beta=2.0, g=0.0),
    "decay e^-60": _with(g=-60.0),
    "decay around e^-60": _with(g=lambda shape: -60 - np.random.default_rng(3).random(shape)),
    "decay e^-60 at some tokens": _with(g=_sometimes(-60.3)),
    "decay 0": _with(g=-np.inf),
    "decay 0 at some tokens": _with(g=_sometimes(-np.inf)),
    "any decay": _with(g=lambda shape: -20 * np.random.default_rng(4).random(shape)),
}
