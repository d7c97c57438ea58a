"""Every shipped configuration of a single run is a valid one."""

from functools import partial

import jax
import pytest

from hybrid_jax.models import create_model
from hybrid_jax.training.optimizer import make_optimizer
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.schedule import make_schedule
from hybrid_jax.yaml_config import load
from tests.environment import ROOT

FOLDER = ROOT / "configs"
# Of several runs each, and tested with what makes runs of them.
OTHERS = ("expressivity", "long_context", "scaling")
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.relative_to(FOLDER).parts[0] not in OTHERS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_is_valid(path):
    config = load(RunConfig, path)
    schedule = make_schedule(config.schedule, config.num_steps)
    assert float(schedule(0)) > 0
    make_optimizer(config.optimizer, schedule, jax.eval_shape(partial(create_model, config.model)))


def test_there_are_configurations():
    assert "quickstart" in {path.stem for path in CONFIGS}
