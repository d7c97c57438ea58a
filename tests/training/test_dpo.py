"""Preference runs from start to end: the reference, continuing, several devices, and configurations that contradict."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from hybrid_jax.checkpoints import load_orbax
from hybrid_jax.data.config import PreferenceConfig
from hybrid_jax.errors import InputError
from hybrid_jax.models.paths import named_parameters
from hybrid_jax.sharding import MeshConfig
from hybrid_jax.training.metrics import read_metrics
from hybrid_jax.training.origin import record_start, settled_start
from hybrid_jax.training.run_config import CheckpointConfig, DpoConfig, LoggingConfig, RunConfig
from hybrid_jax.training.schedule import ScheduleConfig
from hybrid_jax.training.start import StartConfig
from hybrid_jax.training.trainer import train
from tests.training.toy import EOS, LENGTH, NUM_PAIRS, toy_model, toy_run, write_pairs

BATCH = 4
MODEL = toy_model(pad_token_id=1, num_key_value_heads=2, linear_num_key_heads=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    """A preference run from the end of a short run on text."""
    folder = tmp_path_factory.mktemp("dpo")
    text = toy_run(folder, model=MODEL, num_steps=2)
    train(text, jax.devices()[:1])
    sides = {side: write_pairs(folder, side, seed) for seed, side in enumerate(("chosen", "rejected"), 1)}
    return toy_run(
        folder,
        model=MODEL,
        output_folder=folder / "preferences",
        num_steps=12,
        batch_size=BATCH,
        num_microbatches=2,
        data=PreferenceConfig(**sides, sequence_length=LENGTH),
        dpo=DpoConfig(beta=2.0),
        start_from=StartConfig(path=str(text.output_folder)),
        schedule=ScheduleConfig(kind="linear", learning_rate=3e-3),
        checkpoint=CheckpointConfig(interval=5),
        logging=LoggingConfig(interval=4),
    )


@pytest.fixture(scope="module")
def trained(config):
    return named_parameters(train(config, jax.devices()[:1]).model)


def test_learns_to_prefer(config, trained):
    lines = list(read_metrics(config.output_folder / "metrics.jsonl"))
    assert lines[0]["train/DPO loss"] == pytest.approx(np.log(2), rel=1e-5), (
        "nothing gained over the reference yet"
    )
    assert lines[-1]["train/DPO loss"] < 0.5
    assert lines[-1]["rewards/accuracy"] == 1.0
    assert lines[-1]["throughput/total tokens"] == 12 * 2 * BATCH * LENGTH


def test_the_reference_is_what_the_first_weights_say(config, trained):
    (path,) = config.output_folder.glob("reference-*.npy")
    found = np.load(path)
    model = load_orbax(Path(config.start_from.path) / "checkpoints" / "2")
    assert found.shape == (NUM_PAIRS, 2)
    for side, column in (("chosen", 0), ("rejected", 1)):
        shards = getattr(config.data, side)
        tokens, masks = (np.fromfile(each[0], np.uint8) for each in (shards.paths, shards.label_mask_paths))
        ends = np.flatnonzero(tokens == EOS) + 1
        for pair, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            log_probs = jax.nn.log_softmax(model(tokens[None, start:end].astype(np.int32)).logits[0])
            picked = log_probs[np.arange(end - start - 1), tokens[start + 1 : end]]
            expected = np.mean(np.asarray(picked)[masks[start + 1 : end] == 1])
            assert found[pair, column] == pytest.approx(expected, rel=1e-5)


def test_continued_without_its_reference_it_ends_in_the_same_bits(config, trained, tmp_path):
    copy = shutil.copytree(config.output_folder, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "12")
    (reference,) = copy.glob("reference-*.npy")
    expected = np.load(reference)
    reference.unlink()
    again = named_parameters(train(replace(config, output_folder=copy), jax.devices()[:1]).model)
    for name, leaf in again.items():
        np.testing.assert_array_equal(leaf, trained[name], err_msg=name)
    np.testing.assert_array_equal(np.load(reference), expected)


@pytest.mark.slow
def test_several_devices_give_the_same(config, trained, tmp_path):
    mesh = MeshConfig(fsdp=2, context=2)
    state = train(replace(config, output_folder=tmp_path / "mesh", mesh=mesh), jax.devices()[:4])
    for name, leaf in named_parameters(state.model).items():
        scale = np.max(np.abs(trained[name]))
        np.testing.assert_allclose(leaf, trained[name], atol=2e-4 * scale, err_msg=name)


def test_contradictions(config):
    with pytest.raises(InputError, match="data: found chosen and rejected, expected dpo with them"):
        replace(config, dpo=None)
    with pytest.raises(InputError, match="start_from: found null, expected the model whose preferences"):
        replace(config, start_from=None)
    with pytest.raises(InputError, match="beta: found 0"):
        DpoConfig(beta=0.0)


@pytest.mark.slow
def test_the_reference_stays_that_of_the_first_start(config, tmp_path):
    text, folder = tmp_path / "text", tmp_path / "preferences"
    shutil.copytree(config.start_from.path, text)
    first = replace(config, output_folder=folder, start_from=StartConfig(path=str(text)), num_steps=2)
    train(first, jax.devices()[:1])
    (reference,) = folder.glob("reference-*.npy")
    expected = np.load(reference)

    # Meanwhile the run on text goes on, and computing is made cheaper in memory.
    shutil.copytree(text / "checkpoints" / "2", text / "checkpoints" / "3")
    again = replace(first, num_steps=3, model=MODEL.replace(remat="none"))
    train(again, jax.devices()[:1])
    assert list(folder.glob("reference-*.npy")) == [reference]

    reference.unlink()
    shutil.rmtree(text / "checkpoints" / "3")
    (text / "checkpoints" / "3").mkdir()  # would be an error if it were taken for the start
    train(replace(first, num_steps=4), jax.devices()[:1])
    np.testing.assert_array_equal(np.load(reference), expected)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", None], ids=["empty", "truncated", "other pairs"])
def test_a_damaged_reference_is_named(config, trained, tmp_path, content):
    copy = shutil.copytree(config.output_folder, tmp_path / "copy")
    (path,) = copy.glob("reference-*.npy")
    if content is None:
        np.save(path, np.zeros((NUM_PAIRS - 1, 2), np.float32))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path.name}: .*[rR]emove it: it is computed again"):
        train(replace(config, output_folder=copy), jax.devices()[:1])


def test_too_few_pairs_are_refused_before_anything_is_computed(config, tmp_path, capsys):
    few = replace(config, output_folder=tmp_path / "few", batch_size=NUM_PAIRS + 1, num_microbatches=1)
    with pytest.raises(
        InputError, match="chosen: found 11 documents, expected at least 12, one batch of pairs"
    ):
        train(few, jax.devices()[:1])
    assert "reference" not in capsys.readouterr().out
    assert not few.output_folder.exists()


def test_a_run_that_has_saved_nothing_may_be_told_another_start(config, tmp_path):
    first, other = StartConfig(path=config.start_from.path), StartConfig(path=str(tmp_path))
    settled = settled_start(first, tmp_path, continued=False)
    assert settled.path == str(Path(first.path) / "checkpoints" / "2")
    record_start(first, settled, tmp_path)
    assert settled_start(other, tmp_path, continued=True) == settled
    assert settled_start(other, tmp_path, continued=False) == other
    (tmp_path / "start.json").write_text("{")
    with pytest.raises(InputError, match=r"start\.json: found no record of a start"):
        settled_start(first, tmp_path, continued=True)


def test_both_answers_of_a_pair_count_as_tokens(config):
    assert config.tokens_per_step == 2 * BATCH * LENGTH
    assert replace(config, num_microbatches=1).tokens_per_step == config.tokens_per_step
