"""Small random models; every vector is moved off its initial value so that nothing passes by being zero or one."""

import jax
import numpy as np
import pytest

from hybrid_jax.config import ModelConfig, Rope, RopeParameters
from hybrid_jax.models import CausalLM, create_model

ROPE = Rope(rope_theta=10_000.0)
CONFIGS = {
    "hybrid": ModelConfig.preset("tiny", linear_num_key_heads=2),
    "olmo3": ModelConfig.preset("tiny_olmo3"),
    "mixed": ModelConfig.preset(
        "tiny",
        num_hidden_layers=5,
        layer_types=("linear_attention", "sliding_attention") * 2 + ("full_attention",),
        sliding_window=6,
        rope_parameters=RopeParameters(full_attention=ROPE, sliding_attention=ROPE),
        tie_word_embeddings=True,
    ),
    # One group that repeats: quick to compile.
    "repeating": ModelConfig.preset(
        "tiny",
        layer_types=("linear_attention", "sliding_attention") * 2,
        sliding_window=6,
        rope_parameters=RopeParameters(full_attention=ROPE, sliding_attention=ROPE),
        tie_word_embeddings=True,
    ),
}
# What olmo3 is made of is in mixed too.
MODELS = ("hybrid", pytest.param("olmo3", marks=pytest.mark.slow), "mixed")


def random_model(config: ModelConfig, seed: int = 0) -> CausalLM:
    leaves, structure = jax.tree.flatten(create_model(config, seed))
    random = np.random.default_rng(seed)
    noise = [np.float32(random.normal(0, 0.1 if leaf.ndim > 2 else 0.3, leaf.shape)) for leaf in leaves]
    return jax.tree.unflatten(structure, [leaf + n for leaf, n in zip(leaves, noise, strict=True)])


def relative_error(found, expected) -> float:
    """Norm of the difference over norm of what is expected, in float64."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="session", params=MODELS)
def model(request) -> CausalLM:
    return random_model(CONFIGS[request.param])


@pytest.fixture(scope="session")
def input_ids() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, 40), dtype=np.int32)
