import warnings

import pytest

from hybrid_jax.config import PRESETS, LayerSpec, ModelConfig, Rope, RopeParameters
from hybrid_jax.config.model_config import group_layers
from hybrid_jax.errors import InputError

G = LayerSpec(layer_type="linear_attention")
A = LayerSpec(layer_type="full_attention")


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        ("GGGAGGGA", ["GGGA*2"]),
        ("GGGGGGGG", ["G*8"]),
        ("GAGAGAGA", ["GA*4"]),
        ("GGGA", ["G*3", "A*1"]),
        ("GGGAGGGAGA", ["GGGA*2", "GA*1"]),
        ("GGGGGGGAGGGA", ["G*7", "A*1", "G*3", "A*1"]),
        ("A", ["A*1"]),
    ],
)
def test_layers_are_grouped_by_repeating_pattern(pattern, groups):
    specs = tuple({"G": G, "A": A}[letter] for letter in pattern)
    found = group_layers(specs)
    named = ["".join("G" if s == G else "A" for s in g.specs) + f"*{g.num_repeats}" for g in found]
    assert named == groups
    rebuilt = [spec for group in found for _ in range(group.num_repeats) for spec in group.specs]
    assert tuple(rebuilt) == specs
    assert [g.first_layer for g in found] == [
        sum(len(g.specs) * g.num_repeats for g in found[:i]) for i in range(len(found))
    ]


def test_the_defaults_are_the_released_7b():
    config = ModelConfig()
    assert (config.linear_key_head_dim, config.linear_value_head_dim, config.head_dim) == (96, 192, 128)
    assert [i for i, t in enumerate(config.layer_types) if t == "full_attention"] == list(range(3, 32, 4))
    assert all(spec.rope is None for spec in config.layer_specs)
    assert config == ModelConfig.preset("olmo_hybrid_7b")


def test_yarn_is_for_full_attention_layers_only():
    specs = ModelConfig.preset("olmo3_7b").layer_specs
    assert {spec.layer_type: spec.rope.rope_type for spec in specs} == {
        "sliding_attention": "default",
        "full_attention": "yarn",
    }
    assert {spec.window for spec in specs if spec.layer_type == "full_attention"} == {None}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_config_json(name):
    config = ModelConfig.preset(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ModelConfig.from_hf(config.to_hf()) == config


def test_a_hybrid_without_a_full_layer_ends_in_one():
    assert ModelConfig.preset("tiny", num_hidden_layers=3).layer_types[-1] == "full_attention"


HYBRID = {"model_type": "olmo_hybrid", "num_hidden_layers": 4}


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_parameters": {"rope_theta": None}}, None),
        ({"rope_theta": None}, None),
        ({"rope_parameters": {"rope_theta": 5e5}}, Rope(rope_theta=5e5)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(rope_theta=5e5)),
        ({"rope_theta": 2e4}, Rope(rope_theta=2e4)),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192},
            },
            Rope(rope_theta=5e5, rope_type="yarn", factor=8.0, original_max_position_embeddings=8192),
        ),
    ],
)
def test_positions_of_a_hybrid_follow_its_config(fields, rope):
    assert ModelConfig.from_hf({**HYBRID, **fields}).rope_parameters.full_attention == rope


@pytest.mark.parametrize("fields", [{}, {"rope_parameters": None}])
def test_silence_about_positions_means_theta_10000_and_one_warning(fields):
    with pytest.warns(UserWarning, match="theta 10000") as caught:
        config = ModelConfig.from_hf({**HYBRID, **fields})
    assert len(caught) == 1
    assert config.rope_parameters.full_attention == Rope(rope_theta=10_000.0)


def test_old_rope_scaling_of_olmo3_reaches_full_layers_only():
    scaling = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}
    config = ModelConfig.from_hf({"model_type": "olmo3", "rope_theta": 1e4, "rope_scaling": scaling})
    assert config.rope_parameters.full_attention.rope_type == "yarn"
    assert config.rope_parameters.full_attention.rope_theta == 1e4
    assert config.rope_parameters.sliding_attention == Rope(rope_theta=500_000.0)


