"""Every figure of ``configs/ladder`` from the model's size, by the formulas of OLMo-core's ``model_ladder``."""

from itertools import chain, pairwise
from math import floor
from pathlib import Path

import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.models import count_parameters
from hybrid_jax.training.optimizer import OptimizerConfig
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.skip_step import SkipStepConfig
from hybrid_jax.yaml_config import from_command_line, load
from tests.environment import ROOT

FOLDER = ROOT / "configs/ladder"
LENGTH, DEVICES = 8192, 8
# arXiv 2604.03444, Table 22: peak learning rate and target batch in thousands of tokens.
PUBLISHED = {
    "60m": (2.90e-3, 215),
    "100m": (2.40e-3, 315),
    "190m": (1.95e-3, 478),
    "370m": (1.56e-3, 746),
    "600m": (1.37e-3, 968),
    "760m": (1.23e-3, 1200),
    "1b": (1.03e-3, 1700),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_figures_follow_from_the_size_of_the_transformer(size):
    config = load(RunConfig, FOLDER / f"{size}.yaml")
    num_parameters = count_parameters(ModelConfig.preset(f"olmo3_{size}"), with_input_embedding=False)
    rate = 0.0047 * (num_parameters / 108e6) ** (-1 / 3) / 2
    target = round(2048 * 160 * (num_parameters / 108e6) ** (2 / 3))
    assert rate == pytest.approx(PUBLISHED[size][0], abs=5e-6)
    assert target / 1000 == pytest.approx(PUBLISHED[size][1], abs=5 if target > 1e6 else 0.5)

    assert config.batch_size == DEVICES * round(target / (DEVICES * LENGTH))
    assert config.num_microbatches * DEVICES == config.batch_size
    assert config.data.sequence_length == config.model.max_position_embeddings == LENGTH
    batch = config.batch_size * LENGTH
    ends = tuple(round(floor(20 * c * num_parameters) / batch) for c in (0.5, 1, 2, 4, 8))
    lengths = [end - begin for begin, end in pairwise((0, *ends))]
    assert config.num_steps == ends[-1]
    schedule = config.schedule
    assert (schedule.kind, schedule.boundaries, schedule.decay) == ("wsds", ends, 0.1)
    assert schedule.learning_rate == pytest.approx(rate, rel=3e-5)
    assert schedule.warmup == round(num_parameters / batch)
    assert schedule.final_fraction is None
    begins = [
        (end * batch - round(0.1 * length * batch)) // batch
        for end, length in zip(ends, lengths, strict=True)
    ]
    assert config.checkpoint.permanent_steps == tuple(chain(*zip(begins, ends, strict=True)))
    assert config.optimizer == OptimizerConfig(
        beta2=0.95 if batch >= 524_288 else 0.99, skip_step=SkipStepConfig()
    )
    assert (config.optimizer.weight_decay, config.optimizer.max_grad_norm) == (0.1, 1.0)
    assert (config.z_loss_weight, config.init_seed, config.data.seed) == (1e-5, 42, 0)


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_preset_is_all_that_tells_the_architectures_apart(size):
    path = str(FOLDER / f"{size}.yaml")
    for family in ("olmo_hybrid", "olmo3", "gdn"):
        name = f"{family}_{size}"
        config = from_command_line(RunConfig, [path, "--model.preset", name])
        assert config.model == ModelConfig.preset(name, dtype="bfloat16", remat="block")
    assert load(RunConfig, Path(path)).model.layer_types != config.model.layer_types


def test_every_size_has_its_file():
    assert {path.stem for path in FOLDER.iterdir()} == set(PUBLISHED)
