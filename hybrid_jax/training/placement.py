"""How a run lies on its mesh: whether model and batches divide over it, and each process's part of the batches."""

from bisect import bisect_left
from collections.abc import Mapping
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from hybrid_jax.errors import InputError
from hybrid_jax.sharding import batch_sharding
from hybrid_jax.training.run_config import RunConfig


class BatchPlacement:
    """Puts batches of [batch_size, sequence_length] on a mesh, from the rows that each process has read.

    Attributes:
        rows: the rows of every global batch that this process's devices need, in order; all of them where
            there is one process.
    """

    def __init__(self, mesh: Mesh, batch_size: int, sequence_length: int) -> None:
        self._shape = (batch_size, sequence_length)
        self._sharding = batch_sharding(mesh)
        needed = np.zeros(self._shape, bool)
        for part in self._sharding.addressable_devices_indices_map(self._shape).values():
            needed[part] = True
        self.rows = np.flatnonzero(needed.any(axis=1)).tolist()

    def place(self, batch: Mapping[str, Int32[np.ndarray, "rows T"]]) -> dict[str, Int32[Array, "B T"]]:
        """The global batch of which ``batch`` holds ``rows``."""
        return {
            name: jax.make_array_from_callback(self._shape, self._sharding, partial(self._part, array))
            for name, array in batch.items()
        }

    def _part(self, array: np.ndarray, index: tuple[slice, slice]) -> np.ndarray:
        rows, tokens = index
        start, stop, _ = rows.indices(self._shape[0])
        first = bisect_left(self.rows, start)
        return array[first : first + stop - start, tokens]


def check_placement(config: RunConfig, mesh: Mesh) -> None:
    """Refuse a run whose rows, tokens or heads do not divide over ``mesh``.

    Parameters check their own dimensions where they are placed (``parameter_sharding``).

    Raises:
        InputError: names the field, what was found, and the mesh axes that must divide it.
    """
    rows = mesh.shape["data"] * mesh.shape["fsdp"] * config.num_microbatches
    _check_divides("batch_size", config.batch_size, rows, "mesh.data x mesh.fsdp x num_microbatches")
    context = mesh.shape["context"]
    if context > 1:
        # Attention gives each device a piece from the front of the row and one from its back.
        _check_divides("data.sequence_length", config.data.sequence_length, 2 * context, "2 x mesh.context")
        shortest = config.model.linear_conv_kernel_dim - 1
        if config.data.sequence_length // context < shortest:
            raise InputError(
                f"data.sequence_length: found {config.data.sequence_length}, expected at least {shortest} tokens "
                f"(linear_conv_kernel_dim - 1) for each of mesh.context = {context} devices"
            )
    model = config.model
    heads = {
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
    }
    linear = "linear_attention" in model.layer_types
    if linear:
        heads |= {
            "linear_num_key_heads": model.linear_num_key_heads,
            "linear_num_value_heads": model.linear_num_value_heads,
        }
    for name, number in heads.items():
        _check_divides(f"model.{name}", number, mesh.shape["tensor"], "mesh.tensor")
    if linear and context > 1 and model.context_parallel == "heads":
        devices = mesh.shape["tensor"] * context
        _check_divides(
            "model.linear_num_key_heads", model.linear_num_key_heads, devices, "mesh.tensor x mesh.context"
        )


def _check_divides(name: str, found: int, divisor: int, divisor_name: str) -> None:
    if found % divisor:
        raise InputError(f"{name}: found {found}, expected a multiple of {divisor_name} = {divisor}")
