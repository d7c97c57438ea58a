"""Every shipped configuration is a valid run."""

from functools import partial
from pathlib import Path

import jax
import pytest

from hybrid_jax.models import create_model
from hybrid_jax.training.optimizer import make_optimizer
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.schedule import make_schedule
from hybrid_jax.yaml_config import load

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_is_valid(path):
    config = load(RunConfig, path)
    schedule = make_schedule(config.schedule, config.num_steps)
    assert float(schedule(0)) > 0
    make_optimizer(config.optimizer, schedule, jax.eval_shape(partial(create_model, config.model)))


def test_there_are_configurations():
    assert "quickstart" in {path.stem for path in CONFIGS}
