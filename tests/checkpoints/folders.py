"""Small models and Hugging Face folders to read, made without torch."""

import json
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from hybrid_jax.checkpoints import save_pretrained
from hybrid_jax.checkpoints.key_map import abstract_model
from hybrid_jax.config import ModelConfig
from hybrid_jax.models import CausalLM

# Key and value widths of the convolutions differ, and so do the numbers of key and value heads.
CONFIG = ModelConfig.preset(
    "tiny", num_hidden_layers=3, layer_types=("linear_attention",) * 2 + ("full_attention",)
)
WIDTHS = (48, 48, 96)


def random_model(config: ModelConfig = CONFIG) -> CausalLM:
    """Every value its own, so that a tensor in the wrong place shows."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jax.device_put(random.standard_normal(leaf.shape, np.float32)), abstract_model(config)
    )


def same(a: CausalLM, b: CausalLM) -> bool:
    """Whether two models have the same parameters to the bit, in the same dtypes."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def write_folder(
    folder: Path, config: ModelConfig = CONFIG, tensors: Mapping[str, np.ndarray] | None = None
) -> Path:
    """A folder of ``random_model``; with ``tensors`` in place of its own."""
    save_pretrained(random_model(config), folder)
    if tensors is not None:
        save_file(dict(tensors), folder / "model.safetensors")
    return folder


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, by the library's own reader."""
    index = folder / "model.safetensors.index.json"
    files = (
        set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    )
    return {name: tensor for file in sorted(files) for name, tensor in load_file(folder / file).items()}


@contextmanager
def small_disk(num_bytes: int) -> Iterator[None]:
    """Writing more than this to a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
