"""The command line: there and back, what it says, and how it fails."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from hybrid_jax.checkpoints import save_orbax
from hybrid_jax.errors import InputError
from scripts import convert
from tests.checkpoints.folders import CONFIG, random_model, tensors_of, write_folder
from tests.environment import ROOT, child_environment


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script's command line in this process and returns what it printed, on one line."""

    def run(*arguments):
        convert.app.cli(args=[str(argument) for argument in arguments])
        return " ".join(capsys.readouterr().out.split())

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back(tmp_path, run, dtype):
    folder = write_folder(tmp_path / "hf")
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors_of(folder).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text("{}")
    said = run("to-orbax", folder, tmp_path / "orbax")
    assert (
        f"read {folder}: Hugging Face, olmo_hybrid, layers: 3 (2 linear_attention, 1 full_attention)" in said
    )
    assert f"held in {dtype}" in said
    assert f"wrote {tmp_path / 'orbax'}: " in said
    said = run("to-hf", tmp_path / "orbax", tmp_path / "again", "--tokenizer-from", folder)
    assert f"read {tmp_path / 'orbax'}: Orbax, olmo_hybrid" in said
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


def test_a_dtype_may_be_asked_for(tmp_path, run):
    folder = write_folder(tmp_path / "hf")
    run("to-orbax", folder, tmp_path / "orbax", "--dtype", "bfloat16")
    assert "bfloat16 (29 arrays), float32 (3 arrays)" in run("inspect", tmp_path / "orbax")
    run("to-hf", tmp_path / "orbax", tmp_path / "again", "--dtype", "float32", "--max-shard-size", "300KB")
    assert all(tensor.dtype == np.float32 for tensor in tensors_of(tmp_path / "again").values())
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("exception", "dtype"), [("linear_attn.A_log", "bfloat16"), ("mlp.up_proj.weight", "float32")]
)
def test_nothing_is_rounded_unasked(tmp_path, run, exception, dtype):
    """One matrix in float32 among bfloat16 makes it a float32 model; one of the vectors that stay so does not."""
    tensors = tensors_of(write_folder(tmp_path / "hf"))
    tensors = {
        name: tensor if name.endswith(exception) else tensor.astype("bfloat16")
        for name, tensor in tensors.items()
    }
    run("to-orbax", write_folder(tmp_path / "hf", CONFIG, tensors), tmp_path / "orbax")
    run("to-hf", tmp_path / "orbax", tmp_path / "again")
    again = tensors_of(tmp_path / "again")
    assert again["model.embed_tokens.weight"].dtype == dtype
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name].astype("float32"), tensor.astype("float32"))


def test_inspect(tmp_path, run):
    tensors = tensors_of(write_folder(tmp_path))
    num_parameters = sum(tensor.size for tensor in tensors.values())
    said = run("inspect", tmp_path)
    for part in (
        "form Hugging Face",
        "family olmo_hybrid",
        "layers 3 (2 linear_attention, 1 full_attention)",
        f"parameters {num_parameters:,}",
        f"dtypes float32 ({len(tensors)} arrays)",
        "layout released",
        "would not map nothing",
    ):
        assert part in said


def test_inspect_takes_the_newest_of_a_run(tmp_path, run):
    save_orbax(random_model(), tmp_path / "run/checkpoints/3")
    assert run("inspect", tmp_path / "run") == run("inspect", tmp_path / "run/checkpoints/3")
    with pytest.raises(
        InputError, match=r"revision: found 'main' for a local checkpoint, .*/3, which has none"
    ):
        run("inspect", tmp_path / "run", "--revision", "main")


def test_inspect_tells_what_would_not_map(tmp_path, run):
    tensors = tensors_of(write_folder(tmp_path))
    tensors["model.layers.0.attention_layer_norm.weight"] = tensors.pop(
        "model.layers.0.input_layernorm.weight"
    )
    del tensors["model.norm.weight"]
    tensors["extra"] = np.zeros(3, np.float32)
    said = run("inspect", write_folder(tmp_path, CONFIG, tensors))
    assert "layout norms called attention_layer_norm and feedforward_layer_norm" in said
    assert "would not map unexpected: extra [3] missing: model.norm.weight, expected [64]" in said


def test_bad_input_is_one_line_and_code_1(tmp_path):
    command = [
        sys.executable,
        "scripts/convert.py",
        "to-orbax",
        str(tmp_path / "nowhere"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: {tmp_path / 'nowhere'}: no such folder, and not an id of the Hugging Face hub\n"
    )
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
