"""Bias-free linear maps and the token embedding, initialised as OLMo-core does (``nn/transformer/init.py``)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from hybrid_jax.sharding.manual import axis_index, axis_size, sum_over

# The name under which jax.checkpoint policies know the outputs of linear maps.
LINEAR_OUTPUT = "linear_output"


def truncated_normal(key: Array, shape: tuple[int, ...], stddev: float) -> Float[Array, "..."]:
    """Normal values of ``stddev`` before truncation at three of them, float32."""
    return stddev * jax.random.truncated_normal(key, -3.0, 3.0, shape, jnp.float32)


def flatten_rows(x: Float[Array, "B T D"]) -> Float[Array, "BT D"]:
    """One row per token, made once for all the maps that read ``x``.

    XLA's CPU compiler would copy and transpose three-dimensional operands for a kernel's gradient.
    """
    return x.reshape(-1, x.shape[-1])


class Linear(nnx.Module):
    """``x @ kernel`` in the compute dtype; ``kernel`` is [in, out], the transpose of torch's weight.

    ``sum_axis`` is the mesh axis over which ``in`` is split, and so the products are to be summed.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        stddev: float,
        dtype: DTypeLike,
        *,
        sum_axis: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = nnx.Param(truncated_normal(rngs.params(), (num_in, num_out), stddev))
        self.dtype = dtype
        self.sum_axis = sum_axis

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        y = jnp.dot(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        if self.sum_axis is not None:
            y = sum_over(y, self.sum_axis)
        return checkpoint_name(y, LINEAR_OUTPUT)


class Embed(nnx.Module):
    """A table of ``embedding`` [vocab, D]."""

    def __init__(
        self, num_tokens: int, hidden_size: int, stddev: float, dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> None:
        self.embedding = nnx.Param(truncated_normal(rngs.params(), (num_tokens, hidden_size), stddev))
        self.dtype = dtype

    def __call__(self, input_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        table = self.embedding[...]
        if axis_size("tensor") == 1:
            return table[input_ids].astype(self.dtype)
        # The vocabulary is split: exactly one device has each row.
        row = input_ids - axis_index("tensor") * table.shape[0]
        own = (row >= 0) & (row < table.shape[0])
        rows = table[jnp.where(own, row, 0)].astype(self.dtype)
        return sum_over(jnp.where(own[..., None], rows, 0), "tensor")
