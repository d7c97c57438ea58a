"""Damaged and incomplete folders: each a clear error that names the file."""

import json
import shutil
from fnmatch import fnmatch

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from hybrid_jax.checkpoints import from_pretrained, model_folder, save_pretrained
from hybrid_jax.checkpoints.safetensors_reader import find_tensors
from hybrid_jax.errors import InputError
from tests.checkpoints.folders import CONFIG, random_model, same, tensors_of, write_folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    save_pretrained(random_model(), folder, max_shard_size="300KB")
    return folder


@pytest.fixture
def copy(tmp_path):
    """Makes a copy of a folder that a test may damage."""
    return lambda folder: shutil.copytree(folder, tmp_path / "model")


def test_single_and_sharded_files_give_the_same_model(single, sharded):
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert same(from_pretrained(single), random_model())
    assert same(from_pretrained(sharded), random_model())


def test_parts_of_tensors_are_read_as_such(single):
    stored = find_tensors(single)["model.layers.1.mlp.up_proj.weight"]
    whole = tensors_of(single)[stored.name]
    np.testing.assert_array_equal(stored.read(), whole)
    np.testing.assert_array_equal(stored.read((slice(3, 40), slice(7, 9))), whole[3:40, 7:9])


def test_a_folder_without_weights(copy, single):
    folder = copy(single)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        InputError,
        match=r"no weights: expected model.safetensors or model.safetensors.index.json"
        r" \(pickled files are never read: pytorch_model.bin\)",
    ):
        from_pretrained(folder)


@pytest.mark.parametrize("num_bytes", [0, 5, 100, 20_000, -1])
def test_a_truncated_file(copy, single, num_bytes):
    path = copy(single) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(InputError, match=f"^{path}: truncated, or not a safetensors file"):
        from_pretrained(path.parent)


def test_a_corrupt_header(copy, single):
    path = copy(single) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:12] = b"oops"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: truncated, or not a safetensors file"):
        from_pretrained(path.parent)


def test_an_index_that_names_a_missing_file(copy, sharded):
    folder = copy(sharded)
    missing = sorted(folder.glob("*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(
        InputError, match=rf"index.json: weight_map: found '{missing.name}', but there is no such file"
    ):
        from_pretrained(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/../../x.safetensors"])
def test_an_index_that_points_outside(copy, sharded, name):
    folder = copy(sharded)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"index.json: weight_map: '{name}' lies outside the folder"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none(copy, sharded, text):
    folder = copy(sharded)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"model.safetensors.index.json: .*expected"):
        from_pretrained(folder)


def test_a_tensor_in_two_files(copy, sharded):
    folder = copy(sharded)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = sorted(folder.glob("*.safetensors"))[0]
    shutil.copy(first, folder / "again.safetensors")
    content["weight_map"]["model.norm.weight"] = "again.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"is in both again.safetensors and {first.name}"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: not JSON"),
        ("[]", "config.json: expected a JSON object, found list"),
        (
            '{"model_type": "gpt2"}',
            "config.json: model_type: found 'gpt2', expected one of olmo_hybrid, olmo3",
        ),
        ('{"model_type": "olmo_hybrid", "rope_theta": null, "vocab_size": -3}', "vocab_size: found -3"),
    ],
)
def test_a_config_that_is_none(copy, single, text, message):
    folder = copy(single)
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=f"^{folder}.*{message}"):
        from_pretrained(folder)


def test_a_folder_without_config(copy, single):
    folder = copy(single)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json: no such file"):
        from_pretrained(folder)


def test_neither_folder_nor_reachable():
    with pytest.raises(
        InputError, match=r"^nobody/nothing \(revision 'v1'\): no such folder, and not reachable"
    ):
        from_pretrained("nobody/nothing", revision="v1")
    with pytest.raises(InputError, match=r"^/no/such/folder: no such folder, and not an id"):
        from_pretrained("/no/such/folder")


def test_a_hub_id_is_downloaded_without_pickles(single, monkeypatch):
    asked = {}

    def download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(single)

    monkeypatch.setattr(model_folder, "snapshot_download", download)
    assert same(from_pretrained("allenai/Olmo-Hybrid-7B", revision="stage1-step1000"), random_model())
    assert (asked["name"], asked["revision"]) == ("allenai/Olmo-Hybrid-7B", "stage1-step1000")
    wanted = (
        "config.json",
        "model-00001-of-00003.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    )
    for name in (*wanted, "pytorch_model.bin", "modeling_olmo.py", "optimizer.pt"):
        assert any(fnmatch(name, pattern) for pattern in asked["patterns"]) == (name in wanted)


def test_a_local_folder_has_no_revisions(single):
    with pytest.raises(InputError, match=r"revision: found 'main', but .* is a local folder"):
        from_pretrained(single, revision="main")


@pytest.mark.parametrize("dtype", [jnp.float16, "int8", "nonsense"])
def test_other_dtypes_are_refused(single, dtype):
    with pytest.raises(InputError, match=r"dtype: found .*, expected float32 or bfloat16"):
        from_pretrained(single, dtype=dtype)


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
def test_dtypes(tmp_path, single, stored, wanted):
    """A_log, dt_bias and o_norm are float32 always; everything else is cast once, from what is stored."""
    tensors = {name: tensor.astype(stored) for name, tensor in tensors_of(single).items()}
    model = from_pretrained(write_folder(tmp_path, tensors=tensors), dtype=wanted)
    assert model.config == CONFIG.replace(dtype=jnp.dtype(wanted).name)
    mixer = model.groups[0].layers[0].linear_attn
    for name, leaf in (
        ("A_log", mixer.A_log),
        ("dt_bias", mixer.dt_bias),
        ("o_norm.weight", mixer.o_norm.scale),
    ):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(
            leaf[1], tensors[f"model.layers.1.linear_attn.{name}"].astype(np.float32)
        )
    kernel = mixer.q_proj.kernel
    assert kernel.dtype == wanted
    np.testing.assert_array_equal(
        kernel[1], tensors["model.layers.1.linear_attn.q_proj.weight"].astype(wanted).T
    )
