"""Muon: which parameters get it, that it treats each layer's matrix alone, and that a mesh changes nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.models import create_model
from hybrid_jax.models.paths import named_parameters
from hybrid_jax.sharding import make_mesh, single_device_mesh
from hybrid_jax.training.optimizer import OptimizerConfig, make_optimizer
from hybrid_jax.training.skip_step import SkipStepConfig
from hybrid_jax.training.state import TrainState, state_shardings

MODELS = {
    "hybrid": ModelConfig.preset("tiny", num_key_value_heads=4),
    "olmo3": ModelConfig.preset("tiny_olmo3", num_key_value_heads=4),
    "tied": ModelConfig.preset("tiny", num_key_value_heads=4, tie_word_embeddings=True),
}
# What is a matrix of a layer in Hugging Face's model.
MATRICES = ("q", "k", "v", "o", "a", "b", "g", "gate", "up", "down")


def schedule(count):
    return jnp.float32(1.0)


def random_like(shapes, seed: int):
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(shapes))))
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), shapes)


def first_updates(config: ModelConfig, kind: str, sizes=None, **fields):
    shapes = jax.eval_shape(partial(create_model, config))
    model, grads = random_like(shapes, 0), random_like(shapes, 1)
    fields = {"weight_decay": 0.0, "groups": (), "max_grad_norm": None, **fields}
    optimizer = make_optimizer(OptimizerConfig(kind=kind, **fields), schedule, shapes)
    mesh = make_mesh(sizes, jax.devices()[:4]) if sizes else single_device_mesh()
    state = TrainState(step=jnp.int32(0), model=model, opt_state=jax.eval_shape(optimizer.init, model))
    shardings = state_shardings(state, optimizer, mesh)
    model, grads = (jax.device_put(each, shardings.model) for each in (model, grads))
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(model)
    extra = {"loss": jnp.float32(1)} if "skip_step" in fields else {}
    updates, _ = jax.jit(optimizer.update)(grads, opt_state, model, **extra)
    return named_parameters(updates)


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_of_every_layer_is_orthogonalised_and_nothing_else(name):
    muon, adam = (first_updates(MODELS[name], kind) for kind in ("muon", "adamw"))
    for path, update in muon.items():
        parts = path.split(".")
        if parts[-2].removesuffix("_proj") in MATRICES and parts[0] == "groups":
            for matrix in np.asarray(update, np.float64):
                # Newton-Schulz brings all but very small singular values near 1.
                values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(max(matrix.shape)))
                assert np.quantile(values, 0.1) > 0.65, path
                assert values.max() < 1.25, path
        else:
            np.testing.assert_array_equal(update, adam[path], err_msg=path)
            assert "_proj" not in path


@pytest.mark.slow
def test_a_mesh_changes_nothing():
    fields = {"skip_step": SkipStepConfig(), "weight_decay": 0.1}
    expected = first_updates(MODELS["hybrid"], "muon", **fields)
    found = first_updates(MODELS["hybrid"], "muon", {"fsdp": 2, "tensor": 2}, **fields)
    for path, update in found.items():
        np.testing.assert_allclose(
            update, expected[path], atol=1e-4 * np.abs(expected[path]).max(), err_msg=path
        )
