"""LadderConfig: every run of a scaling ladder, one frozen object per YAML file."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from hybrid_jax.config import ModelConfig
from hybrid_jax.data.config import DataConfig
from hybrid_jax.errors import InputError
from hybrid_jax.scaling.points import ARCHITECTURES
from hybrid_jax.sharding import MeshConfig
from hybrid_jax.training.optimizer import OptimizerConfig
from hybrid_jax.training.run_config import CheckpointConfig, LoggingConfig


@dataclass(frozen=True, kw_only=True)
class SizeConfig:
    """Width and depth, the same for all architectures. The fields are ModelConfig's."""

    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    intermediate_size: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{name}: found {value}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Sizes x architectures, one run each, which is evaluated at every horizon.

    Learning rate, batch, warmup and the ends of periods follow from each size as in the paper (``plan.py``).

    Attributes:
        output_folder: receives runs and results; what is found there is not done again.
        architectures: names from ``hybrid_jax.scaling.points.ARCHITECTURES``.
        sizes: by name, as in the results.
        horizons: ends of the periods of each run, ascending, in multiples of 20 tokens for each parameter of the OLMo 3
            of a size, input embeddings left out.
        corpus: name of what is trained and evaluated on, for the results.
        tokenizer: its name, for the results.
        held_out: files to evaluate on: token shards, or text if there is a ``stdlib_corpus``. The loss is the mean over
            them.
        stdlib_corpus: the folder in which the corpus of the Python standard library is made first, for ``data`` and
            ``held_out`` that name its files; null makes nothing.
        data: what is trained on.
        model: what all architectures and sizes share; width, depth and layers are theirs.
        linear_key_head_multiple: see ``architectures.model_config``.
        microbatch_size: rows computed at a time, over all devices; batches are multiples of it.
        learning_rate_scale: multiplies the peak that the paper's formula gives.
        init_seed: of all parameters' initial values.
        z_loss_weight: as in a run's configuration.
        optimizer: of all runs, but for ``beta2``, which follows from the batch.
        checkpoint: when runs are saved besides the ends of periods and the beginnings of their decays.
        logging: of each run.
        mesh: how devices share each run.

    Raises:
        InputError: a field is out of its range.
    """

    output_folder: Path
    architectures: tuple[str, ...]
    sizes: dict[str, SizeConfig]
    horizons: tuple[float, ...]
    corpus: str
    tokenizer: str
    held_out: tuple[Path, ...]
    stdlib_corpus: Path | None = None
    data: DataConfig
    model: ModelConfig
    linear_key_head_multiple: int = 128
    microbatch_size: int = 8
    learning_rate_scale: float = 1.0
    init_seed: int = 42
    z_loss_weight: float = 1e-5
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        for name in ("architectures", "sizes", "horizons", "held_out"):
            if not getattr(self, name):
                raise InputError(f"{name}: found none, expected at least one")
        for name in self.architectures:
            if name not in ARCHITECTURES:
                raise InputError(
                    f"architectures: found {name!r}, expected some of {', '.join(ARCHITECTURES)}"
                )
        if len(set(self.architectures)) < len(self.architectures):
            raise InputError(f"architectures: found {list(self.architectures)}, expected each once")
        if any(first >= second for first, second in pairwise((0.0, *self.horizons))):
            raise InputError(f"horizons: found {list(self.horizons)}, expected ascending numbers above 0")
        for name in ("linear_key_head_multiple", "microbatch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if not 0 < self.learning_rate_scale < float("inf"):
            raise InputError(
                f"learning_rate_scale: found {self.learning_rate_scale}, expected a positive number"
            )
        if self.optimizer.beta2 != OptimizerConfig().beta2:
            raise InputError(
                f"optimizer.beta2: found {self.optimizer.beta2}, expected none: it follows from the batch"
            )
        if self.checkpoint.permanent_steps:
            raise InputError(
                f"checkpoint.permanent_steps: found {list(self.checkpoint.permanent_steps)}, expected none: they "
                "follow from the horizons"
            )
