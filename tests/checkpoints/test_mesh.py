"""Loading straight onto eight devices."""

import jax
import numpy as np
import pytest

from hybrid_jax.checkpoints import from_pretrained, load_orbax, save_orbax, save_pretrained
from hybrid_jax.errors import InputError
from hybrid_jax.sharding import make_mesh
from tests.checkpoints.folders import same, tensors_of, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Values small enough that logits stay reasonable."""
    folder = write_folder(tmp_path_factory.mktemp("model"))
    tensors = {name: tensor * np.float32(0.1) for name, tensor in tensors_of(folder).items()}
    return write_folder(folder, tensors=tensors)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


def bytes_per_device(model):
    total = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(model):
        for shard in leaf.addressable_shards:
            total[shard.device] += shard.data.nbytes
    return set(total.values())


@pytest.fixture(scope="module")
def spread(folder, mesh):
    return from_pretrained(folder, mesh=mesh)


def test_every_device_holds_its_part(folder, spread):
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(from_pretrained(folder)))
    (each,) = bytes_per_device(spread)
    # Matrices lie in four parts, twice; norms and the convolutions' taps are small.
    assert whole / 4 < each < whole / 4 * 1.05


def test_values_and_logits_are_the_same(folder, spread):
    alone = from_pretrained(folder)
    assert same(spread, alone)
    input_ids = np.random.default_rng(0).integers(0, 256, (2, 20), dtype=np.int32)
    np.testing.assert_allclose(spread(input_ids).logits, alone(input_ids).logits, atol=1e-5)


def test_a_spread_model_is_saved_as_any_other(folder, spread, tmp_path):
    save_pretrained(spread, tmp_path / "again")
    before, after = tensors_of(folder), tensors_of(tmp_path / "again")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_orbax_restores_to_any_mesh(folder, spread, tmp_path):
    save_orbax(spread, tmp_path / "orbax")
    assert same(load_orbax(tmp_path / "orbax"), spread)
    other = load_orbax(tmp_path / "orbax", mesh=make_mesh({"fsdp": 4, "tensor": 2}))
    assert same(other, spread)
    assert max(bytes_per_device(other)) < max(bytes_per_device(spread))


def test_a_mesh_that_does_not_divide(folder):
    with pytest.raises(InputError, match=r"linear_attn.*does not divide by 8 \(tensor\)"):
        from_pretrained(folder, mesh=make_mesh({"tensor": 8}))
