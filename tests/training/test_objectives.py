"""DPO against its formula written plainly from all logits, on one device and on meshes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hybrid_jax.models import CausalLM, create_model
from hybrid_jax.models.paths import named_parameters
from hybrid_jax.sharding import make_mesh
from hybrid_jax.training.objectives import DirectPreference
from hybrid_jax.training.placement import BatchPlacement
from hybrid_jax.training.state import TrainState, state_shardings
from hybrid_jax.training.step import make_train_step
from tests.training.toy import LENGTH, toy_batch, toy_model

BETA = 5.0
# Its state is the last gradient.
REMEMBER = optax.trace(decay=0.0)


def preference_batch() -> dict[str, np.ndarray]:
    batch = toy_batch(batch_size=8)
    batch["labels"][3] = -100  # an answer that was cut off whole
    reference = np.random.default_rng(1).normal(-4, 0.05, 8).astype(np.float32)
    return {**batch, "reference": reference}


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return create_model(toy_model(initializer_range=0.2, num_key_value_heads=2, linear_num_key_heads=2))


def plain_loss(model: CausalLM, batch: dict[str, np.ndarray]):
    """The loss, and each row's reward."""
    log_probs = jax.nn.log_softmax(model(batch["input_ids"], batch["segment_ids"]).logits)
    labels = batch["labels"]
    picked = jnp.take_along_axis(log_probs, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    means = jnp.array(
        [
            jnp.mean(row[valid]) if valid.any() else 0.0
            for row, valid in zip(picked, labels != -100, strict=True)
        ]
    )
    rewards = BETA * (means - batch["reference"])
    return -jnp.mean(jnp.log(jax.nn.sigmoid(rewards[::2] - rewards[1::2]))), rewards


@pytest.fixture(scope="module")
def expected(model):
    value = partial(plain_loss, batch=preference_batch())
    (loss, rewards), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(model)
    return float(loss), np.asarray(rewards), named_parameters(gradients)


@pytest.mark.parametrize(
    ("sizes", "num_microbatches"),
    [
        ({}, 1),
        pytest.param({}, 2, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 2, "context": 2}, 1, marks=pytest.mark.slow),
        ({"fsdp": 2, "tensor": 2}, 2),
    ],
    ids=str,
)
def test_loss_rewards_and_gradients(model, expected, sizes, num_microbatches):
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values()) or [1]))])
    state = TrainState(step=jnp.int32(0), model=model, opt_state=jax.jit(REMEMBER.init)(model))
    state = jax.jit(partial(jax.tree.map, jnp.copy), out_shardings=state_shardings(state, REMEMBER, mesh))(
        state
    )
    step = make_train_step(
        REMEMBER, lambda count: jnp.float32(0), DirectPreference(BETA), num_microbatches, mesh
    )
    batch = BatchPlacement(mesh, 8, LENGTH).place(preference_batch())
    state, metrics = step(state, batch)
    loss, rewards, gradients = expected
    chosen, rejected = rewards[::2], rewards[1::2]
    figures = {
        "train/DPO loss": loss,
        "rewards/accuracy": np.mean(chosen > rejected),
        "rewards/chosen": np.mean(chosen),
        "rewards/rejected": np.mean(rejected),
        "rewards/margin": np.mean(chosen - rejected),
    }
    assert {name: float(metrics[name]) for name in figures} == pytest.approx(figures, rel=2e-5)
    for name, found in named_parameters(state.opt_state.trace).items():
        scale = np.max(np.abs(gradients[name]))
        np.testing.assert_allclose(found / scale, gradients[name] / scale, atol=2e-5, err_msg=name)
