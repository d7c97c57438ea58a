"""The training loop: batches in, checkpoints and metrics out, and a polite end whenever it is asked for."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import jax
from rich.console import Console

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.data.pipeline import data_identity, fingerprint, make_batches
from hybrid_jax.errors import InputError
from hybrid_jax.models import create_model
from hybrid_jax.processes import check_shared, is_primary, meet
from hybrid_jax.training.checkpointing import Checkpointer
from hybrid_jax.training.metrics import MetricsWriter, open_writers
from hybrid_jax.training.optimizer import make_optimizer
from hybrid_jax.training.placement import BatchPlacement, check_placement
from hybrid_jax.training.progress import RunProgress
from hybrid_jax.training.resume import check_same_data, check_same_everywhere, check_same_model
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.schedule import make_schedule
from hybrid_jax.training.state import TrainState, create_state, state_shapes
from hybrid_jax.training.step import Metrics, make_train_step
from hybrid_jax.training.stop import StopRequest
from hybrid_jax.yaml_config import to_yaml

# A perplexity beyond e^10 says nothing; OLMo-core leaves it out as well.
_MAX_CE_LOSS_FOR_PPL = 10.0


def train(config: RunConfig, devices: Sequence[jax.Device] | None = None) -> TrainState:
    """Run ``config`` to its end, continuing from the newest checkpoint in its output folder if there is one.

    SIGINT (Ctrl-C) and SIGTERM end the run after the current step with a checkpoint. However a run ends, kill -9
    included, calling this again with the same configuration gives bit for bit the parameters of a run that was
    never stopped, on the same machine.

    With several processes (``hybrid_jax.processes.joined``) all of them call this with the same configuration and a
    folder they share. Any number of them continues what any other number has saved.

    Args:
        config: the run.
        devices: what ``config.mesh`` is laid over, by default all there are.

    Returns:
        The state after ``config.num_steps`` updates.

    Raises:
        InputError: contradictory configuration, bad data, a checkpoint of another model or other data, a loss that
            is not finite.
        OSError: a file cannot be written (a full disk); complete checkpoints are untouched.
        KeyboardInterrupt: after stopping for SIGINT.
        SystemExit: after stopping for SIGTERM.
    """
    mesh = config.mesh.make(devices)
    check_placement(config, mesh)
    placement = BatchPlacement(mesh, config.batch_size, config.data.sequence_length)
    schedule = make_schedule(config.schedule, config.num_steps)
    shapes = jax.eval_shape(partial(create_model, config.model))
    optimizer = make_optimizer(config.optimizer, schedule, shapes)
    data = (config.data, config.model.vocab_size, config.model.eos_token_ids[0], config.batch_size)
    data_record = {"fingerprint": fingerprint(*data), "identity": data_identity(*data)}

    with ExitStack() as stack:
        checkpointer = stack.enter_context(Checkpointer(config.output_folder, config.checkpoint))
        first_step = checkpointer.newest_step() or 0
        resolved = config.recorded()
        check_same_everywhere(
            {
                "jax version": jax.__version__,
                **resolved,
                "corpus": data_record["identity"],
                "newest checkpoint": first_step,
            }
        )
        position = _position(config, data_record, checkpointer, first_step) if first_step else 0
        batches = stack.enter_context(closing(make_batches(*data, position, placement.rows)))
        make = (config.model, optimizer, config.init_seed, mesh)
        state = checkpointer.restore(first_step, state_shapes(*make)) if first_step else create_state(*make)

        writers: list[MetricsWriter] = []
        if is_primary():
            with write_then_rename(config.output_folder / "config.yaml") as temporary:
                temporary.write_text(to_yaml(resolved), encoding="utf-8")
            writers = stack.enter_context(
                open_writers(config.logging, config.output_folder, first_step, resolved)
            )
        check_shared(config.output_folder / "config.yaml")
        console = Console(quiet=not is_primary())
        progress = stack.enter_context(RunProgress(config.num_steps, first_step, console))
        stop = stack.enter_context(StopRequest())
        progress.say(_describe(config, state, first_step))

        train_step = make_train_step(optimizer, schedule, config.num_microbatches, config.z_loss_weight, mesh)
        meter = _Meter(config, mesh.size, writers, progress, first_step)
        stopping = False
        for step in range(first_step + 1, config.num_steps + 1):
            with meter.loading():
                batch = placement.place(next(batches))
            state, metrics = train_step(state, batch)
            meter.add(step, metrics)
            stopping = stop.reached(step)
            saving = stopping or step == config.num_steps or step % config.checkpoint.interval == 0
            if saving or step % config.logging.interval == 0:
                meter.report()
                checkpointer.check()
            if saving:
                position_after = position + step - first_step
                checkpointer.save(state, step, resolved, {"position": position_after, **data_record})
            if stopping:
                checkpointer.wait()
                progress.say(
                    f"stopped after step {step}, which is saved: the same command continues from there"
                )
                break
    if stopping:
        meet()
        stop.end_process()
    return state


class _Meter:
    """Collects the metrics of steps that run on the device, and now and then fetches, writes and shows them."""

    def __init__(
        self,
        config: RunConfig,
        num_devices: int,
        writers: list[MetricsWriter],
        progress: RunProgress,
        first_step: int,
    ) -> None:
        self._num_devices = num_devices
        self._tokens_per_step = config.batch_size * config.data.sequence_length
        self._writers = writers
        self._progress = progress
        self._pending: list[tuple[int, Metrics]] = []
        self._previous: Metrics | None = None
        self._loading_seconds = 0.0
        # Compilation falls into the first step: clocks start behind it.
        self._start_step = first_step + 1
        self._start_time = 0.0
        self._last_step = self._start_step
        self._last_time = 0.0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._loading_seconds += time.perf_counter() - start

    def add(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of ``step``, which may not have been computed yet."""
        self._pending.append((step, metrics))
        # One step may wait on the device while another runs; more would only delay Ctrl-C and hold batches.
        jax.block_until_ready(metrics if self._previous is None else self._previous)
        if self._previous is None:
            self._start_time = self._last_time = time.perf_counter()
            self._loading_seconds = 0.0
        self._previous = metrics
        self._progress.advance(step)

    def report(self) -> None:
        """Fetch, check, write and show what was taken since the last call.

        Raises:
            InputError: a loss that is not finite.
        """
        values = jax.device_get([metrics for _, metrics in self._pending])
        steps = [step for step, _ in self._pending]
        self._pending.clear()
        for step, metrics in zip(steps, values, strict=True):
            figures = {name: float(value) for name, value in metrics.items()}
            loss = figures["train/CE loss"]
            if not math.isfinite(loss):
                raise InputError(
                    f"step {step}: found loss {loss}, expected a finite number. Training has diverged: lower "
                    "schedule.learning_rate, or look at this step's batch. Nothing of it was saved"
                )
            if loss < _MAX_CE_LOSS_FOR_PPL:
                figures["train/PPL"] = math.exp(loss)
            figures["throughput/total tokens"] = float(step * self._tokens_per_step)
            if step == steps[-1]:
                figures |= self._throughput(step)
            for writer in self._writers:
                writer.write(step, figures)
        for writer in self._writers:
            writer.flush()
        device_tokens_per_second = figures.get("throughput/device/TPS")
        if device_tokens_per_second:
            tokens_per_second = device_tokens_per_second * self._num_devices
            self._progress.report(step, loss, tokens_per_second, self._tokens_per_step / tokens_per_second)

    def _throughput(self, step: int) -> dict[str, float]:
        """Rates since the last call; none before a second step has been timed."""
        now = time.perf_counter()
        num_steps, seconds = step - self._last_step, now - self._last_time
        if not num_steps:
            return {}
        loading, self._loading_seconds = self._loading_seconds / num_steps, 0.0
        self._last_step, self._last_time = step, now
        average = (step - self._start_step) / (now - self._start_time)
        device_tokens = self._tokens_per_step / self._num_devices
        return {
            "throughput/device/TPS": device_tokens * num_steps / seconds,
            "throughput/device/TPS (actual avg)": device_tokens * average,
            "throughput/device/BPS": num_steps / seconds,
            "throughput/device/BPS (actual avg)": average,
            "throughput/device/data loading (s)": loading,
            "throughput/device/data loading (%)": 100 * loading * num_steps / seconds,
        }


def _position(config: RunConfig, data_record: dict[str, Any], checkpointer: Checkpointer, step: int) -> int:
    """The data step at which checkpoint ``step`` continues, after checking that it belongs to this run."""
    checkpoint = str(checkpointer.path(step))
    saved_config, saved_data = checkpointer.read_records(step)
    check_same_model(config.model, saved_config["model"], checkpoint)
    if saved_data["fingerprint"] != data_record["fingerprint"]:
        check_same_data(data_record["identity"], saved_data["identity"], checkpoint)
    return saved_data["position"]


def _describe(config: RunConfig, state: TrainState, first_step: int) -> str:
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.model))
    tokens = config.batch_size * config.data.sequence_length
    begin = f"continuing after step {first_step}" if first_step else "starting"
    if first_step >= config.num_steps:
        begin = f"already complete at step {first_step}"
    return f"{begin}: {num_parameters:,} parameters, {config.num_steps} steps of {tokens:,} tokens"
