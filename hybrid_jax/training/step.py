"""One optimizer step as one compiled function: microbatches, gradients, update and metrics, all on the device."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32, Int32

from hybrid_jax.models import CausalLM
from hybrid_jax.training.loss import IGNORED_LABEL, LossSums, fused_cross_entropy
from hybrid_jax.training.schedule import Schedule
from hybrid_jax.training.state import TrainState

Batch = dict[str, Int32[Array, "B T"]]
Metrics = dict[str, Float32[Array, ""]]
TrainStep = Callable[[TrainState, Mapping[str, Array | np.ndarray]], tuple[TrainState, Metrics]]


def make_train_step(
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    num_microbatches: int = 1,
    z_loss_weight: float = 0.0,
) -> TrainStep:
    """The compiled step ``(state, batch) -> (state, metrics)``; it takes over the state's memory.

    The loss is the mean over all targets of the whole batch, whichever rows and microbatches they lie in. Metrics
    are float32 scalars under OLMo-core's names and stay on the device: nothing here waits for them.

    Args:
        optimizer: from ``make_optimizer``.
        schedule: only to report the learning rate.
        num_microbatches: how many parts the rows of a batch are split into; must divide them.
        z_loss_weight: see ``fused_cross_entropy``.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        num_labels = batch["labels"].size
        num_targets = jnp.sum(batch["labels"] != IGNORED_LABEL, dtype=jnp.int32)
        scale = 1 / jnp.maximum(num_targets, 1).astype(jnp.float32)

        def loss(model: CausalLM, microbatch: Batch) -> tuple[Float32[Array, ""], LossSums]:
            hidden = model.hidden_states(microbatch["input_ids"], microbatch["segment_ids"])
            sums = fused_cross_entropy(hidden, model.output_kernel(), microbatch["labels"], z_loss_weight)
            return scale * sums.total, sums

        gradients, sums = _accumulate(jax.grad(loss, has_aux=True), state.model, batch, num_microbatches)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.model)
        metrics = {
            "train/CE loss": scale * sums.cross_entropy,
            "train/Z loss": scale * sums.z_loss * z_loss_weight,
            "train/Z loss unscaled": scale * sums.z_loss,
            "train/masked labels (%)": 1 - num_targets / num_labels,
            "optim/total grad norm": optax.tree.norm(gradients),
            "optim/LR (group 0)": schedule(state.step),
        }
        model = optax.apply_updates(state.model, updates)
        return TrainState(step=state.step + 1, model=model, opt_state=opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)


def _accumulate(
    gradient: Callable[[CausalLM, Batch], tuple[CausalLM, LossSums]],
    model: CausalLM,
    batch: Batch,
    num_microbatches: int,
) -> tuple[CausalLM, LossSums]:
    """Gradients and sums added up over microbatches, in float32."""
    if num_microbatches == 1:
        return gradient(model, batch)

    # Every m-th row, not m blocks of rows: rows then stay on the device they are on.
    microbatches = jax.tree.map(
        lambda rows: jnp.moveaxis(rows.reshape(-1, num_microbatches, rows.shape[1]), 1, 0), batch
    )

    def add(carry: tuple[CausalLM, LossSums], microbatch: Batch) -> tuple[tuple[CausalLM, LossSums], None]:
        return jax.tree.map(jnp.add, carry, gradient(model, microbatch)), None

    shapes = jax.eval_shape(gradient, model, jax.tree.map(lambda rows: rows[0], microbatches))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, microbatches)[0]
