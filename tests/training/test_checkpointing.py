"""Checkpoints: bit-equal, complete or absent, kept as asked, and loud when they cannot be written or read."""

import json
import os
import re
import shutil
import types
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.checkpoints import load_orbax
from hybrid_jax.errors import InputError
from hybrid_jax.models import create_model
from hybrid_jax.sharding import single_device_mesh
from hybrid_jax.training.checkpointing import Checkpointer
from hybrid_jax.training.optimizer import OptimizerConfig, make_optimizer
from hybrid_jax.training.run_config import CheckpointConfig
from hybrid_jax.training.state import state_shapes
from hybrid_jax.yaml_config import to_mapping
from tests.training.toy import toy_model

MODEL = toy_model()
OPTIMIZER = make_optimizer(OptimizerConfig(), lambda count: 0.1, jax.eval_shape(partial(create_model, MODEL)))
SHAPES = state_shapes(MODEL, OPTIMIZER, 0, single_device_mesh())


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), SHAPES)


def data(step: int) -> dict:
    return {"identity": {"seed": 0}, "fingerprint": "f", "position": step}


def save(checkpointer: Checkpointer, state, *steps: int) -> None:
    for step in steps:
        checkpointer.save(state, step, {"model": {"name": "toy"}}, data(step))


def opened(folder, **fields):
    return closing(Checkpointer(folder, CheckpointConfig(**fields)))


def test_round_trip_is_bit_equal_though_the_state_is_overwritten_at_once(tmp_path, state):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 2 + 1, state), donate_argnums=0)
    state = jax.tree.map(jnp.copy, state)
    expected = [np.asarray(leaf).copy() for leaf in jax.tree.leaves(state._replace(step=jnp.int32(3)))]
    with opened(tmp_path) as checkpointer:
        save(checkpointer, state, 3)
        for _ in range(3):
            state = overwrite(state)
    with opened(tmp_path) as checkpointer:
        assert checkpointer.newest_step() == 3
        restored = checkpointer.restore(3, SHAPES)
        assert checkpointer.read_records(3) == ({"model": {"name": "toy"}}, data(3))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for found, leaf in zip(jax.tree.leaves(restored), expected, strict=True):
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(found, leaf)


def test_looking_leaves_no_folder(tmp_path):
    with opened(tmp_path / "run") as checkpointer:
        assert checkpointer.newest_step() is None
    assert not (tmp_path / "run").exists()


def test_permanent_ones_and_the_newest_others_are_kept(tmp_path, state):
    config = {"interval": 2, "keep_last": 2, "permanent_interval": 4, "permanent_steps": (5,)}
    assert [step for step in range(1, 11) if CheckpointConfig(**config).saves(step)] == [2, 4, 5, 6, 8, 10]
    with opened(tmp_path, **config) as checkpointer:
        save(checkpointer, state, 2, 4, 5, 6, 8, 9, 10, 11, 12)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "5", "8", "10", "11", "12"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"keep_last": 0}, "keep_last: found 0, expected at least 1"),
        ({"permanent_steps": (3, 0)}, "permanent_steps: found 0, expected at least 1"),
        ({"grace_seconds": 0.0}, "grace_seconds: found 0.0, expected a positive number or null"),
    ],
)
def test_impossible_configuration(fields, expected):
    with pytest.raises(InputError, match=expected):
        CheckpointConfig(**fields)


