import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from hybrid_jax.checkpoints import from_pretrained, save_pretrained
from hybrid_jax.checkpoints.safetensors_writer import LazyTensor, write_safetensors
from hybrid_jax.errors import InputError
from tests.checkpoints.folders import CONFIG, random_model, same, small_disk, tensors_of, write_folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_those_of_the_library(tmp_path):
    random = np.random.default_rng(0)
    tensors = {
        "b.weight": random.normal(size=(3, 5)).astype(np.float32),
        "ä": random.normal(size=(7,)).astype(np.float16),
        "a": random.normal(size=(3, 1, 4)).astype(ml_dtypes.bfloat16),
        "c": random.normal(size=(300, 257)).astype(ml_dtypes.bfloat16).T,
        "a.b": np.zeros((1,), np.float32),
    }
    lazy = {
        name: LazyTensor(shape=tensor.shape, dtype=tensor.dtype, values=lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    }
    write_safetensors(tmp_path, lazy, "1GB")
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(whole, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_shards_and_their_index(tmp_path):
    save_pretrained(random_model(), tmp_path, max_shard_size="200KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    tensors = tensors_of(tmp_path)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"]["total_parameters"] == sum(tensor.size for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{i + 1:05d}-of-{len(names):05d}.safetensors" for i in range(len(names))]
    assert max((tmp_path / name).stat().st_size for name in names) < 200_000 + 10_000
    assert same(from_pretrained(tmp_path), random_model())


@pytest.mark.parametrize("size", ["5 bananas", "GB", ""])
def test_a_shard_size_that_is_none(tmp_path, size):
    with pytest.raises(InputError, match=f"max_shard_size: found '{size}'"):
        save_pretrained(random_model(), tmp_path / "model", max_shard_size=size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_there_and_back_is_the_same_file(tmp_path, dtype):
    """Also for bfloat16, whose A_log, dt_bias and o_norm are float32 in memory."""
    tensors = {
        name: tensor.astype(dtype) for name, tensor in tensors_of(write_folder(tmp_path / "a")).items()
    }
    save_file(tensors, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    save_pretrained(from_pretrained(tmp_path / "a", dtype=dtype), tmp_path / "b")
    for name in ("model.safetensors",):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == np.dtype(dtype).name


def test_float32_vectors_of_a_bfloat16_model_are_not_rounded(tmp_path):
    save_pretrained(from_pretrained(write_folder(tmp_path / "a"), dtype=jnp.bfloat16), tmp_path / "b")
    before, after = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    for name in before:
        kept = name.endswith(("A_log", "dt_bias", "o_norm.weight"))
        assert after[name].dtype == (np.float32 if kept else ml_dtypes.bfloat16)
        np.testing.assert_array_equal(after[name], before[name].astype(after[name].dtype))


def test_a_model_replaces_another_and_leaves_the_rest(tmp_path):
    save_pretrained(random_model(), tmp_path, max_shard_size="200KB")
    (tmp_path / "README.md").write_text("mine")
    config = CONFIG.replace(vocab_size=300)
    save_pretrained(random_model(config), tmp_path)
    assert sorted(contents(tmp_path)) == ["README.md", "config.json", "model.safetensors"]
    assert same(from_pretrained(tmp_path), random_model(config))


def test_tokenizer_files_come_along(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "pytorch_model.bin"):
        (tmp_path / "tokenizer" / name).write_text(name)
    save_pretrained(random_model(), tmp_path / "model", tokenizer_from=tmp_path / "tokenizer")
    names = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(contents(tmp_path / "model")) == names
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "tokenizer.json"
    with pytest.raises(InputError, match=r"tokenizer_from: .*nowhere: no such folder"):
        save_pretrained(random_model(), tmp_path / "model", tokenizer_from=tmp_path / "nowhere")
    assert sorted(contents(tmp_path / "model")) == names


def test_a_full_disk_leaves_the_previous_model(tmp_path):
    folder = tmp_path / "model"
    save_pretrained(random_model(), folder, max_shard_size="200KB")
    before = contents(folder)
    with (
        small_disk(100_000),
        pytest.raises(OSError, match=r"File too large: '.*model-00001-of-.*safetensors'"),
    ):
        save_pretrained(random_model(CONFIG.replace(vocab_size=300)), folder, max_shard_size="200KB")
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_leaves_nothing_new(tmp_path):
    with small_disk(100_000), pytest.raises(OSError, match="File too large"):
        save_pretrained(random_model(), tmp_path / "parent" / "model")
    assert list((tmp_path / "parent").iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(InputError, match="model: expected a folder, found a file"):
        save_pretrained(random_model(), tmp_path / "model")


def test_a_loaded_model_can_be_given_away(tmp_path):
    """Donating its parameters, which may be numpy's own memory, changes nothing that others see."""
    model = from_pretrained(write_folder(tmp_path))
    step = jax.jit(lambda model: jax.tree.map(lambda leaf: leaf + 1, model), donate_argnums=0)
    after = step(step(model))
    expected = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(1) + np.float32(1), random_model())
    assert same(after, expected)
