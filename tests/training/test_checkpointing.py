"""Checkpoints: bit-equal, complete or absent, kept as asked, and loud when they cannot be written or read."""

import shutil
import types
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.models import create_model
from hybrid_jax.sharding import single_device_mesh
from hybrid_jax.training.checkpointing import Checkpointer
from hybrid_jax.training.optimizer import OptimizerConfig, make_optimizer
from hybrid_jax.training.run_config import CheckpointConfig
from hybrid_jax.training.state import state_shapes
from tests.training.toy import toy_model

MODEL = toy_model()
OPTIMIZER = make_optimizer(OptimizerConfig(), lambda count: 0.1, jax.eval_shape(partial(create_model, MODEL)))
SHAPES = state_shapes(MODEL, OPTIMIZER, 0, single_device_mesh())


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), SHAPES)


def save(checkpointer: Checkpointer, state, *steps: int) -> None:
    for step in steps:
        checkpointer.save(state, step, {"name": "run"}, {"position": step})


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
        assert checkpointer.read_records(3) == ({"name": "run"}, {"position": 3})
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for found, leaf in zip(jax.tree.leaves(restored), expected, strict=True):
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(found, leaf)


def test_looking_leaves_no_folder(tmp_path):
    with opened(tmp_path / "run") as checkpointer:
        assert checkpointer.newest_step() is None
    assert not (tmp_path / "run").exists()


def test_newest_and_every_nth_are_kept(tmp_path, state):
    with opened(tmp_path, keep_last=2, keep_interval=4) as checkpointer:
        save(checkpointer, state, 2, 4, 6, 8, 10, 11, 13)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "8", "11", "13"}


def test_half_written_checkpoint_is_passed_over_and_removed(tmp_path, state):
    with opened(tmp_path) as checkpointer:
        save(checkpointer, state, 1, 2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    with opened(tmp_path) as checkpointer:
        assert checkpointer.newest_step() == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_damaged_checkpoint_is_named(tmp_path, state):
    with opened(tmp_path) as checkpointer:
        save(checkpointer, state, 1)
    for path in (tmp_path / "checkpoints/1/model").rglob("d/*"):
        path.unlink()
    with opened(tmp_path) as checkpointer, pytest.raises(InputError, match=r"checkpoints/1: cannot be read"):
        checkpointer.restore(1, SHAPES)


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
