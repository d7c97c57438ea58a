"""Meshes of devices, how parameters and batches lie on them, and what code that runs once per device may call."""

from hybrid_jax.sharding.mesh import (
    MESH_AXES,
    MeshConfig,
    batch_sharding,
    make_mesh,
    single_device_mesh,
)
from hybrid_jax.sharding.parameters import parameter_sharding, parameter_spec

__all__ = [
    "MESH_AXES",
    "MeshConfig",
    "batch_sharding",
    "make_mesh",
    "parameter_sharding",
    "parameter_spec",
    "single_device_mesh",
]
