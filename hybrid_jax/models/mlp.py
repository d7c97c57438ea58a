"""The SwiGLU feed-forward network."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from hybrid_jax.config import ModelConfig
from hybrid_jax.models.linear import Linear, flatten_rows


class MLP(nnx.Module):
    """``down_proj(silu(gate_proj x) * up_proj x)``."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        wide, narrow = config.intermediate_size, config.hidden_size
        stddev, dtype = config.initializer_range, config.dtype
        self.gate_proj = Linear(narrow, wide, stddev, dtype, rngs=rngs)
        self.up_proj = Linear(narrow, wide, stddev, dtype, rngs=rngs)
        self.down_proj = Linear(wide, narrow, stddev, dtype, sum_axis="tensor", rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        rows = flatten_rows(x)
        return _swiglu_down(self.down_proj, self.gate_proj(rows), self.up_proj(rows)).reshape(x.shape)


@jax.checkpoint  # the product is cheaper to compute again than to write and read back
def _swiglu_down(
    down_proj: Linear, gate: Float[Array, "BT F"], up: Float[Array, "BT F"]
) -> Float[Array, "BT D"]:
    return down_proj(jax.nn.silu(gate) * up)