def test_half_written_checkpoint_is_passed_over_and_removed(tmp_path, state):
    with opened(tmp_path) as checkpointer:
        save(checkpointer, state, 1, 2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    with opened(tmp_path) as checkpointer:
        assert checkpointer.newest_step() == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """The checkpoints 1 and 2 of a run."""
    folder = tmp_path_factory.mktemp("saved")
    with opened(folder) as checkpointer:
        save(checkpointer, state, 1, 2)
    return folder


def accept(config: dict, data: dict, checkpoint: str) -> None:
    assert config == {"model": {"name": "toy"}}
    assert checkpoint.endswith(f"checkpoints/{data['position']}")


def largest(folder):
    return max(folder.rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


def truncate(folder):
    path = largest(folder / "optimizer")
    os.truncate(path, path.stat().st_size // 2)
    return r"optimizer/\S+ has [\d,]+ bytes where [\d,]+ were written"


def delete(folder):
    largest(folder / "model").unlink()
    return r"model/\S+ is missing"


def delete_item(folder):
    shutil.rmtree(folder / "optimizer")
    return "optimizer/_METADATA is missing"


def garble_records(folder):
    path = folder / "data/metadata"
    path.write_bytes(b"x" * path.stat().st_size)
    return "cannot be read: Expecting value"


def empty_records(folder):
    (folder / "files.json").unlink()
    (folder / "config/metadata").write_text("{}")
    return "its config has no model"


def records_of_another_kind(folder):
    (folder / "files.json").unlink()
    (folder / "data/metadata").write_text("[]")
    return "its data has no identity, fingerprint, position"


def garble_list(folder):
    (folder / "files.json").write_text('{"model/d')
    return "files.json is no list of files"


def empty_list(folder):
    (folder / "files.json").write_text("null")
    return "files.json is no list of files"


def list_what_lies_outside(folder):
    size = (folder / "config/metadata").stat().st_size
    (folder / "files.json").write_text(json.dumps({f"../{folder.name}/config/metadata": size}))
    return "files.json: '../.*/config/metadata' lies outside the folder"


def flip_a_bit_of_the_index(folder):
    path = folder / "model/manifest.ocdbt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "cannot be read: DATA_LOSS"


def truncate_without_a_list(folder):
    (folder / "files.json").unlink()
    # All of them: Orbax may have left one behind that nothing is read from.
    for path in (folder / "optimizer").rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)
    return "cannot be read: OUT_OF_RANGE: Error "


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    return "cannot be read: "


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        delete,
        delete_item,
        garble_records,
        empty_records,
        records_of_another_kind,
        garble_list,
        empty_list,
        list_what_lies_outside,
        flip_a_bit_of_the_index,
        truncate_without_a_list,
        empty,
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, saved, state, capsys, damage):
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    reason = damage(folder / "2")
    content = {path.relative_to(folder / "2") for path in (folder / "2").rglob("*")}
    with opened(folder.parent) as checkpointer:
        restored = checkpointer.restore_newest(SHAPES, accept)
        assert (restored.step, restored.data) == (1, data(1))
        for found, leaf in zip(jax.tree.leaves(restored.state), jax.tree.leaves(state), strict=True):
            if leaf.ndim:
                np.testing.assert_array_equal(found, leaf)
        save(checkpointer, state, 2, 3, 4)  # the step can be saved again
        checkpointer.wait()
        assert checkpointer.newest_step() == 4
    out = capsys.readouterr().out
    assert re.fullmatch(
        rf"passed over and renamed to damaged-2: {re.escape(str(folder))}/2: {reason}.*\n", out
    ), out
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4", "damaged-2"]
    aside = folder / "damaged-2"
    assert {path.relative_to(aside) for path in aside.rglob("*")} == content, "nothing of it is lost"


@pytest.mark.parametrize("name", ["model/manifest.ocdbt", "model/ocdbt.process_0/d"])
def test_a_file_that_cannot_be_opened_is_no_damage(tmp_path, saved, name):
    """Permissions would be another reason, but not for root: here the file is a link to itself."""
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    (folder / "2/files.json").unlink()
    path = folder / "2" / name
    path = largest(folder / "2/model") if path.is_dir() else path
    path.unlink()
    path.symlink_to(path.name)
    expected = (
        rf"^{re.escape(str(folder))}/2: cannot be read: .*{path.name}\": Too many levels of symbolic links$"
    )
    with opened(folder.parent) as checkpointer, pytest.raises(OSError, match=expected):
        checkpointer.restore_newest(SHAPES, accept)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_step_damaged_twice_is_kept_twice(tmp_path, saved, state):
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    for _ in range(2):
        delete(folder / "2")
        with opened(folder.parent) as checkpointer:
            assert checkpointer.restore_newest(SHAPES, accept).step == 1
            save(checkpointer, state, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "damaged-2", "damaged-2-2"]


def test_if_none_can_be_read_nothing_starts_over(tmp_path, saved):
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    delete(folder / "1")
    truncate(folder / "2")
    with opened(folder.parent) as checkpointer, pytest.raises(InputError) as caught:
        checkpointer.restore_newest(SHAPES, accept)
    first, *others = str(caught.value).splitlines()
    assert first.startswith(f"{folder}: no checkpoint can be read; mend one, or remove the folder")
    assert [line.split(": ")[0] for line in others] == [f"  {folder}/2", f"  {folder}/1"]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"], "the next run must find them as well"


def test_another_run_is_no_damage(tmp_path, saved):
    folder = shutil.copytree(saved, tmp_path / "run")

    def refuse(config: dict, data: dict, checkpoint: str) -> None:
        raise InputError("another run")

    other = {**SHAPES.opt_state, "history": SHAPES.step}
    with opened(folder) as checkpointer:
        with pytest.raises(InputError, match="another run"):
            checkpointer.restore_newest(SHAPES, refuse)
        with pytest.raises(
            InputError, match=r"checkpoints/2: made with another optimizer: history: found 'int32\[\]', the"
        ):
            checkpointer.restore_newest(SHAPES._replace(opt_state=other), accept)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["1", "2"]


def test_every_file_is_listed_and_the_model_can_be_loaded_elsewhere(tmp_path, state):
    with opened(tmp_path) as checkpointer:
        checkpointer.save(state, 1, {"model": to_mapping(MODEL)}, data(1))
    folder = tmp_path / "checkpoints/1"
    listed = json.loads((folder / "files.json").read_text())
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found - listed.keys() == {"files.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert all((folder / name).stat().st_size == size for name, size in listed.items())
    model = load_orbax(folder)
    for expected, leaf in zip(jax.tree.leaves(state.model), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_too_little_space_is_seen_before_writing(tmp_path, state, monkeypatch):
    with opened(tmp_path) as checkpointer:
        save(checkpointer, state, 1)
        checkpointer.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=10_000))
        expected = (
            r"no space for the checkpoint of step 2: it needs 0\.1 MB, 0\.0 MB are free; the one of step 1 is"
        )
        with pytest.raises(OSError, match=expected):
            save(checkpointer, state, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
