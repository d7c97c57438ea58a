"""Meshes of devices: their four axes, and how batches lie on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hybrid_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "context", "tensor")
# Axes over which a batch is split: every shard of the parameters sees other tokens on each of them.
BATCH_AXES = ("data", "fsdp", "context")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices.

    Attributes:
        data: groups of devices that hold the same parameters and see different rows.
        fsdp: devices that share parameters and optimizer state and see different rows; null takes all devices
            that the other axes leave.
        context: devices that share each row, a contiguous piece of its tokens each.
        tensor: devices that share heads, MLP width and vocabulary.

    Raises:
        InputError: a size below 1.
    """

    data: int = 1
    fsdp: int | None = None
    context: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if size is not None and size < 1:
                raise InputError(f"{name}: found {size}, expected at least 1")

    def make(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over ``devices``, by default all of every process.

        Raises:
            InputError: the sizes do not multiply to the number of devices.
        """
        num_devices = len(jax.devices() if devices is None else devices)
        rest = self.data * self.context * self.tensor
        fsdp = max(1, num_devices // rest) if self.fsdp is None else self.fsdp
        return make_mesh({**asdict(self), "fsdp": fsdp}, devices)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the given axis sizes, in the order of ``MESH_AXES``; over all devices unless some are given.

    Raises:
        InputError: an unknown axis, or sizes whose product is not the number of devices.
    """
    unknown = sorted(set(sizes) - set(MESH_AXES))
    if unknown:
        raise InputError(f"mesh: found axes {', '.join(unknown)}, expected some of {', '.join(MESH_AXES)}")
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    devices = jax.devices() if devices is None else devices
    if math.prod(shape) != len(devices):
        product = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, shape, strict=True))
        raise InputError(f"mesh: found {product} = {math.prod(shape)} devices, expected {len(devices)}")
    return Mesh(np.array(devices).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def single_device_mesh() -> Mesh:
    """A mesh of the first device alone."""
    return make_mesh({}, jax.devices()[:1])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How arrays [B, T] of a batch lie on ``mesh``."""
    rows = tuple(axis for axis in ("data", "fsdp") if mesh.shape[axis] > 1)
    return NamedSharding(mesh, PartitionSpec(rows or None, "context" if mesh.shape["context"] > 1 else None))
