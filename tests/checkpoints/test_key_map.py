import numpy as np
import pytest

from hybrid_jax.checkpoints.key_map import key_map
from hybrid_jax.config import ModelConfig

GROUPED = ModelConfig.preset(
    "tiny",
    num_hidden_layers=9,
    layer_types=(("linear_attention",) * 3 + ("full_attention",)) * 2 + ("full_attention",),
)


def test_the_7b_has_the_tensors_of_the_release():
    entries = key_map(ModelConfig.preset("olmo_hybrid_7b"))
    shapes = {entry.name: entry.shape for entry in entries}
    assert len(entries) == len(shapes) == 523
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (100_352, 3840)
    assert shapes["model.layers.0.linear_attn.q_conv1d.weight"] == (2880, 1, 4)
    assert shapes["model.layers.30.linear_attn.v_proj.weight"] == (5760, 3840)
    assert shapes["model.layers.30.linear_attn.A_log"] == (30,)
    assert shapes["model.layers.31.mlp.down_proj.weight"] == (3840, 11_008)
    assert "model.layers.31.linear_attn.A_log" not in shapes


def test_every_slot_of_every_parameter_is_used_once():
    entries = key_map(GROUPED)
    assert len({(entry.path, entry.repeat) for entry in entries}) == len(entries)
    by_name = {entry.name: entry for entry in entries}
    for layer, group, repeat in ((2, 0, 2), (3, 1, 0), (4, 2, 0), (7, 3, 0), (8, 3, 1)):
        entry = by_name[f"model.layers.{layer}.mlp.up_proj.weight"]
        assert (entry.path, entry.repeat) == (f"groups.{group}.layers.0.mlp.up_proj.kernel", repeat)


def test_tensors_come_in_the_order_of_the_layers():
    names = [entry.name for entry in key_map(GROUPED)]
    layers = [int(name.split(".")[2]) for name in names if name.startswith("model.layers.")]
    assert layers == sorted(layers)
    assert names[0] == "model.embed_tokens.weight"
    assert set(names[-2:]) == {"model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize("kind", ["kernel", "conv", "as_is"])
def test_the_way_there_and_back_is_the_same(kind):
    entry = next(entry for entry in key_map(GROUPED) if entry.kind == kind)
    tensor = np.random.default_rng(0).normal(size=entry.shape)
    parameter = entry.from_hf(tensor)
    np.testing.assert_array_equal(entry.to_hf(parameter), tensor)
    part = tuple(slice(1, size - 1) for size in parameter.shape)
    np.testing.assert_array_equal(entry.from_hf(tensor[entry.hf_index(part)]), parameter[part])
