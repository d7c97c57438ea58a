"""Each architecture is the model that its name says, and each ablation changes what it is about and nothing else."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybrid_jax.config import ModelConfig
from hybrid_jax.config.flops import training_flops_per_token
from hybrid_jax.ladder import LadderConfig
from hybrid_jax.ladder.architectures import model_config
from hybrid_jax.models import CausalLM
from hybrid_jax.models.gated_delta_net import GatedDeltaNet
from hybrid_jax.models.paths import named_parameters
from hybrid_jax.models.tokens import describe_tokens
from hybrid_jax.scaling.points import ARCHITECTURES
from hybrid_jax.yaml_config import load, to_mapping
from tests.environment import ROOT

FOLDER = ROOT / "configs/scaling"
# Layers of the 60M and the 190M: G Gated DeltaNet, F attention to all, W attention in a window.
LAYERS = {
    "olmo3": ("WWWFWWWF", "WWWFWWWFWWWF"),
    "olmo_hybrid": ("GGGFGGGF", "GGGFGGGFGGGF"),
    "gdn": ("GGGGGGGG", "GGGGGGGGGGGG"),
    "hybrid_1to1": ("GWGFGWGF", "GWGFGWGFGWGF"),
    "hybrid_7to1": ("GGGGGGGF", "GGGGGGGFGGGF"),
    "hybrid_middle": ("GGGFWGGF", "GGGGWWWGGGGF"),
    "hybrid_positive": ("GGGFGGGF", "GGGFGGGFGGGF"),
    "hybrid_no_gate": ("GGGFGGGF", "GGGFGGGFGGGF"),
}
LETTERS = {"G": "linear_attention", "F": "full_attention", "W": "sliding_attention"}


@pytest.fixture(scope="module")
def full() -> LadderConfig:
    return load(LadderConfig, FOLDER / "full.yaml")


def built(full: LadderConfig, name: str, size: str = "60m") -> ModelConfig:
    return model_config(name, full.sizes[size], full.model, full.linear_key_head_multiple)


def parameters(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    model = jax.eval_shape(partial(CausalLM, config), rngs=nnx.Rngs(0))
    return {path: leaf.shape for path, leaf in named_parameters(model).items()}


def changed(config: ModelConfig, other: ModelConfig) -> dict[str, object]:
    first, second = to_mapping(config), to_mapping(other)
    return {name: value for name, value in first.items() if second[name] != value}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_by_name(full, name):
    for size, letters in zip(("60m", "190m"), LAYERS[name], strict=True):
        config = built(full, name, size)
        assert config.layer_types == tuple(LETTERS[letter] for letter in letters)
        for spec in config.layer_specs:
            assert spec.window == (4096 if spec.layer_type == "sliding_attention" else None)
            assert (spec.rope is None) == (spec.layer_type == "linear_attention")


def test_the_ablations_are_the_full_ladder_with_other_architectures(full):
    config = load(LadderConfig, FOLDER / "ablations.yaml")
    assert set(config.architectures) | set(full.architectures) == set(ARCHITECTURES)
    assert replace(config, architectures=full.architectures) == full


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("hybrid_1to1", {"layer_types", "sliding_window", "rope_parameters"}),
        ("hybrid_7to1", {"layer_types"}),
        ("hybrid_middle", {"layer_types", "sliding_window", "rope_parameters"}),
        ("hybrid_positive", {"linear_allow_neg_eigval"}),
        ("hybrid_no_gate", {"linear_use_gate"}),
    ],
)
def test_an_ablation_changes_what_it_is_about_and_nothing_else(full, name, fields):
    assert changed(built(full, name), built(full, "olmo_hybrid")).keys() == fields


def test_only_the_gates_parameters_are_gone_without_it(full):
    hybrid, without = built(full, "olmo_hybrid"), built(full, "hybrid_no_gate")
    expected = {path: shape for path, shape in parameters(hybrid).items() if ".g_proj." not in path}
    assert parameters(without) == expected
    assert len(expected) < len(parameters(hybrid))
    saved = 6 * 6 * 384 * 8 * 256  # of six layers
    assert training_flops_per_token(hybrid, 8192) - training_flops_per_token(without, 8192) == saved
    assert parameters(built(full, "hybrid_positive")) == parameters(hybrid)


def linear_layer(**changes):
    config = ModelConfig.preset("tiny", num_hidden_layers=1, layer_types=("linear_attention",), **changes)
    return GatedDeltaNet(config, rngs=nnx.Rngs(0))


@jax.jit
def outputs(layer, x):
    tokens, _ = describe_tokens(x.shape[:2], None, None, None)
    return layer(x, tokens, None)[0]


def with_parameters_of(layer, other):
    for name, module in vars(layer).items():
        if isinstance(module, nnx.Module):
            nnx.update(module, nnx.state(getattr(other, name)))
    layer.A_log[...], layer.dt_bias[...] = other.A_log[...], other.dt_bias[...]
    return layer


def test_without_a_gate_the_output_is_that_of_a_gate_of_one():
    gated = linear_layer()
    ungated = with_parameters_of(linear_layer(linear_use_gate=False), gated)
    x = jax.random.normal(jax.random.key(0), (1, 8, 64)).at[..., 0].set(1.0)
    assert not np.allclose(outputs(gated, x), outputs(ungated, x), atol=1e-3)
    # The gate of every token is silu(1.2784645) = 1.
    kernel = jnp.zeros_like(gated.g_proj.kernel[...]).at[0].set(1.2784645)
    gated.g_proj.kernel[...] = kernel
    np.testing.assert_allclose(outputs(gated, x), outputs(ungated, x), atol=1e-6)


def test_with_positive_eigenvalues_a_write_is_at_most_a_replacement():
    """The transition's eigenvalue is 1 - beta: the strongest write has beta 1, elsewhere a middling one."""
    negative = linear_layer()
    positive = with_parameters_of(linear_layer(linear_allow_neg_eigval=False), negative)
    x = jax.random.normal(jax.random.key(0), (1, 8, 64)).at[..., 0].set(1.0)
    assert not np.allclose(outputs(negative, x), outputs(positive, x), atol=1e-3)
    kernel = jnp.zeros_like(negative.b_proj.kernel[...])
    negative.b_proj.kernel[...], positive.b_proj.kernel[...] = kernel, kernel.at[0].set(50.0)
    np.testing.assert_allclose(outputs(negative, x), outputs(positive, x), atol=1e-6)
