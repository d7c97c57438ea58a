"""RMS normalisation in float32: normalise and scale, then cast."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hybrid_jax.sharding.manual import sum_over


class RMSNorm(nnx.Module):
    """``scale * x / sqrt(mean(x^2) + eps)`` over the last dimension; computed in float32, returned in x's dtype.

    ``split_axis`` is the mesh axis over which that dimension is split.
    """

    def __init__(self, num_features: int, eps: float, *, split_axis: str | None = None) -> None:
        self.scale = nnx.Param(jnp.ones((num_features,), jnp.float32))
        self.num_features = num_features
        self.eps = eps
        self.split_axis = split_axis

    def __call__(self, x: Float[Array, "... F"]) -> Float[Array, "... F"]:
        return _rms_norm(x, self.scale[...], self.eps, self.num_features, self.split_axis).astype(x.dtype)


class GatedRMSNorm(nnx.Module):
    """RMSNorm of ``x`` times SiLU of ``gate`` if there is one, in float32 (OLMo Hybrid's output norm, eps 1e-5)."""

    def __init__(self, num_features: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones((num_features,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "... F"], gate: Float[Array, "... F"] | None) -> Float[Array, "... F"]:
        if gate is None:
            return _rms_norm(x, self.scale[...], self.eps, x.shape[-1], None).astype(x.dtype)
        return _gated_rms_norm(x, self.scale[...], gate, self.eps)


# Both are computed again for the gradient: cheaper than writing and reading back their float32 intermediates.
@partial(jax.checkpoint, static_argnums=(2, 3, 4))
def _rms_norm(
    x: Float[Array, "... F"], scale: Float[Array, " F"], eps: float, num_features: int, split_axis: str | None
) -> Float[Array, "... F"]:
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, -1, keepdims=True)
    if split_axis is not None:
        squares = sum_over(squares, split_axis)
    return scale.astype(jnp.float32) * x * jax.lax.rsqrt(squares / num_features + eps)


@partial(jax.checkpoint, static_argnums=3)
def _gated_rms_norm(
    x: Float[Array, "... F"], scale: Float[Array, " F"], gate: Float[Array, "... F"], eps: float
) -> Float[Array, "... F"]:
    y = _rms_norm(x, scale, eps, x.shape[-1], None) * jax.nn.silu(gate.astype(jnp.float32))
    return y.astype(gate.dtype)
