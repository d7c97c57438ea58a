"""The gated delta rule token by token in float64, written without any of the code under test."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

DIFFERENTIABLE = ("q", "k", "v", "g", "beta", "initial_state")


def numpy_forward(arrays, segment_ids=None, scale=None, use_qk_l2norm=False):
    """Output [B, T, N, V] and final state [B, N, K, V], by the definition, in float64 loops."""
    q, k, v, g, beta, state = (np.asarray(arrays[name], np.float64) for name in DIFFERENTIABLE)
    batch, length, num_heads, value_dim = v.shape
    group, scale = num_heads // q.shape[2], q.shape[3] ** -0.5 if scale is None else scale
    o, state = np.zeros((batch, length, num_heads, value_dim)), state.copy()
    for b in range(batch):
        last_id = 0
        for t in range(length):
            token_id = 1 if segment_ids is None else segment_ids[b, t]
            if token_id == 0:
                continue
            if last_id not in (0, token_id):
                state[b] = 0
            last_id = token_id
            for n in range(num_heads):
                query, key = q[b, t, n // group], k[b, t, n // group]
                if use_qk_l2norm:
                    query, key = (x / np.sqrt(x @ x + 1e-6) for x in (query, key))
                s = np.exp(g[b, t, n]) * state[b, n]
                s += np.outer(key, beta[b, t, n] * (v[b, t, n] - key @ s))
                state[b, n], o[b, t, n] = s, scale * query @ s
    return o, state


def float64(arrays, cotangents, segment_ids=None, scale=None, use_qk_l2norm=False):
    """Outputs and gradients in float64, as dicts of numpy arrays: o, final_state and d_<input>."""
    with jax.enable_x64(True):
        return _results(np.float64, arrays, cotangents, segment_ids, scale, use_qk_l2norm)


def float32(arrays, cotangents, segment_ids=None, scale=None, use_qk_l2norm=False):
    """The same in float32: its distance from float64 is the recurrence's own rounding error."""
    return _results(np.float32, arrays, cotangents, segment_ids, scale, use_qk_l2norm)


def _results(dtype, arrays, cotangents, segment_ids, scale, use_qk_l2norm):
    length = arrays["q"].shape[1]
    arrays = tuple(_pad(np.asarray(arrays[name], dtype), name) for name in DIFFERENTIABLE)
    cotangents = (_pad(np.asarray(cotangents[0], dtype), "o"), np.asarray(cotangents[1], dtype))
    if segment_ids is None:
        segment_ids = np.ones((arrays[0].shape[0], length), np.int32)
    segment_ids = _pad(np.asarray(segment_ids, np.int32), "segment_ids")
    scale = arrays[0].shape[3] ** -0.5 if scale is None else scale
    outputs, gradients = _outputs_and_gradients(arrays, cotangents, segment_ids, scale, use_qk_l2norm)
    names = ("o", "final_state", *(f"d_{name}" for name in DIFFERENTIABLE))
    results = dict(zip(names, map(np.asarray, (*outputs, *gradients)), strict=True))
    return {name: x if "state" in name else x[:, :length] for name, x in results.items()}


def _pad(x, name):
    """With padding tokens to a multiple of 100, so that few lengths are compiled."""
    if name == "initial_state":
        return x
    return np.pad(x, [(0, 0), (0, -x.shape[1] % 100)] + [(0, 0)] * (x.ndim - 2))


@functools.partial(jax.jit, static_argnames="use_qk_l2norm")
def _outputs_and_gradients(arrays, cotangents, segment_ids, scale, use_qk_l2norm):
    outputs, pullback = jax.vjp(lambda *xs: _scan(*xs, segment_ids, scale, use_qk_l2norm), *arrays)
    return outputs, pullback(cotangents)


def _scan(q, k, v, g, beta, initial_state, segment_ids, scale, use_qk_l2norm):
    group = v.shape[2] // q.shape[2]
    if use_qk_l2norm:
        q, k = (x / jnp.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    q, k = jnp.repeat(scale * q, group, axis=2), jnp.repeat(k, group, axis=2)

    def step(carry, token):
        state, last_id = carry
        q, k, v, g, beta, token_id = token
        real, new = token_id != 0, (token_id != 0) & (last_id != 0) & (token_id != last_id)
        kept = jnp.exp(g)[..., None, None] * jnp.where(new[:, None, None, None], 0, state)
        write = beta[..., None] * (v - jnp.einsum("bnk,bnkv->bnv", k, kept))
        written = kept + jnp.einsum("bnk,bnv->bnkv", k, write)
        o = jnp.where(real[:, None, None], jnp.einsum("bnk,bnkv->bnv", q, written), 0)
        state = jnp.where(real[:, None, None, None], written, state)
        return (state, jnp.where(real, token_id, last_id)), o

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, g, beta, segment_ids))
    carry = initial_state, jnp.zeros(q.shape[0], segment_ids.dtype)
    (final_state, _), o = lax.scan(step, carry, tokens)
    return jnp.moveaxis(o, 0, 1), final_state
