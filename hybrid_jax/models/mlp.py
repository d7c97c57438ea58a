"""The SwiGLU feed-forward network."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from hybrid_jax.config import ModelConfig
from hybrid_jax.models.linear import Linear


class MLP(nnx.Module):
    """``down_proj(silu(gate_proj x) * up_proj x)``."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        wide, narrow = config.intermediate_size, config.hidden_size
        stddev, dtype = config.initializer_range, config.dtype
        self.gate_proj = Linear(narrow, wide, stddev, dtype, rngs=rngs)
        self.up_proj = Linear(narrow, wide, stddev, dtype, rngs=rngs)
        self.down_proj = Linear(wide, narrow, stddev, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down_proj(_swiglu(self.gate_proj(x), self.up_proj(x)))


@jax.checkpoint  # cheaper to compute again than to write and read back
def _swiglu(gate: Float[Array, "B T F"], up: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    return jax.nn.silu(gate) * up
