"""SweepConfig: every run of an expressivity setting, one frozen object per YAML file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError
from hybrid_jax.expressivity.architectures import architecture
from hybrid_jax.expressivity.tasks import Task, make_task
from hybrid_jax.expressivity.vocabulary import Granularity, Vocabulary
from hybrid_jax.training.optimizer import OptimizerConfig
from hybrid_jax.training.schedule import ScheduleConfig, make_schedule

Decay = Literal["cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stage of the curriculum: programs of one length.

    Attributes:
        length: swaps or bits.
        num_steps: most steps that it takes.

    Raises:
        InputError: a field is not positive.
    """

    length: int
    num_steps: int

    def __post_init__(self) -> None:
        for name, value in (("length", self.length), ("num_steps", self.num_steps)):
            if value < 1:
                raise InputError(f"{name}: found {value}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """How one task is learnt, and how often.

    Attributes:
        architectures: names from ``hybrid_jax.expressivity.architectures``.
        lengths: of the programs that a trained model is tested on, ascending; the last decides which run is best.
        stages: of training, one after the other.
        advance_at: accuracy at the stage's own length that ends it early, and the run with the last; null never does.
        num_asserts: in a program to learn from, one after every ``length // num_asserts`` swaps; null draws their
            spacing from the powers of 2, and a fifth of the programs has only the last. Without meaning for recall,
            which has one.
        learning_rates: peaks to try.
        decays: courses to try after warmup.
        seeds: of initial values and programs; each is tried with every learning rate and decay.

    Raises:
        InputError: a field is out of its range.
    """

    architectures: tuple[str, ...]
    lengths: tuple[int, ...]
    stages: tuple[StageConfig, ...]
    advance_at: float | None = None
    num_asserts: int | None = None
    learning_rates: tuple[float, ...] = (1e-3,)
    decays: tuple[Decay, ...] = ("cosine",)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name in ("architectures", "lengths", "stages", "learning_rates", "decays", "seeds"):
            if not getattr(self, name):
                raise InputError(f"{name}: found none, expected at least one")
        for name in self.architectures:
            architecture(name)
        if list(self.lengths) != sorted(set(self.lengths)):
            raise InputError(f"lengths: found {list(self.lengths)}, expected ascending numbers")
        if self.advance_at is not None and not 0 < self.advance_at <= 1:
            raise InputError(f"advance_at: found {self.advance_at}, expected an accuracy above 0 or null")
        if self.num_asserts is not None and self.num_asserts < 1:
            raise InputError(f"num_asserts: found {self.num_asserts}, expected at least 1 or null")

    @property
    def max_length(self) -> int:
        """Of all programs, to learn from and to be tested on."""
        return max(*self.lengths, *(stage.length for stage in self.stages))

    @property
    def max_steps(self) -> int:
        """Of all stages together."""
        return sum(stage.num_steps for stage in self.stages)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Every task: its architectures x learning rates x decays x seeds.

    Attributes:
        output_folder: receives results, table and figure; runs found there are not done again.
        tasks: how each is learnt.
        model: what all architectures share; layers and vocabulary are theirs and the task's.
        vocabulary: whether a token is a word of the program, or a statement.
        batch_size: programs in a step.
        optimizer: of all runs.
        warmup: steps of the learning rate's rise.
        check_interval: steps in one dispatch, from one look at loss and accuracy to the next; stages are multiples.
        num_samples: fresh programs that an accuracy is measured on.
        num_workers: processes that run at the same time, each with its own runs.

    Raises:
        InputError: a field is out of its range or contradicts another.
    """

    output_folder: Path
    tasks: dict[str, TaskConfig]
    model: ModelConfig
    vocabulary: Granularity = "words"
    batch_size: int = 32
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warmup: int = 250
    check_interval: int = 100
    num_samples: int = 256
    num_workers: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "check_interval", "num_samples", "num_workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if not self.tasks:
            raise InputError("tasks: found none, expected at least one")
        for name, config in self.tasks.items():
            self._check_task(name, config)

    def _check_task(self, name: str, config: TaskConfig) -> None:
        task = make_task(name, config.max_length)
        for field_name, lengths in (
            ("lengths", config.lengths),
            ("stages", [stage.length for stage in config.stages]),
        ):
            for length in lengths:
                task.check_length(length)
                needed = self.num_tokens(task, length)
                if needed > self.model.max_position_embeddings:
                    raise InputError(
                        f"tasks.{name}.{field_name}: found {length}, whose programs have up to {needed} tokens, "
                        f"expected at most model.max_position_embeddings = {self.model.max_position_embeddings}"
                    )
        for stage in config.stages:
            if stage.num_steps % self.check_interval:
                raise InputError(
                    f"tasks.{name}.stages: found {stage.num_steps} steps, expected a multiple of check_interval = "
                    f"{self.check_interval}"
                )
        for learning_rate in config.learning_rates:
            for decay in config.decays:
                try:
                    make_schedule(self.schedule(learning_rate, decay), config.max_steps)
                except InputError as error:
                    raise InputError(f"tasks.{name}: {error}") from None
        if name == "recall" and config.num_asserts is not None:
            raise InputError(
                f"tasks.recall.num_asserts: found {config.num_asserts}, expected null: recall asks once"
            )

    def num_tokens(self, task: Task, length: int) -> int:
        """Tokens of the longest program of ``length`` to learn from."""
        vocabulary = Vocabulary(task.pieces, self.vocabulary)
        return int(vocabulary.count_tokens(task.longest(length, self.tasks[task.name].num_asserts))[0])

    def schedule(self, learning_rate: float, decay: Decay) -> ScheduleConfig:
        """The learning rate's course."""
        return ScheduleConfig(
            kind="cosine" if decay == "cosine" else "linear",
            learning_rate=learning_rate,
            warmup=self.warmup,
            final_fraction=None if decay == "cosine" else 1.0,
        )
