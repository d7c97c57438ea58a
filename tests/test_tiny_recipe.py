"""The recipe's stages one after the other, from real text to a folder that transformers loads."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hybrid_jax
from hybrid_jax.checkpoints.orbax_io import read_orbax
from hybrid_jax.training.metrics import read_metrics
from tests.environment import ROOT, child_environment

STAGES = ("pretrain", "midtrain", "midtrain_683", "long_context_yarn", "long_context_drope", "sft", "dpo")
NUM_STEPS = 21  # pretraining warms up for 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder of all stages."""
    folder = tmp_path_factory.mktemp("recipe")
    environment = child_environment(compiled=folder / "compiled", PYTHON=sys.executable, NUM_FILES="60")
    command = [str(ROOT / "scripts/tiny_recipe.sh"), "--num-steps", str(NUM_STEPS), "--batch-size", "4"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return folder / "runs" / "tiny"


def losses(runs: Path, stage: str) -> list[float]:
    lines = read_metrics(runs / stage / "metrics.jsonl")
    return [
        next(line[name] for name in ("train/CE loss", "train/DPO loss") if name in line) for line in lines
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_stage_goes_on_where_the_one_before_ended(runs):
    course = {stage: losses(runs, stage) for stage in STAGES}
    assert all(len(each) == NUM_STEPS for each in course.values())
    assert course["pretrain"][0] == pytest.approx(np.log(1024), abs=0.3)
    assert course["pretrain"][-1] < course["pretrain"][0] - 0.7
    for stage in ("midtrain", "midtrain_683", "long_context_yarn", "long_context_drope"):
        assert course[stage][0] < course["pretrain"][0] - 0.7, stage
    assert np.mean(course["sft"][-5:]) < course["sft"][0]
    assert course["dpo"][0] == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_positions_go_where_the_configuration_says_so(runs):
    def rope(stage: str):
        config, _ = read_orbax(runs / stage / "checkpoints" / str(NUM_STEPS))
        return config.rope_parameters.full_attention

    assert rope("midtrain").rope_type == "default"
    assert rope("long_context_yarn").rope_type == "yarn"
    assert [rope(stage) for stage in ("long_context_drope", "sft", "dpo")] == [None] * 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_transformers_loads_the_end(runs):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    tokenizer = transformers.AutoTokenizer.from_pretrained(runs / "hf")
    conversation = [{"role": "user", "content": "What does `def main()` do?"}]
    ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"]
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(runs / "hf", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    found = np.asarray(hybrid_jax.from_pretrained(runs / "hf")(np.array([ids])).logits)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())
