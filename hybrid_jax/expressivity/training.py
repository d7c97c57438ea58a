"""One run: a small model learns one task on programs that no one has seen, and is tested at every length.

Small models spend most of their time between steps: here a hundred steps are one dispatch, and all runs of an
architecture share its compiled programs, whatever their learning rate.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float32, Int32

from hybrid_jax.config import ModelConfig
from hybrid_jax.expressivity.architectures import model_config
from hybrid_jax.expressivity.config import SweepConfig
from hybrid_jax.expressivity.curriculum import Curriculum
from hybrid_jax.expressivity.results import Check, Result, Run
from hybrid_jax.expressivity.tasks import TASKS, Task, make_task
from hybrid_jax.expressivity.vocabulary import TokenRows, Vocabulary
from hybrid_jax.models import CausalLM
from hybrid_jax.training.loss import IGNORED_LABEL, fused_cross_entropy
from hybrid_jax.training.optimizer import OptimizerConfig, make_optimizer
from hybrid_jax.training.schedule import make_schedule
from hybrid_jax.training.state import TrainState


def train(sweep: SweepConfig, run: Run) -> Result:
    """Train and test one model."""
    began = time.perf_counter()
    config = sweep.tasks[run.task]
    task = make_task(run.task, config.max_length)
    vocabulary = Vocabulary(task.pieces, sweep.vocabulary)
    rng = np.random.default_rng([run.seed, list(TASKS).index(run.task)])

    schedule = make_schedule(sweep.schedule(run.learning_rate, run.decay), config.max_steps)
    rates = jax.vmap(schedule)(jnp.arange(config.max_steps))
    model = model_config(run.architecture, sweep.model, len(vocabulary.tokens))
    state = _start(model, sweep.optimizer, jax.random.key(run.seed))

    curve: list[Check] = []
    curriculum = Curriculum(config.stages, config.advance_at)
    while (length := curriculum.length) is not None:
        num_rows = sweep.check_interval * sweep.batch_size
        intervals = task.draw_intervals(rng, num_rows, length, config.num_asserts)
        num_tokens = sweep.num_tokens(task, length)
        rows = vocabulary.encode(task.generate(rng, length, intervals), num_tokens)
        batches = rows.ids.reshape(sweep.check_interval, sweep.batch_size, num_tokens)
        state, loss = _train_steps(sweep.optimizer, state, rates, batches)
        tested = _test_rows(sweep, task, vocabulary, rng, length, num_tokens)
        accuracy = float(_accuracy(state.model, *tested))
        curve.append(Check(int(state.step), length, round(float(loss), 5), accuracy))
        curriculum.advance(sweep.check_interval, accuracy)

    # One width for all lengths, so that testing compiles once; what is after a program changes nothing.
    width = max(sweep.num_tokens(task, length) for length in config.lengths)
    accuracies = {
        length: float(_accuracy(state.model, *_test_rows(sweep, task, vocabulary, rng, length, width)))
        for length in config.lengths
    }
    return Result(
        run=run,
        accuracy=accuracies,
        num_steps=int(state.step),
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.model)),
        seconds=round(time.perf_counter() - began, 1),
        curve=tuple(curve),
    )


def _test_rows(
    sweep: SweepConfig,
    task: Task,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    length: int,
    num_tokens: int,
) -> TokenRows:
    """Fresh programs with one answer, the last: nothing on the way tells a part of the state."""
    only_last = np.zeros(sweep.num_samples, np.int64)
    return vocabulary.encode(task.generate(rng, length, only_last), num_tokens)


@partial(jax.jit, static_argnums=(0, 1))
def _start(config: ModelConfig, optimizer: OptimizerConfig, key: Array) -> TrainState:
    """A fresh model; unlike ``create_state`` compiled once for all seeds."""
    model = CausalLM(config, rngs=nnx.Rngs(key))
    opt_state = make_optimizer(optimizer, lambda count: jnp.float32(0), model).init(model)
    return TrainState(step=jnp.int32(0), model=model, opt_state=opt_state)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _train_steps(
    optimizer: OptimizerConfig,
    state: TrainState,
    rates: Float32[Array, " steps"],
    batches: Int32[Array, "S B T"],
) -> tuple[TrainState, Float32[Array, ""]]:
    """A step on each of ``batches``, and the mean loss; ``rates`` are those of the whole run."""
    update = optax.with_extra_args_support(
        make_optimizer(optimizer, lambda count: rates[count], state.model)
    ).update

    def step(state: TrainState, ids: Int32[Array, "B T"]) -> tuple[TrainState, Float32[Array, ""]]:
        loss, gradients = jax.value_and_grad(_loss)(state.model, ids)
        updates, opt_state = update(gradients, state.opt_state, state.model, loss=loss)
        model = optax.apply_updates(state.model, updates)
        return TrainState(step=state.step + 1, model=model, opt_state=opt_state), loss

    state, losses = jax.lax.scan(step, state, batches)
    return state, jnp.mean(losses)


def _loss(model: CausalLM, ids: Int32[Array, "B T"]) -> Float32[Array, ""]:
    """Mean cross-entropy of every token of the programs but the first, in nats."""
    labels = jnp.where(ids[:, 1:] == 0, IGNORED_LABEL, ids[:, 1:])
    hidden = model.hidden_states(ids[:, :-1])
    # All in one chunk: with so few tokens to choose from logits are small.
    sums = fused_cross_entropy(hidden, model.output_kernel(), labels, chunk_tokens=ids.size)
    return sums.total / sums.num_targets


@jax.jit
def _accuracy(model: CausalLM, ids: Int32[Array, "B T"], is_answer: Bool[Array, "B T"]) -> Float32[Array, ""]:
    """The share of answers that are the likeliest of all tokens."""
    best = jnp.argmax(model.logits(model.hidden_states(ids[:, :-1])), axis=-1)
    right = (best == ids[:, 1:]) & is_answer[:, 1:]
    return jnp.sum(right) / jnp.sum(is_answer[:, 1:])
