"""RMS normalisation in float32: normalise and scale, then cast."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class RMSNorm(nnx.Module):
    """``scale * x / sqrt(mean(x^2) + eps)`` over the last dimension; computed in float32, returned in x's dtype."""

    def __init__(self, num_features: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones((num_features,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "... F"]) -> Float[Array, "... F"]:
        return _rms_norm(x, self.scale[...], self.eps).astype(x.dtype)


class GatedRMSNorm(RMSNorm):
    """RMSNorm of ``x`` times SiLU of ``gate``, all in float32 (OLMo Hybrid's output norm, eps 1e-5)."""

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "... F"], gate: Float[Array, "... F"]
    ) -> Float[Array, "... F"]:
        return _gated_rms_norm(x, self.scale[...], gate, self.eps)


# Both are computed again for the gradient: cheaper than writing and reading back their float32 intermediates.
@partial(jax.checkpoint, static_argnums=2)
def _rms_norm(x: Float[Array, "... F"], scale: Float[Array, " F"], eps: float) -> Float[Array, "... F"]:
    x = x.astype(jnp.float32)
    return scale.astype(jnp.float32) * x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


@partial(jax.checkpoint, static_argnums=3)
def _gated_rms_norm(
    x: Float[Array, "... F"], scale: Float[Array, " F"], gate: Float[Array, "... F"], eps: float
) -> Float[Array, "... F"]:
    return (_rms_norm(x, scale, eps) * jax.nn.silu(gate.astype(jnp.float32))).astype(gate.dtype)
