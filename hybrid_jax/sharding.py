"""Meshes, and the one table that says how every parameter lies on them.

Tensor dimensions have logical names; rules map those to mesh axes. A mesh may leave out axes it does not use.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hybrid_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "context", "tensor")

# Logical dimension -> mesh axes.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "sequence": ("context",),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}

# Parameter name -> logical names of its last dimensions; a leading dimension of stacked layers is never sharded.
_PARAMETERS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embed_tokens\.embedding", ("vocab", "embed")),
    (r"lm_head\.kernel", ("embed", "vocab")),
    (r".*\.o_proj\.kernel", ("heads", "embed")),
    (r".*\.(gate|up)_proj\.kernel", ("embed", "mlp")),
    (r".*\.down_proj\.kernel", ("mlp", "embed")),
    (r".*\.[qkvabg]_proj\.kernel", ("embed", "heads")),
    (r".*\.[qkv]_conv1d\.kernel", (None, "heads")),
    (r".*\.(A_log|dt_bias)", ("heads",)),
    (r".*\.[qk]_norm\.scale", ("heads",)),
    (r"(.*\.)?(o_norm|norm|\w+_layernorm)\.scale", (None,)),
)


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """A mesh of all devices with the given axis sizes, in the order of ``MESH_AXES``.

    Raises:
        InputError: an unknown axis, or sizes whose product is not the number of devices.
    """
    unknown = sorted(set(sizes) - set(MESH_AXES))
    if unknown:
        raise InputError(f"mesh: found axes {', '.join(unknown)}, expected some of {', '.join(MESH_AXES)}")
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    devices = jax.devices()
    if int(np.prod(shape)) != len(devices):
        raise InputError(f"mesh: found {dict(sizes)} = {np.prod(shape)} devices, expected {len(devices)}")
    return Mesh(np.array(devices).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def parameter_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """How the parameter called ``path`` lies on ``mesh``.

    The sharding's axes are Auto whatever the mesh says: XLA propagates shardings through the model.

    Raises:
        InputError: a dimension that its mesh axes do not divide, or a parameter the table does not know.
    """
    logical = _logical_axes(path)
    names: list[str | tuple[str, ...] | None] = [None] * (len(shape) - len(logical))
    for name in logical:
        axes = tuple(a for a in RULES[name] if mesh.shape.get(a, 1) > 1) if name else ()
        size = int(np.prod([mesh.shape[a] for a in axes]))
        dim = len(names)
        if shape[dim] % size:
            raise InputError(
                f"mesh: {path} has shape {shape}; dimension {dim} ({name}) "
                f"does not divide by {size} ({', '.join(axes)})"
            )
        names.append(axes[0] if len(axes) == 1 else (axes or None))
    auto = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    return NamedSharding(auto, PartitionSpec(*names))


def _logical_axes(path: str) -> tuple[str | None, ...]:
    for pattern, logical in _PARAMETERS:
        if re.fullmatch(pattern, path):
            return logical
    raise InputError(f"sharding: no rule for the parameter {path}")
