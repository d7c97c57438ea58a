"""RunConfig: everything that decides a training run, one frozen object per YAML file."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_jax.config import ModelConfig
from hybrid_jax.data.config import DataConfig, PreferenceConfig
from hybrid_jax.errors import InputError
from hybrid_jax.processes import DistributedConfig
from hybrid_jax.sharding import MeshConfig
from hybrid_jax.training.objectives import DirectPreference, LanguageModeling, Objective
from hybrid_jax.training.optimizer import OptimizerConfig
from hybrid_jax.training.schedule import ScheduleConfig
from hybrid_jax.training.start import StartConfig
from hybrid_jax.yaml_config import to_mapping


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which stay. One is always written at the end and when a run is stopped.

    Attributes:
        interval: steps from one checkpoint to the next.
        keep_last: how many of the newest stay, besides permanent ones.
        permanent_interval: steps divisible by this are saved, whatever ``interval`` is, and stay; null has none.
        permanent_steps: further steps that are saved and stay.
        grace_seconds: how long after a SIGTERM the run may take to save and end; then it ends with what it had saved
            before. null waits as long as it takes.

    Raises:
        InputError: a field is out of its range.
    """

    interval: int = 1000
    keep_last: int = 2
    permanent_interval: int | None = None
    permanent_steps: tuple[int, ...] = ()
    grace_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("interval", self.interval),
            ("keep_last", self.keep_last),
            ("permanent_interval", self.permanent_interval),
            ("permanent_steps", min(self.permanent_steps, default=None)),
        ):
            if value is not None and value < 1:
                raise InputError(f"{name}: found {value}, expected at least 1")
        if self.grace_seconds is not None and not 0 < self.grace_seconds < float("inf"):
            raise InputError(f"grace_seconds: found {self.grace_seconds}, expected a positive number or null")

    def keeps(self, step: int) -> bool:
        """Whether the checkpoint of ``step`` is permanent."""
        periodic = self.permanent_interval is not None and step % self.permanent_interval == 0
        return periodic or step in self.permanent_steps

    def saves(self, step: int) -> bool:
        """Whether ``step`` is saved, be it the last or not."""
        return self.keeps(step) or step % self.interval == 0


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where metrics go besides ``metrics.jsonl``, which holds every step that is not passed over.

    Attributes:
        interval: steps from one look at the metrics to the next: the only times the host waits for them.
        tensorboard: also write TensorBoard files (needs the ``tensorboard`` extra).
        wandb_project: also send them to this project of Weights & Biases (needs the ``wandb`` extra).

    Raises:
        InputError: a field is out of its range.
    """

    interval: int = 10
    tensorboard: bool = False
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise InputError(f"interval: found {self.interval}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """Direct preference optimisation with length-normalised log-probabilities, as OLMo Hybrid was tuned.

    Attributes:
        beta: how strongly rewards count.

    Raises:
        InputError: a field is out of its range.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise InputError(f"beta: found {self.beta}, expected a positive number")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run.

    Attributes:
        output_folder: receives checkpoints, metrics and the resolved configuration; a run found there is continued.
        num_steps: optimizer steps of the whole run.
        batch_size: sequences (with ``dpo`` pairs of them) per optimizer step.
        num_microbatches: parts of a batch that are computed one after the other to save memory.
        skip_steps: ranges [start, stop) of steps, the first of a run being 1, whose batches are passed over: the data
            and the schedule go on, nothing else changes.
        init_seed: of the parameters' initial values.
        z_loss_weight: weight of the squared log-partition in the loss of language modelling.
        start_from: the weights to begin with; null begins with random ones.
        dpo: prefer chosen to rejected answers, which ``data`` must then have, instead of modelling text.
        model: the model.
        data: what it learns from.
        optimizer: how it learns.
        schedule: how fast it learns.
        checkpoint: what is kept on the way.
        logging: what is told on the way.
        mesh: how devices share the work.
        profile_steps: steps to trace into ``output_folder/profile``, counted as in the progress bar and written like a
            slice: "10:13" is steps 10, 11 and 12. Of several processes the first is traced. No part of what is
            recorded of a run: the next time it does not trace again.
        distributed: how several processes find each other; no part of what is recorded of a run.

    Raises:
        InputError: a field is out of its range or contradicts another.
    """

    output_folder: Path
    num_steps: int
    batch_size: int
    num_microbatches: int = 1
    skip_steps: tuple[tuple[int, int], ...] = ()
    init_seed: int = 0
    z_loss_weight: float = 1e-5
    start_from: StartConfig | None = None
    dpo: DpoConfig | None = None
    model: ModelConfig
    data: DataConfig | PreferenceConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    profile_steps: str | None = None
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "num_microbatches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.batch_size % self.num_microbatches:
            raise InputError(
                f"batch_size: found {self.batch_size}, "
                f"expected a multiple of num_microbatches = {self.num_microbatches}"
            )
        for start, stop in self.skip_steps:
            if not 1 <= start < stop:
                raise InputError(f"skip_steps: found [{start}, {stop}], expected 1 <= start < stop")
        if not 0 <= self.z_loss_weight < float("inf"):
            raise InputError(f"z_loss_weight: found {self.z_loss_weight}, expected 0 or more")
        if not self.model.eos_token_ids:
            raise InputError(
                "model.eos_token_id: found null, expected the token that ends a document of the data"
            )
        preferences = isinstance(self.data, PreferenceConfig)
        if preferences != (self.dpo is not None):
            found, expected = (
                ("chosen and rejected", "dpo with") if preferences else ("sources", "no dpo with")
            )
            raise InputError(f"data: found {found}, expected {expected} them")
        if self.dpo is not None and self.start_from is None:
            raise InputError("start_from: found null, expected the model whose preferences dpo is to change")
        if self.model.is_rotary and self.data.sequence_length > self.model.max_position_embeddings:
            raise InputError(
                f"data.sequence_length: found {self.data.sequence_length}, expected at most "
                f"model.max_position_embeddings = {self.model.max_position_embeddings}"
            )
        steps = self.profiled_steps
        if self.profile_steps is not None and not (1 <= steps.start < steps.stop <= self.num_steps + 1):
            raise InputError(
                f"profile_steps: found {self.profile_steps!r}, expected steps FIRST:END of this run with "
                f"1 <= FIRST < END <= num_steps + 1 = {self.num_steps + 1}"
            )

    @property
    def profiled_steps(self) -> range:
        """What ``profile_steps`` means; empty for null."""
        if self.profile_steps is None:
            return range(0)
        found = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
        if not found:
            raise InputError(
                f"profile_steps: found {self.profile_steps!r}, expected FIRST:END, such as 10:13 for steps 10, 11, 12"
            )
        return range(int(found[1]), int(found[2]))

    @property
    def objective(self) -> Objective:
        """What the run minimises."""
        return LanguageModeling(self.z_loss_weight) if self.dpo is None else DirectPreference(self.dpo.beta)

    @property
    def num_rows(self) -> int:
        """Rows of the global batch of a step."""
        return self.batch_size if self.dpo is None else 2 * self.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the global batch of a step, padding included."""
        return self.num_rows * self.data.sequence_length

    def skips(self, step: int) -> bool:
        """Whether the batch of ``step`` is passed over."""
        return any(start <= step < stop for start, stop in self.skip_steps)

    def recorded(self) -> dict[str, Any]:
        """The run as JSON values, the same whichever process writes them."""
        record = to_mapping(self)
        del record["profile_steps"], record["distributed"]
        return record
