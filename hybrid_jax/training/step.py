"""One optimizer step as one compiled function: microbatches, gradients, update and metrics, all on the devices."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float32, Int32

from hybrid_jax.models import CausalLM
from hybrid_jax.sharding import batch_sharding, single_device_mesh
from hybrid_jax.sharding.manual import sum_over
from hybrid_jax.sharding.mesh import BATCH_AXES
from hybrid_jax.training.loss import IGNORED_LABEL, LossSums, fused_cross_entropy
from hybrid_jax.training.schedule import Schedule
from hybrid_jax.training.state import TrainState, state_shardings

Batch = dict[str, Int32[Array, "B T"]]
Metrics = dict[str, Float32[Array, ""]]


@runtime_checkable
class TrainStep(Protocol):
    """A compiled step; ``lower`` takes shapes instead of arrays, as that of every jitted function."""

    def __call__(
        self, state: TrainState, batch: Mapping[str, Array | np.ndarray], /
    ) -> tuple[TrainState, Metrics]: ...

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered: ...


def make_train_step(
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    num_microbatches: int = 1,
    z_loss_weight: float = 0.0,
    mesh: Mesh | None = None,
) -> TrainStep:
    """The compiled step ``(state, batch) -> (state, metrics)``; it takes over the state's memory.

    The loss is the mean over all targets of the whole batch, whichever devices, rows and microbatches they lie in.
    Metrics are float32 scalars under OLMo-core's names and stay on the device: nothing here waits for them.

    Args:
        optimizer: from ``make_optimizer``.
        schedule: only to report the learning rate.
        num_microbatches: how many parts the rows of a batch are split into; must divide each device's.
        z_loss_weight: see ``fused_cross_entropy``.
        mesh: the devices, default the first alone; states and batches lie on it as ``state_shardings`` and
            ``batch_sharding`` say.
    """
    mesh = single_device_mesh() if mesh is None else mesh

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        shardings = state_shardings(state, optimizer, mesh)
        specs = jax.tree.map(lambda sharding: sharding.spec, shardings.model)
        gradient = partial(_gradient, num_microbatches=num_microbatches, z_loss_weight=z_loss_weight)
        gradients, sums = jax.shard_map(
            gradient,
            mesh=mesh,
            in_specs=(specs, batch_sharding(mesh).spec),
            out_specs=(specs, PartitionSpec()),
        )(state.model, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.model)
        scale = _one_over(sums.num_targets)
        metrics = {
            "train/CE loss": scale * sums.cross_entropy,
            "train/Z loss": scale * sums.z_loss * z_loss_weight,
            "train/Z loss unscaled": scale * sums.z_loss,
            "train/masked labels (%)": 1 - sums.num_targets / batch["labels"].size,
            "optim/total grad norm": optax.tree.norm(gradients),
            "optim/LR (group 0)": schedule(state.step),
        }
        model = optax.apply_updates(state.model, updates)
        new = TrainState(step=state.step + 1, model=model, opt_state=opt_state)
        return jax.lax.with_sharding_constraint(new, shardings), metrics

    return jax.jit(train_step, donate_argnums=0)


def saved_activations(
    state: TrainState, batch: dict[str, jax.ShapeDtypeStruct], mesh: Mesh, num_microbatches: int = 1
) -> list[jax.ShapeDtypeStruct]:
    """Shapes of what one device keeps from the forward to the backward pass of a microbatch, parameters left out.

    Args:
        state: shapes, from ``state_shapes``.
        batch: shapes of a global batch.
        mesh: the devices.
        num_microbatches: as for ``make_train_step``.
    """
    saved: list[jax.ShapeDtypeStruct] = []

    def trace(model: CausalLM, batch: Batch) -> Float32[Array, ""]:
        microbatch = jax.tree.map(lambda rows: rows[: rows.shape[0] // num_microbatches], batch)
        loss = partial(_loss, scale=jnp.float32(1), z_loss_weight=0.0)
        _, pullback, _ = jax.vjp(lambda model: loss(model, microbatch), model, has_aux=True)
        given = {id(leaf) for leaf in jax.tree.leaves((model, microbatch))}
        saved.extend(
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for leaf in jax.tree.leaves(pullback)
            if id(leaf) not in given
        )
        return jnp.float32(0)

    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state.model)
    place = batch_sharding(mesh).spec
    traced = jax.shard_map(trace, mesh=mesh, in_specs=(specs, place), out_specs=PartitionSpec())
    jax.eval_shape(traced, state.model, batch)
    return saved


def _gradient(
    model: CausalLM, batch: Batch, num_microbatches: int, z_loss_weight: float
) -> tuple[CausalLM, LossSums]:
    """Gradients of the mean loss and sums over the whole batch, from this device's part of the model and the batch."""
    scale = _one_over(sum_over(jnp.sum(batch["labels"] != IGNORED_LABEL, dtype=jnp.int32), *BATCH_AXES))
    loss = partial(_loss, scale=scale, z_loss_weight=z_loss_weight)
    return _accumulate(jax.grad(loss, has_aux=True), model, batch, num_microbatches)


def _loss(
    model: CausalLM, microbatch: Batch, scale: Float32[Array, ""], z_loss_weight: float
) -> tuple[Float32[Array, ""], LossSums]:
    """``scale`` times the loss summed over all devices, and the sums themselves."""
    model = model.gathered_ends()
    hidden = model.hidden_states(microbatch["input_ids"], microbatch["segment_ids"])
    own = fused_cross_entropy(hidden, model.output_kernel(), microbatch["labels"], z_loss_weight)
    sums = LossSums(*sum_over(tuple(own), *BATCH_AXES))
    return scale * sums.total, sums


def _one_over(num_targets: Int32[Array, ""]) -> Float32[Array, ""]:
    return 1 / jnp.maximum(num_targets, 1).astype(jnp.float32)


def _accumulate(
    gradient: Callable[[CausalLM, Batch], tuple[CausalLM, LossSums]],
    model: CausalLM,
    batch: Batch,
    num_microbatches: int,
) -> tuple[CausalLM, LossSums]:
    """Gradients and sums added up over microbatches, in float32."""
    if num_microbatches == 1:
        return gradient(model, batch)

    microbatches = jax.tree.map(lambda rows: rows.reshape(num_microbatches, -1, rows.shape[1]), batch)

    def add(carry: tuple[CausalLM, LossSums], microbatch: Batch) -> tuple[tuple[CausalLM, LossSums], None]:
        return jax.tree.map(jnp.add, carry, gradient(model, microbatch)), None

    zero = jnp.float32(0)
    nothing = LossSums(zero, zero, zero, jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=jnp.float32), model)
    return jax.lax.scan(add, (zeros, nothing), microbatches)[0]
