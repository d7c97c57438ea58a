"""LongContextConfig: the whole study, one frozen object per YAML file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from hybrid_jax.config import ModelConfig, Rope, RopeParameters
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.ruler import TASKS
from hybrid_jax.training.optimizer import OptimizerConfig
from hybrid_jax.training.schedule import ScheduleConfig

Family = Literal["olmo_hybrid", "olmo3"]
Method = Literal["yarn", "drope"]
FAMILIES: tuple[Family, ...] = get_args(Family)
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Training on rows of one length.

    Attributes:
        sequence_length: tokens in a row.
        num_steps: optimizer steps.
        batch_size: rows in a step.
        num_microbatches: parts of a batch that are computed one after the other to save memory.
        schedule: the learning rate's course.

    Raises:
        InputError: a field is out of its range.
    """

    sequence_length: int
    num_steps: int
    batch_size: int
    num_microbatches: int = 1
    schedule: ScheduleConfig

    def __post_init__(self) -> None:
        for name in ("sequence_length", "num_steps", "batch_size", "num_microbatches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text of one's own, prepared by ``scripts/prepare_data.py``.

    Attributes:
        shards: token shards to train on, as files or glob patterns.
        long_shards: of long documents, for the extension, whose later positions only those reach; ``shards`` if there
            are none.
        tokenizer: the folder of the tokenizer they were made with.
        held_out: texts to score, one at least as long as the extension's rows: JSON lines, Parquet, or a folder of .txt
            and .py files.
    """

    shards: tuple[str, ...]
    long_shards: tuple[str, ...] = ()
    tokenizer: Path
    held_out: Path


@dataclass(frozen=True, kw_only=True)
class LongContextConfig:
    """Two models are trained on short rows, and each is extended to long ones by every method.

    Attributes:
        output_folder: receives data, runs, scores and the figure; what is there is not done again.
        olmo_hybrid: with rotary positions in its attention layers.
        olmo3: its twin of attention alone.
        pretraining: on short rows.
        extension: on long rows, from pretraining's weights and optimizer state.
        optimizer: of both stages.
        text: to learn from beside needles; null takes the Python standard library's source.
        tasks: of RULER, to learn from and to be asked.
        needle_ratio: share of the tokens that are questions of ``tasks`` with their answers, of which only the last
            line, the question itself, and the answer are trained on; the others are text.
        lengths: tokens of the questions that are asked at the end; like the next two, may change when a study goes on.
        num_samples: questions of each task and length.
        eval_batch_size: rows scored or continued at once.
        seed: of initial values, of the order of rows and of all questions.

    Raises:
        InputError: a field is out of its range or contradicts another.
    """

    output_folder: Path
    olmo_hybrid: ModelConfig
    olmo3: ModelConfig
    pretraining: StageConfig
    extension: StageConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    text: TextConfig | None = None
    tasks: tuple[str, ...] = tuple(TASKS)
    needle_ratio: float = 0.5
    lengths: tuple[int, ...]
    num_samples: int = 50
    eval_batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, model in self.models.items():
            if model.model_type != name:
                raise InputError(f"{name}.model_type: found {model.model_type}, expected {name}")
            if not model.is_rotary:
                raise InputError(f"{name}.rope_parameters: found none, expected rotary positions to extend")
        if self.olmo3.vocab_size != self.olmo_hybrid.vocab_size:
            raise InputError(
                f"olmo3.vocab_size: found {self.olmo3.vocab_size}, expected olmo_hybrid's "
                f"{self.olmo_hybrid.vocab_size}: both read the same tokens"
            )
        if self.extension.sequence_length <= self.pretraining.sequence_length:
            raise InputError(
                f"extension.sequence_length: found {self.extension.sequence_length}, expected more than pretraining's "
                f"{self.pretraining.sequence_length}"
            )
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise InputError(
                f"tasks: found {', '.join(unknown) or 'none'}, expected some of {', '.join(TASKS)}"
            )
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise InputError(f"lengths: found {list(self.lengths)}, expected ascending numbers")
        if self.lengths[-1] > self.extension.sequence_length:
            raise InputError(
                f"lengths: found {self.lengths[-1]}, expected at most extension.sequence_length "
                f"{self.extension.sequence_length}"
            )
        if not 0 < self.needle_ratio < 1:
            raise InputError(f"needle_ratio: found {self.needle_ratio}, expected between 0 and 1")
        for count in ("num_samples", "eval_batch_size"):
            if getattr(self, count) < 1:
                raise InputError(f"{count}: found {getattr(self, count)}, expected at least 1")

    @property
    def models(self) -> dict[Family, ModelConfig]:
        """Both, by family."""
        return {"olmo_hybrid": self.olmo_hybrid, "olmo3": self.olmo3}

    def pretrained(self, family: Family) -> ModelConfig:
        """The model of the first stage, with positions for its rows."""
        return self.models[family].replace(max_position_embeddings=self.pretraining.sequence_length)

    def extended(self, family: Family, method: Method) -> ModelConfig:
        """The model of the second stage, with positions for its rows.

        YaRN interpolates the positions of attention that sees everything; attention in a window keeps its own. DRoPE
        removes positions from all layers.
        """
        model = self.pretrained(family)
        rope = RopeParameters()
        if method == "yarn":
            full = model.rope_parameters.full_attention
            yarn = Rope(
                rope_type="yarn",
                rope_theta=Rope().rope_theta if full is None else full.rope_theta,
                factor=self.extension.sequence_length / self.pretraining.sequence_length,
                original_max_position_embeddings=self.pretraining.sequence_length,
            )
            rope = RopeParameters(
                full_attention=yarn, sliding_attention=model.rope_parameters.sliding_attention
            )
        return model.replace(rope_parameters=rope, max_position_embeddings=self.extension.sequence_length)
