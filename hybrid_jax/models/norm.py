"""RMS normalisation in float32: normalise and scale, then cast."""

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
        return self.normalise(x).astype(x.dtype)

    def normalise(self, x: Float[Array, "... F"]) -> Float[Array, "... F"]:
        """The float32 result before the cast."""
        x = x.astype(jnp.float32)
        return (
            self.scale[...].astype(jnp.float32)
            * x
            * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps)
        )


class GatedRMSNorm(RMSNorm):
    """RMSNorm of ``x`` times SiLU of ``gate``, all in float32 (OLMo Hybrid's output norm, eps 1e-5)."""

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "... F"], gate: Float[Array, "... F"]
    ) -> Float[Array, "... F"]:
        return (self.normalise(x) * jax.nn.silu(gate.astype(jnp.float32))).astype(gate.dtype)
