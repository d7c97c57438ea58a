"""The one table that says how every parameter lies on a mesh.

Tensor dimensions have logical names; rules map those to mesh axes. A mesh may leave out axes it does not use.
"""

import re
from collections.abc import Mapping

from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hybrid_jax.errors import InputError

# Logical dimension -> mesh axis.
RULES: Mapping[str, str] = {"embed": "fsdp", "vocab": "tensor", "heads": "tensor", "mlp": "tensor"}

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


def parameter_spec(path: str, num_dims: int) -> PartitionSpec:
    """The mesh axis of every dimension of the parameter called ``path``.

    Raises:
        InputError: a parameter the table does not know.
    """
    logical = _logical_axes(path)
    return PartitionSpec(
        *(None,) * (num_dims - len(logical)), *(None if name is None else RULES[name] for name in logical)
    )


def parameter_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """How the parameter called ``path`` lies on ``mesh``.

    The sharding's axes are Auto whatever the mesh says: XLA propagates shardings through the model.

    Raises:
        InputError: a dimension that its mesh axes do not divide, or a parameter the table does not know.
    """
    names: list[str | None] = []
    logical = _logical_axes(path)
    for dim, axis in enumerate(parameter_spec(path, len(shape))):
        size = mesh.shape.get(axis, 1) if axis else 1
        if shape[dim] % size:
            raise InputError(
                f"mesh: {path} has shape {shape}; dimension {dim} ({logical[dim - len(shape)]}) "
                f"does not divide by {size} ({axis})"
            )
        names.append(axis if size > 1 else None)
    # As jax writes the shardings of results: a step whose state came back spelled otherwise would compile again.
    while names and names[-1] is None:
        names.pop()
    auto = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    return NamedSharding(auto, PartitionSpec(*names))


def _logical_axes(path: str) -> tuple[str | None, ...]:
    for pattern, logical in _PARAMETERS:
        if re.fullmatch(pattern, path):
            return logical
    raise InputError(f"sharding: no rule for the parameter {path}")
