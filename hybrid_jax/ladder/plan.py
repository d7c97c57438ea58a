"""From a ladder's configuration to its runs, by the formulas of OLMo-core's ``model_ladder``.

With N the number of parameters of the size's OLMo 3, input embeddings left out (the paper's hybrids follow the
transformer's N too): the learning rate peaks at 0.0047 (N / 108M)^(-1/3) / 2; a batch has 327,680 (N / 108M)^(2/3)
tokens, rounded to whole microbatches; the warmup takes N tokens, and the last tenth of each period is a decay to 0.
"""

from dataclasses import replace
from itertools import chain, pairwise
from math import floor
from typing import NamedTuple

from hybrid_jax.config import ModelConfig
from hybrid_jax.config.flops import training_flops_per_token
from hybrid_jax.errors import InputError
from hybrid_jax.ladder.architectures import model_config
from hybrid_jax.ladder.config import LadderConfig
from hybrid_jax.models import count_parameters
from hybrid_jax.scaling.points import LadderPoint
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.schedule import ScheduleConfig

_REFERENCE = "olmo3"
_REFERENCE_PARAMETERS = 108e6
_CHINCHILLA_TOKENS = 20
_DECAY = 0.1
# Batches from this size on have a shorter memory of squared gradients.
_LARGE_BATCH_TOKENS = 524_288


class PlannedCheckpoint(NamedTuple):
    """A step of a run to evaluate.

    Attributes:
        step: updates done.
        horizon: of its period.
        decayed: whether it is the period's end; otherwise it is where the decay begins.
    """

    step: int
    horizon: float
    decayed: bool


class PlannedRun(NamedTuple):
    """One architecture of one size.

    Attributes:
        architecture: its name.
        size: its name.
        num_params: without input embeddings.
        config: as it is trained.
        checkpoints: to evaluate, in the order of their steps.
    """

    architecture: str
    size: str
    num_params: int
    config: RunConfig
    checkpoints: tuple[PlannedCheckpoint, ...]

    def flops(self, step: int) -> float:
        """Spent until ``step``, forward and backward."""
        per_token = training_flops_per_token(self.config.model, self.config.data.sequence_length)
        return float(per_token) * step * self.config.tokens_per_step


def plan_ladder(config: LadderConfig) -> list[PlannedRun]:
    """Every run, the smallest sizes first.

    Raises:
        InputError: a size contradicts itself, or is so small that the ends of its periods fall together.
    """
    references = {name: _num_params(_model(config, _REFERENCE, name)) for name in config.sizes}
    return [
        _plan(config, architecture, name, reference)
        for name, reference in sorted(references.items(), key=lambda each: each[1])
        for architecture in config.architectures
    ]


def ladder_point(
    config: LadderConfig, run: PlannedRun, checkpoint: PlannedCheckpoint, loss: float
) -> LadderPoint:
    """The line of the results for one checkpoint."""
    return LadderPoint(
        architecture=run.architecture,
        size=run.size,
        num_params=run.num_params,
        tokens=checkpoint.step * run.config.tokens_per_step,
        flops=run.flops(checkpoint.step),
        loss=loss,
        corpus=config.corpus,
        tokenizer=config.tokenizer,
        vocab_size=config.model.vocab_size,
        horizon=checkpoint.horizon,
        decayed=checkpoint.decayed,
        seed=config.init_seed,
    )


def _model(config: LadderConfig, architecture: str, size: str) -> ModelConfig:
    try:
        return model_config(architecture, config.sizes[size], config.model, config.linear_key_head_multiple)
    except InputError as error:
        raise InputError(f"sizes.{size}: {error}") from None


def _num_params(model: ModelConfig) -> int:
    return count_parameters(model, with_input_embedding=False)


def _plan(config: LadderConfig, architecture: str, size: str, reference: int) -> PlannedRun:
    """The run of one architecture and size, whose OLMo 3 has ``reference`` parameters."""
    relative = reference / _REFERENCE_PARAMETERS
    microbatch = config.microbatch_size * config.data.sequence_length
    num_microbatches = max(1, round(round(2048 * 160 * relative ** (2 / 3)) / microbatch))
    batch = num_microbatches * microbatch
    ends = [round(floor(_CHINCHILLA_TOKENS * each * reference) / batch) for each in config.horizons]
    # In tokens and then rounded down, as OLMo-core does.
    begins = [
        (end * batch - round(_DECAY * (end - previous) * batch)) // batch
        for previous, end in pairwise((0, *ends))
    ]
    checkpoints = tuple(
        PlannedCheckpoint(step, horizon, decayed)
        for begin, end, horizon in zip(begins, ends, config.horizons, strict=True)
        for step, decayed in ((begin, False), (end, True))
    )
    model = _model(config, architecture, size)
    try:
        run_config = RunConfig(
            output_folder=config.output_folder / architecture / size,
            num_steps=ends[-1],
            batch_size=num_microbatches * config.microbatch_size,
            num_microbatches=num_microbatches,
            init_seed=config.init_seed,
            z_loss_weight=config.z_loss_weight,
            model=model,
            data=config.data,
            optimizer=replace(config.optimizer, beta2=0.95 if batch >= _LARGE_BATCH_TOKENS else 0.99),
            schedule=ScheduleConfig(
                kind="wsds",
                learning_rate=config.learning_rate_scale * 0.0047 * relative ** (-1 / 3) / 2,
                warmup=round(reference / batch),
                decay=_DECAY,
                boundaries=tuple(ends),
            ),
            checkpoint=replace(
                config.checkpoint, permanent_steps=tuple(chain(*zip(begins, ends, strict=True)))
            ),
            logging=config.logging,
            mesh=config.mesh,
        )
    except InputError as error:
        raise InputError(f"sizes.{size}: {error}") from None
    return PlannedRun(architecture, size, _num_params(model), run_config, checkpoints)
