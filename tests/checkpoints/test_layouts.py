"""Every known layout is the same model; whatever fits none is named."""

import numpy as np
import pytest

from hybrid_jax.checkpoints import from_pretrained
from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError
from tests.checkpoints.folders import CONFIG, WIDTHS, random_model, same, tensors_of, write_folder

CONVS = [f"linear_attn.{part}_conv1d.weight" for part in "qkv"]


def linear_layers(config: ModelConfig) -> list[str]:
    return [f"model.layers.{i}." for i, kind in enumerate(config.layer_types) if kind == "linear_attention"]


def rename(tensors, *pairs):
    for old, new in pairs:
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def join_convs(tensors, layer):
    return np.concatenate([tensors.pop(layer + conv) for conv in CONVS])


def as_transformers_saves(tensors, config):
    tensors = dict(tensors)
    for layer in linear_layers(config):
        tensors |= dict(
            zip((layer + conv for conv in CONVS), np.split(join_convs(tensors, layer), 3), strict=True)
        )
    return rename(
        tensors,
        (".input_layernorm", ".attention_layer_norm"),
        (".post_attention_layernorm", ".feedforward_layer_norm"),
    )


def as_transformers_holds(tensors, config):
    tensors = dict(tensors)
    for layer in linear_layers(config):
        tensors[layer + "linear_attn.conv1d.weight"] = join_convs(tensors, layer)
    return tensors


def as_exported(tensors, config):
    return rename(
        tensors, ("linear_attn.o_proj", "linear_attn.out_proj"), ("linear_attn.o_norm", "linear_attn.norm")
    )


LAYOUTS = {
    "saved by transformers": as_transformers_saves,
    "held by transformers": as_transformers_holds,
    "exported": as_exported,
    "all at once": lambda tensors, config: as_exported(
        rename(as_transformers_holds(tensors, config), (".input_layernorm", ".attention_layer_norm")), config
    ),
}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return tensors_of(write_folder(tmp_path_factory.mktemp("released")))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_model(tmp_path, released, layout):
    tensors = layout(released, CONFIG)
    assert tensors.keys() != released.keys() or layout is as_transformers_saves
    assert same(from_pretrained(write_folder(tmp_path, tensors=tensors)), random_model())


@pytest.mark.parametrize(("key_heads", "value_dim"), [(2, 24), (4, 12), (3, 25)])
def test_thirds_of_convolutions_are_cut_anew(tmp_path, key_heads, value_dim):
    """Also where the thirds are the true widths, and where three does not divide the height."""
    config = CONFIG.replace(
        linear_num_key_heads=key_heads, linear_num_value_heads=2 * key_heads, linear_value_head_dim=value_dim
    )
    tensors = tensors_of(write_folder(tmp_path, config))
    for layer in linear_layers(config):
        joined = join_convs(tensors, layer)
        part = -(-len(joined) // 3)
        tensors |= zip((layer + conv for conv in CONVS), np.split(joined, [part, 2 * part]), strict=True)
    assert same(from_pretrained(write_folder(tmp_path, config, tensors)), random_model(config))


def test_all_that_does_not_fit_is_told_at_once(tmp_path, released):
    tensors = dict(released)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.linear_attn.extra.weight"] = np.zeros((2, 3), np.float32)
    tensors["model.layers.0.attention_layer_norm.weight"] = tensors["model.layers.0.input_layernorm.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((64, 128), np.float32)
    tensors["model.layers.1.linear_attn.q_conv1d.weight"] = np.zeros((47, 1, 4), np.float32)
    tensors["model.layers.1.linear_attn.A_log"] = np.zeros(4, np.int32)
    folder = write_folder(tmp_path, tensors=tensors)
    with pytest.raises(InputError) as caught:
        from_pretrained(folder)
    assert str(caught.value).splitlines() == [
        f"{folder}: the weights do not fit config.json:",
        "  unexpected: model.layers.0.linear_attn.extra.weight [2, 3]",
        "  dtype of model.layers.1.linear_attn.A_log: found I32, expected one of F32, BF16, F16",
        "  mapped twice: model.layers.0.input_layernorm.weight, from model.layers.0.attention_layer_norm.weight "
        "and model.layers.0.input_layernorm.weight",
        "  missing: model.norm.weight, expected [64]",
        "  wrong shape: model.layers.1.linear_attn.q_conv1d.weight, found [47, 1, 4], expected [48, 1, 4]",
        "  wrong shape: model.layers.1.mlp.up_proj.weight, found [64, 128], expected [128, 64]",
    ]


def test_a_fused_convolution_beside_a_split_one_is_doubly_mapped(tmp_path, released):
    tensors = released | {
        "model.layers.0.linear_attn.conv1d.weight": np.zeros((sum(WIDTHS), 1, 4), np.float32)
    }
    with pytest.raises(InputError) as caught:
        from_pretrained(write_folder(tmp_path, tensors=tensors))
    twice = [line for line in str(caught.value).splitlines() if "mapped twice" in line]
    assert len(twice) == 3
    assert "_conv1d.weight, from model.layers.0.linear_attn.conv1d.weight and" in twice[0]


def test_a_fused_convolution_of_the_wrong_height_is_told_once(tmp_path, released):
    tensors = as_transformers_holds(released, CONFIG)
    tensors["model.layers.0.linear_attn.conv1d.weight"] = np.zeros((190, 1, 4), np.float32)
    with pytest.raises(InputError, match=r"conv1d.weight, found \[190, 1, 4\], expected \[192, 1, 4\]$"):
        from_pretrained(write_folder(tmp_path, tensors=tensors))


def test_other_names_belong_to_their_family(tmp_path):
    config = ModelConfig.preset("tiny_olmo3", num_hidden_layers=1, layer_types=("full_attention",))
    tensors = rename(
        tensors_of(write_folder(tmp_path, config)), (".post_attention_layernorm", ".feedforward_layer_norm")
    )
    with pytest.raises(InputError, match=r"unexpected: model.layers.0.feedforward_layer_norm.weight \[64\]"):
        from_pretrained(write_folder(tmp_path, config, tensors))


def test_a_config_of_other_sizes_contradicts_the_weights(tmp_path, released):
    folder = write_folder(tmp_path, CONFIG.replace(vocab_size=300, intermediate_size=96), released)
    with pytest.raises(InputError) as caught:
        from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1 + 2 + 3 * CONFIG.num_hidden_layers
    assert "model.embed_tokens.weight, found [256, 64], expected [300, 64]" in str(caught.value)


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    config = CONFIG.replace(tie_word_embeddings=True)
    tensors = tensors_of(write_folder(tmp_path, config))
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert same(from_pretrained(write_folder(tmp_path, config, tensors)), random_model(config))
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + np.float32(1)
    with pytest.raises(InputError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        from_pretrained(write_folder(tmp_path, config, tensors))
    tensors["lm_head.weight"] = np.zeros((64, 256), np.float32)
    with pytest.raises(InputError, match=r"lm_head.weight, found \[64, 256\], expected \[256, 64\]"):
        from_pretrained(write_folder(tmp_path, config, tensors))


def test_an_absent_head_is_missing_where_it_is_not_tied(tmp_path, released):
    tensors = {name: tensor for name, tensor in released.items() if name != "lm_head.weight"}
    with pytest.raises(InputError, match=r"missing: lm_head.weight, expected \[256, 64\]"):
        from_pretrained(write_folder(tmp_path, tensors=tensors))
