"""The key map: every Hugging Face tensor of a model and its place among the model's own parameters, both ways.

Names and shapes are those of the released checkpoints. The map follows from the model's parameter paths, so a new
module needs no new entry here; what other layouts call the same tensors is in ``layouts``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import jax
import numpy as np
from flax import nnx

from hybrid_jax.config import ModelConfig
from hybrid_jax.models import CausalLM
from hybrid_jax.models.paths import named_parameters

# Flax's leaf names; A_log and dt_bias are called the same on both sides.
_WEIGHT_LEAVES = ("kernel", "scale", "embedding")
# Read by exponentials, or few and multiplied in float32: kept in float32 whatever the other parameters are in.
_FLOAT32_LEAVES = ("A_log", "dt_bias", "o_norm.scale")

Index = tuple[slice, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One Hugging Face tensor.

    Attributes:
        name: its released name, ``model.layers.5.mlp.up_proj.weight``.
        path: the model's parameter that holds it, ``groups.0.layers.1.mlp.up_proj.kernel``.
        repeat: its index along that parameter's leading dimension of repeats; None for a parameter without one.
        kind: how it lies there: a "kernel" [out, in] is transposed, a "conv" [channels, 1, W] becomes
            [W, channels], anything else is taken "as_is".
        shape: its shape in Hugging Face's orientation.
    """

    name: str
    path: str
    repeat: int | None
    kind: Literal["kernel", "conv", "as_is"]
    shape: tuple[int, ...]

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor (or a part of it) as it lies in the model: a view."""
        if self.kind == "conv":
            return tensor[:, 0, :].T
        return tensor.T if self.kind == "kernel" else tensor

    def to_hf(self, parameter: np.ndarray) -> np.ndarray:
        """The inverse of ``from_hf``: a view."""
        if self.kind == "conv":
            return parameter.T[:, None, :]
        return parameter.T if self.kind == "kernel" else parameter

    def hf_index(self, index: Index) -> Index:
        """Which part of the tensor gives the part ``index`` of a parameter (without its repeats)."""
        if self.kind == "conv":
            return (index[1], slice(None), index[0])
        return index[::-1] if self.kind == "kernel" else index


@lru_cache(maxsize=8)
def key_map(config: ModelConfig) -> tuple[Entry, ...]:
    """Every tensor of the released layout, in the order of the layers."""
    entries = []
    for path, leaf in named_parameters(abstract_model(config)).items():
        if not path.startswith("groups."):
            entries.append(_entry(_top_level_name(path), path, None, leaf.shape))
            continue
        _, group_number, _, position, inner = path.split(".", 4)
        group = config.layer_groups[int(group_number)]
        for repeat in range(group.num_repeats):
            layer = group.first_layer + repeat * len(group.specs) + int(position)
            name = f"model.layers.{layer}.{_hf_leaf(inner)}"
            entries.append(_entry(name, path, repeat, leaf.shape[1:]))
    return tuple(sorted(entries, key=_place_in_model))


@lru_cache(maxsize=8)
def abstract_model(config: ModelConfig) -> CausalLM:
    """The model with shapes in place of arrays."""
    return jax.eval_shape(partial(CausalLM, config), rngs=nnx.Rngs(0))


def model_from_parameters(config: ModelConfig, parameters: Mapping[str, jax.Array]) -> CausalLM:
    """The model that holds ``parameters``, by path."""
    abstract = abstract_model(config)
    leaves = [parameters[path] for path in named_parameters(abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def stays_float32(path: str) -> bool:
    """Whether the parameter keeps float32 in a model of another dtype."""
    return path.endswith(_FLOAT32_LEAVES)


def _entry(name: str, path: str, repeat: int | None, shape: tuple[int, ...]) -> Entry:
    if path.endswith("_conv1d.kernel"):
        width, channels = shape
        return Entry(name=name, path=path, repeat=repeat, kind="conv", shape=(channels, 1, width))
    if path.endswith(".kernel"):
        return Entry(name=name, path=path, repeat=repeat, kind="kernel", shape=shape[::-1])
    return Entry(name=name, path=path, repeat=repeat, kind="as_is", shape=shape)


def _top_level_name(path: str) -> str:
    return _hf_leaf(path) if path.startswith("lm_head.") else f"model.{_hf_leaf(path)}"


def _hf_leaf(path: str) -> str:
    module, _, leaf = path.rpartition(".")
    return f"{module}.weight" if leaf in _WEIGHT_LEAVES else path


def _place_in_model(entry: Entry) -> tuple[int, int]:
    if entry.name.startswith("model.layers."):
        return 1, int(entry.name.split(".")[2])
    return (0, 0) if entry.name.startswith("model.embed_tokens.") else (2, 0)
