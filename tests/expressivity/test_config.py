"""Configurations: those in the repository, and what is refused."""

import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError
from hybrid_jax.expressivity.architectures import ARCHITECTURES, model_config
from hybrid_jax.expressivity.config import StageConfig, SweepConfig
from hybrid_jax.expressivity.published import PUBLISHED
from hybrid_jax.expressivity.tasks import TASKS
from hybrid_jax.yaml_config import load
from tests.environment import ROOT
from tests.expressivity.small import small_sweep, small_task

CONFIGS = sorted((ROOT / "configs" / "expressivity").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_load_and_every_architecture_fits(path):
    sweep = load(SweepConfig, path)
    assert set(sweep.tasks) == set(TASKS)
    for name in {name for task in sweep.tasks.values() for name in task.architectures}:
        assert model_config(name, sweep.model, 50).num_hidden_layers in (4, 8)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_what_their_names_say(name):
    config = model_config(name, ModelConfig(num_hidden_layers=4), vocab_size=40)
    num_linear = config.layer_types.count("linear_attention")
    num_full = config.layer_types.count("full_attention")
    kind, *ratio = name.removesuffix("_neg").removesuffix("_pos").split("_")
    if kind == "hybrid":
        linear, full = map(int, (ratio or ["3to1"])[0].split("to"))
        assert num_linear * full == num_full * linear
        assert config.layer_types[-1] == "full_attention"
    else:
        assert (num_linear == 0) == (kind == "transformer")
        assert (num_full == 0) == (kind == "gdn")
    assert config.linear_allow_neg_eigval == (not name.endswith("_pos"))
    assert config.vocab_size == 40


def test_published_numbers_are_of_tasks_and_architectures_that_exist():
    assert set(PUBLISHED) == set(TASKS)
    assert all(set(rows) <= set(ARCHITECTURES) for rows in PUBLISHED.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": {"sorting": small_task()}},
            "task: found 'sorting', expected one of state_tracking, recall",
        ),
        (
            {"tasks": {"recall": small_task(lengths=(1, 4))}},
            "recall: found length 1, expected at least 2, the task's shortest program",
        ),
        (
            {"tasks": {"state_tracking": small_task(lengths=(2, 64))}},
            r"tasks.state_tracking.lengths: found 64, whose programs have up to 193 tokens, expected at most "
            r"model.max_position_embeddings = 32",
        ),
        (
            {"tasks": {"state_tracking": small_task(stages=(StageConfig(length=64, num_steps=2),))}},
            "tasks.state_tracking.stages: found 64, whose programs",
        ),
        (
            {"tasks": {"recall": small_task(stages=(StageConfig(length=4, num_steps=3),))}},
            "tasks.recall.stages: found 3 steps, expected a multiple of check_interval = 2",
        ),
        (
            {"tasks": {"recall": small_task(num_asserts=2)}},
            "tasks.recall.num_asserts: found 2, expected null",
        ),
        ({"warmup": 50}, "tasks.state_tracking: schedule: found 50 steps of warmup .* num_steps = 6"),
        ({"tasks": {}}, "tasks: found none"),
        ({"num_samples": 0}, "num_samples: found 0, expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        small_sweep(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ("mamba",)},
            "architectures: found 'mamba', expected some of transformer, gdn_neg",
        ),
        ({"seeds": ()}, "seeds: found none"),
        ({"lengths": (8, 4)}, r"lengths: found \[8, 4\], expected ascending"),
        ({"advance_at": 1.5}, "advance_at: found 1.5"),
        ({"num_asserts": 0}, "num_asserts: found 0"),
    ],
)
def test_a_task_out_of_range_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        small_task(**changes)


def test_layers_that_a_pattern_does_not_divide_are_refused():
    with pytest.raises(
        InputError, match=r"model\.num_hidden_layers: found 6, expected a multiple of 4 for hybrid_neg"
    ):
        model_config("hybrid_neg", ModelConfig(num_hidden_layers=6), vocab_size=40)
