"""What follows from a size, against the ladder's single runs and numbers worked out by hand; what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.config.comparison import model_differences
from hybrid_jax.errors import InputError
from hybrid_jax.ladder import LadderConfig, SizeConfig, plan_ladder
from hybrid_jax.ladder.plan import PlannedCheckpoint, ladder_point
from hybrid_jax.models import count_parameters
from hybrid_jax.training.optimizer import OptimizerConfig
from hybrid_jax.training.run_config import CheckpointConfig, RunConfig
from hybrid_jax.yaml_config import load
from tests.environment import ROOT
from tests.ladder.small import small_ladder, small_size

CONFIGS = ROOT / "configs"
# Of no consequence where no layer is linear.
LINEAR = ("linear_key_head_dim", "linear_value_head_dim")


@pytest.fixture(scope="module")
def full() -> LadderConfig:
    return load(LadderConfig, CONFIGS / "scaling/full.yaml")


def test_the_full_ladder_has_the_runs_that_are_configured_one_by_one(full):
    runs = plan_ladder(replace(full, architectures=("olmo_hybrid",)))
    assert [each.size for each in runs] == ["60m", "100m", "190m", "370m", "600m", "760m", "1b"]
    for each in runs:
        alone = load(RunConfig, CONFIGS / f"ladder/{each.size}.yaml")
        # The files round it to five digits.
        assert each.config.schedule.learning_rate == pytest.approx(alone.schedule.learning_rate, rel=3e-5)
        same = {"output_folder": alone.output_folder, "schedule": alone.schedule}
        assert replace(each.config, **same) == alone
        assert replace(each.config.schedule, learning_rate=alone.schedule.learning_rate) == alone.schedule
        assert [step for step, _, _ in each.checkpoints] == list(alone.checkpoint.permanent_steps)
        assert [horizon for _, horizon, decayed in each.checkpoints if decayed] == [0.5, 1, 2, 4, 8]


def test_the_full_ladder_has_the_published_models(full):
    runs = plan_ladder(replace(full, sizes={"60m": full.sizes["60m"]}))
    assert [each.architecture for each in runs] == ["olmo3", "olmo_hybrid", "gdn"]
    for each in runs:
        preset = ModelConfig.preset(f"{each.architecture}_60m", dtype="bfloat16", remat="block")
        free = LINEAR if each.architecture == "olmo3" else ()
        assert model_differences(each.config.model, preset, free, "the preset") == []
        assert each.num_params == count_parameters(preset, with_input_embedding=False)
        assert replace(each.config, output_folder=Path(), model=runs[0].config.model) == replace(
            runs[0].config, output_folder=Path()
        ), "all architectures are trained alike"


def test_the_miniature_has_four_sizes_three_horizons_and_three_architectures():
    config = load(LadderConfig, CONFIGS / "scaling/cpu.yaml")
    runs = plan_ladder(config)
    assert len(config.sizes) == 4
    assert len(config.horizons) == 3
    assert len(runs) == 12
    for each in runs:
        body = each.num_params - config.model.vocab_size * each.config.model.hidden_size
        assert body > 2 / 3 * each.num_params, "layers are what is scaled"


def test_points_of_a_run_by_hand(tmp_path):
    config = small_ladder(
        tmp_path, architectures=("olmo3",), sizes={"a": small_size(8)}, learning_rate_scale=0.5
    )
    (run,) = plan_ladder(config)
    # Attention 4 d^2 and its norms 2 d, MLP 3 d 2d, the block's two norms, the last norm, the head.
    num_params = 4 * 64 + 2 * 8 + 3 * 8 * 16 + 2 * 8 + 8 + 8 * 64
    # 4 rows of 32 tokens are more than the formula gives.
    assert (run.num_params, run.config.tokens_per_step) == (num_params, 128)
    ends = [round(int(20 * horizon * num_params) / 128) for horizon in (0.1, 0.2)]
    assert run.config.schedule.boundaries == tuple(ends) == (19, 37)
    assert run.config.schedule.warmup == round(num_params / 128)
    assert run.config.schedule.learning_rate == pytest.approx(0.5 * 0.00235 * (108e6 / num_params) ** (1 / 3))
    # A tenth of 19 steps and of 18 steps is less than two.
    assert run.checkpoints == (
        PlannedCheckpoint(17, 0.1, False),
        PlannedCheckpoint(19, 0.1, True),
        PlannedCheckpoint(35, 0.2, False),
        PlannedCheckpoint(37, 0.2, True),
    )
    point = ladder_point(config, run, run.checkpoints[-1], loss=3.0)
    assert (point.tokens, point.horizon, point.decayed, point.seed) == (37 * 128, 0.2, True, 42)
    # Six for each weight, and attention over all 32 tokens of the only layer.
    per_token = 6 * (4 * 64 + 3 * 8 * 16 + 8 * 64) + 12 * 8 * 32
    assert point.flops == per_token * 37 * 128
    assert (point.corpus, point.tokenizer, point.vocab_size) == ("random", "none", 64)


def test_hybrids_follow_the_transformer(tmp_path):
    config = small_ladder(
        tmp_path, architectures=("gdn", "olmo3"), sizes={"b": small_size(12), "a": small_size(8)}
    )
    runs = plan_ladder(config)
    assert [(each.size, each.architecture) for each in runs] == [
        ("a", "gdn"),
        ("a", "olmo3"),
        ("b", "gdn"),
        ("b", "olmo3"),
    ]
    for gdn, olmo3 in (runs[:2], runs[2:]):
        assert gdn.num_params != olmo3.num_params
        assert gdn.config.schedule == olmo3.config.schedule
        assert gdn.config.output_folder == config.output_folder / "gdn" / gdn.size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ("mamba",)}, "architectures: found 'mamba', expected some of olmo3, olmo_hybrid"),
        ({"architectures": ("gdn", "gdn")}, "architectures: found .*, expected each once"),
        ({"sizes": {}}, "sizes: found none"),
        ({"horizons": (1.0, 0.5)}, r"horizons: found \[1.0, 0.5\], expected ascending"),
        ({"held_out": ()}, "held_out: found none"),
        ({"microbatch_size": 0}, "microbatch_size: found 0"),
        ({"learning_rate_scale": 0.0}, "learning_rate_scale: found 0.0, expected a positive number"),
        ({"optimizer": OptimizerConfig(beta2=0.9)}, "optimizer.beta2: found 0.9, expected none"),
        (
            {"checkpoint": CheckpointConfig(permanent_steps=(3,))},
            r"checkpoint.permanent_steps: found \[3\], expected none",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        small_ladder(tmp_path, **changes)


def test_a_size_that_makes_no_model_is_named(tmp_path):
    with pytest.raises(InputError, match="num_hidden_layers: found 0"):
        SizeConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=0, intermediate_size=16)
    with pytest.raises(
        InputError, match=r"sizes\.a: hidden_size: found 9, expected a multiple of num_attention_heads"
    ):
        plan_ladder(small_ladder(tmp_path, sizes={"a": small_size(9)}))
    with pytest.raises(InputError, match=r"sizes\.a: boundaries: found \[0, 0\], expected ascending"):
        plan_ladder(small_ladder(tmp_path, horizons=(0.0001, 0.0002)))
