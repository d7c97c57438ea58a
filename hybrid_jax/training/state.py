"""What training changes: the step, the model and the optimizer's state, as one pytree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from hybrid_jax.config import ModelConfig
from hybrid_jax.models import CausalLM, create_model


class TrainState(NamedTuple):
    """Everything one training step reads and writes.

    Attributes:
        step: number of updates done.
        model: float32 parameters.
        opt_state: optax's state.
    """

    step: Int32[Array, ""]
    model: CausalLM
    opt_state: optax.OptState


def create_state(config: ModelConfig, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh model and optimizer at step 0."""
    model = create_model(config, seed)
    return TrainState(step=jnp.int32(0), model=model, opt_state=jax.jit(optimizer.init)(model))
