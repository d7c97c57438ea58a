"""One tiny run: what it returns, that it can be repeated, and its loss and accuracy against plain numpy."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from hybrid_jax.expressivity.architectures import model_config
from hybrid_jax.expressivity.results import Run
from hybrid_jax.expressivity.training import _accuracy, _loss, train
from hybrid_jax.models import create_model
from hybrid_jax.training.optimizer import OptimizerConfig
from hybrid_jax.training.skip_step import SkipStepConfig
from tests.expressivity.small import small_sweep
from tests.tolerances import FLOAT32_REORDERED

RUN = Run("state_tracking", "transformer", 1e-2, "constant", 0)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    # One layer of attention compiles soonest.
    return small_sweep(tmp_path_factory.mktemp("sweep"), model={"num_hidden_layers": 1})


@pytest.fixture(scope="module")
def result(sweep):
    return train(sweep, RUN)


def test_a_run_goes_through_its_stages_and_is_tested_at_every_length(result):
    assert result.run == RUN
    assert [(check.step, check.length) for check in result.curve] == [(2, 2), (4, 4), (6, 4)]
    assert result.num_steps == 6
    assert list(result.accuracy) == [2, 4]
    assert all(value in np.arange(9) / 8 for value in result.accuracy.values())
    # 32 tokens: a fresh model's loss is near that of guessing.
    assert abs(result.curve[0].loss - np.log(32)) < 0.5


def test_the_same_run_again_is_the_same(sweep, result):
    again = train(sweep, RUN)
    assert (again.curve, again.accuracy) == (result.curve, result.accuracy)
    other = train(sweep, RUN._replace(seed=1))
    assert [check.loss for check in other.curve] != [check.loss for check in result.curve]


def test_an_optimizer_may_look_at_the_loss(sweep, result):
    """Too few steps to skip any: nothing changes."""
    skipping = train(replace(sweep, optimizer=OptimizerConfig(skip_step=SkipStepConfig())), RUN)
    assert skipping.curve == result.curve


def test_loss_and_accuracy_leave_out_padding_and_what_is_no_answer(sweep):
    model = create_model(model_config("transformer", sweep.model, 32), seed=1)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 32, (6, 9)).astype(np.int32)
    ids[::2, 6:] = 0
    logits = np.asarray(model(ids).logits, np.float64)[:, :-1]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = ids[:, 1:]
    chosen = np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    expected = -chosen[targets != 0].mean()
    np.testing.assert_allclose(_loss(model, jax.numpy.asarray(ids)), expected, rtol=FLOAT32_REORDERED)

    # Every second answer is made what the model thinks likeliest.
    best = logits.argmax(-1)
    is_answer = np.zeros(ids.shape, bool)
    is_answer[:, 5] = True
    ids[:, 5] = np.where(np.arange(6) % 2, best[:, 4], (best[:, 4] + 1) % 32)
    assert float(_accuracy(model, ids, is_answer)) == 0.5
