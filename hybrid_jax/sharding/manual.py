"""What the model calls where its code runs once per device, inside ``shard_map``, and sees only its device's part.

Everywhere else these functions do nothing, so that one model serves one device, many, and XLA's own partitioning.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from hybrid_jax.sharding.mesh import BATCH_AXES
from hybrid_jax.sharding.parameters import parameter_spec


def axis_size(axis: str) -> int:
    """Number of parts along a mesh axis: 1 outside ``shard_map``."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 1


def axis_index(axis: str) -> jax.Array | int:
    """This device's place along a mesh axis: 0 outside ``shard_map``."""
    return lax.axis_index(axis) if axis_size(axis) > 1 else 0


def sum_over(x: Any, *axes: str) -> Any:
    """Sums over the devices along ``axes``; every one of them gets the result."""
    split = _split(*axes)
    return lax.psum(x, split) if split else x


def max_over(x: jax.Array, axis: str) -> jax.Array:
    """The largest along ``axis``; not differentiable."""
    return lax.pmax(x, axis) if _split(axis) else x


def shift(x: Any, axis: str, distance: int) -> Any:
    """What the device ``distance`` places before this one along ``axis`` holds; zeros where there is none."""
    size = axis_size(axis)
    pairs = [(i, i + distance) for i in range(size - distance)]
    return jax.tree.map(lambda leaf: lax.ppermute(leaf, axis, pairs), x)


def rotate(x: Any, axis: str) -> Any:
    """What the device before this one along ``axis`` holds; the first gets the last one's."""
    size = axis_size(axis)
    return jax.tree.map(lambda leaf: lax.ppermute(leaf, axis, [(i, (i + 1) % size) for i in range(size)]), x)


def gather_parameters(module: Any, names: Any, dtype: DTypeLike) -> Any:
    """``module`` with every parameter that is split over ``fsdp`` whole, in the compute dtype.

    The gradient comes back summed in float32 over all devices that saw other tokens, each device with its part.

    Args:
        module: a module, or any pytree of parameters.
        names: the same pytree of their dotted names.
        dtype: what gathered parameters are cast to, before they travel.
    """
    if not _split(*BATCH_AXES):
        return module

    def gather(name: str, leaf: jax.Array) -> jax.Array:
        spec = parameter_spec(name, leaf.ndim)
        return _gather(leaf, spec.index("fsdp"), jnp.dtype(dtype)) if "fsdp" in spec else leaf

    return jax.tree.map(gather, names, module)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, dim: int, dtype: jnp.dtype) -> jax.Array:
    # Marked as differing between all devices that see other tokens: then nothing sums its gradient before we do.
    x = lax.pcast(x.astype(dtype), _split("data", "context"), to="varying")
    return lax.all_gather(x, "fsdp", axis=dim, tiled=True) if _split("fsdp") else x


def _gather_forward(x: jax.Array, dim: int, dtype: jnp.dtype) -> tuple[jax.Array, None]:
    return _gather(x, dim, dtype), None


def _gather_backward(dim: int, dtype: jnp.dtype, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    gradient = gradient.astype(jnp.float32)
    if _split("fsdp"):
        gradient = lax.psum_scatter(gradient, "fsdp", scatter_dimension=dim, tiled=True)
    return (sum_over(gradient, "data", "context"),)


_gather.defvjp(_gather_forward, _gather_backward)


def _split(*axes: str) -> tuple[str, ...]:
    """Those of ``axes`` along which there are several parts."""
    return tuple(axis for axis in axes if axis_size(axis) > 1)


def save_unless_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """A policy for ``jax.checkpoint``: keep everything but gathered parameters."""
    # The gathering has a gradient of its own: what the policy is asked about is the call of it.
    inner = params.get("call_jaxpr")
    return inner is None or not any(eqn.primitive.name.startswith("all_gather") for eqn in inner.eqns)


def vary_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """``x`` marked as differing between the devices between which ``like`` does."""
    return x + jnp.zeros_like(like, shape=(), dtype=x.dtype)
