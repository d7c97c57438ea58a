"""Names of parameters: ``groups.0.layers.1.self_attn.q_proj.kernel`` and the like."""

from typing import Any

import jax
from jax.typing import DTypeLike

from hybrid_jax.sharding.manual import gather_parameters


def parameter_path(key_path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf from its JAX key path."""
    return jax.tree_util.keystr(key_path, simple=True, separator=".").removesuffix(".value")


def named_parameters(model: Any) -> dict[str, Any]:
    """Every leaf of a model, of its gradients or of its ``jax.eval_shape``, by dotted name."""
    return {parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


def gather_module(module: Any, prefix: str, dtype: DTypeLike) -> Any:
    """``module`` with whole parameters where they are split over ``fsdp`` (see ``gather_parameters``)."""
    names = jax.tree_util.tree_map_with_path(lambda path, _: prefix + parameter_path(path), module)
    return gather_parameters(module, names, dtype)