def test_flat_positions_of_olmo3_are_passed_over_aloud():
    with pytest.warns(UserWarning, match="nested by layer type"):
        config = ModelConfig.from_hf({"model_type": "olmo3", "rope_parameters": {"rope_theta": 1e4}})
    assert config.rope_parameters.full_attention.rope_theta == 500_000.0


@pytest.mark.parametrize(
    ("hf_config", "message"),
    [
        ({"model_type": "llama"}, "model_type: found 'llama', expected one of olmo_hybrid, olmo3"),
        ({}, "model_type: found None"),
        ({**HYBRID, "rope_theta": 1e4, "attention_bias": True}, "attention_bias: found True"),
        ({**HYBRID, "rope_theta": 1e4, "hidden_act": "gelu"}, "hidden_act: found 'gelu'"),
        ({**HYBRID, "rope_parameters": {"rope_theta": 1e4, "mscale": 2}}, "unsupported mscale"),
        (
            {**HYBRID, "rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}},
            "factor: found 1.0, expected",
        ),
        (
            {**HYBRID, "rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3"}},
            "rope_type: found 'llama3'",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(hf_config, message):
    with pytest.raises(InputError, match=message):
        ModelConfig.from_hf(hf_config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 65}, "hidden_size: found 65, expected a multiple of num_attention_heads 4"),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads: found 4, expected a multiple of num_key_value_heads = 3",
        ),
        ({"linear_num_key_heads": 3}, "linear_num_value_heads: found 4"),
        (
            {"layer_types": ("full_attention",)},
            "layer_types: found 1 entries, expected num_hidden_layers = 4",
        ),
        ({"layer_types": ("full_attention", "mamba") * 2}, r"layer_types\[1\]: found 'mamba'"),
        ({"layer_types": ("sliding_attention",) * 4}, "sliding_window: found None"),
        ({"model_type": "olmo2"}, "model_type: found 'olmo2'"),
        (
            {"model_type": "olmo3", "layer_types": ("linear_attention",) * 4},
            "which model_type 'olmo3' does not have",
        ),
        ({"vocab_size": 0}, "vocab_size: found 0, expected a positive integer"),
        ({"eos_token_id": 256}, "eos_token_id: found 256, expected 0 <= id < vocab_size 256"),
        ({"head_dim": 15, "rope_parameters": RopeParameters(full_attention=Rope())}, "head_dim: found 15"),
    ],
)
@pytest.mark.usefixtures("as_for_users")
def test_contradictions_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        ModelConfig.preset("tiny", **fields)


def test_an_unknown_preset_gets_a_suggestion():
    with pytest.raises(InputError, match="found 'olmo_hybrid_7B', expected one of olmo_hybrid_7b"):
        ModelConfig.preset("olmo_hybrid_7B")


def test_yarn_without_an_original_length_is_refused():
    with pytest.raises(InputError, match="original_max_position_embeddings"):
        Rope(rope_type="yarn", factor=8.0)


@pytest.mark.parametrize("fields", [{}, {"factor": 1.0}, {"factor": float("nan")}])
def test_yarn_that_extends_nothing_is_refused(fields):
    with pytest.raises(InputError, match=r"^factor: found (1\.0|nan), expected more than 1"):
        Rope(rope_type="yarn", original_max_position_embeddings=8192, **fields)


def test_a_padding_id_outside_the_vocabulary_is_not_written():
    assert ModelConfig.preset("tiny", pad_token_id=255).to_hf()["pad_token_id"] == 255
    assert ModelConfig.preset("tiny", pad_token_id=256).to_hf()["pad_token_id"] is None


def test_models_beyond_transformers_say_so():
    with pytest.warns(UserWarning, match="at least one full-attention layer"):
        ModelConfig.preset("gdn_60m").to_hf()
    ungated = ModelConfig.preset("tiny", linear_use_gate=False)
    with pytest.warns(UserWarning, match="output gate in every linear layer"):
        written = ungated.to_hf()
    assert ModelConfig.from_hf(written).linear_use_gate is False
