import dataclasses
import re
import signal
import subprocess
import sys
import threading
from itertools import islice

import numpy as np
import pytest

from hybrid_jax.data.config import DataConfig, SourceConfig
from hybrid_jax.data.mixture import epoch_order
from hybrid_jax.data.packing import document_segment_ids, next_token_labels
from hybrid_jax.data.pipeline import data_identity, fingerprint, make_batches
from hybrid_jax.errors import InputError
from tests.environment import child_environment

VOCAB_SIZE, EOS, PAD, LENGTH, BATCH = 4096, 0, 1, 4, 3
NUM_WINDOWS = 17  # five batches an epoch, two windows left over
# PCG64(8) over ten windows, as NumPy 2 shuffles them.
GOLDEN = [0, 7, 3, 6, 9, 5, 8, 1, 2, 4]


def one_source(*paths):
    return {"only": SourceConfig(paths=paths)}


@pytest.fixture
def config(tmp_path):
    """Two shards whose tokens name their position, with an end of text in every sixth place."""
    tokens = np.arange(1, NUM_WINDOWS * LENGTH + 3, dtype="<u2")
    tokens[::6] = EOS
    split = 9 * LENGTH + 2
    tokens[:split].tofile(tmp_path / "a.npy")
    tokens[split:].tofile(tmp_path / "b.npy")
    return DataConfig(sources=one_source(f"{tmp_path}/*.npy"), sequence_length=LENGTH, seed=7)


def take(config, num_batches, start_step=0):
    batches = make_batches(config, VOCAB_SIZE, EOS, PAD, BATCH, start_step)
    try:
        return list(islice(batches, num_batches))
    finally:
        batches.close()


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_batches_hold_what_the_model_needs(config):
    everything = np.ones((BATCH, LENGTH), bool)
    for batch in take(config, 6):
        assert {name: (array.shape, array.dtype) for name, array in batch.items()} == dict.fromkeys(
            ("input_ids", "labels", "segment_ids"), ((BATCH, LENGTH), np.dtype(np.int32))
        )
        np.testing.assert_array_equal(batch["labels"], next_token_labels(batch["input_ids"], everything))
        np.testing.assert_array_equal(batch["segment_ids"], document_segment_ids(batch["input_ids"], EOS))


def test_document_masking_can_be_switched_off(config):
    masked, unmasked = take(config, 3), take(dataclasses.replace(config, document_masking=False), 3)
    assert any((batch["segment_ids"] > 1).any() for batch in masked)
    for one, other in zip(masked, unmasked, strict=True):
        np.testing.assert_array_equal(one["input_ids"], other["input_ids"])
        assert (other["segment_ids"] == 1).all()


@pytest.mark.parametrize("start_step", [1, 4, 5, 11])
@pytest.mark.parametrize(("num_workers", "num_prefetch"), [(0, 1), (1, 1), (3, 7)])
def test_the_batch_at_a_step_depends_on_nothing_but_the_step(config, start_step, num_workers, num_prefetch):
    other = dataclasses.replace(config, num_workers=num_workers, num_prefetch=num_prefetch)
    assert_same(take(other, 4, start_step), take(config, start_step + 4)[start_step:])


def test_an_epoch_sees_every_window_at_most_once_and_epochs_differ(config):
    batches = take(config, 10)
    epochs = [np.concatenate([batch["input_ids"] for batch in part]) for part in (batches[:5], batches[5:])]
    for epoch in epochs:
        assert len(np.unique(epoch, axis=0)) == 15
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], take(dataclasses.replace(config, seed=8), 1)[0]["input_ids"])


def test_the_order_is_that_of_olmo_core():
    assert epoch_order(10, 7, 1).tolist() == GOLDEN
    reference = np.arange(10, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(7 + 1)).shuffle(reference)
    assert reference.tolist() == GOLDEN


def test_iterators_end_their_threads(config):
    def num_threads():
        return sum("grain" in thread.name for thread in threading.enumerate())

    batches = make_batches(config, VOCAB_SIZE, EOS, PAD, BATCH)
    next(batches)
    workers = [thread for thread in threading.enumerate() if "grain" in thread.name]
    assert workers
    batches.close()
    for thread in workers:
        thread.join(timeout=10)
    assert num_threads() == 0
    with pytest.raises(ValueError, match="closed"):
        next(batches)


LOOP = """
import sys
from hybrid_jax.cli import run_script
from hybrid_jax.data.config import DataConfig, SourceConfig
from hybrid_jax.data.pipeline import make_batches

def main():
    config = DataConfig(sources={"only": SourceConfig(paths=(sys.argv[1],))}, sequence_length=4, num_workers=2)
    for step, batch in enumerate(make_batches(config, 4096, 0, None, 3)):
        if step == 5:
            print("running", flush=True)
        if step == 5 and sys.argv[2] == "leave":
            return

run_script(main)
"""


@pytest.mark.parametrize(
    ("ending", "code", "stderr"), [("leave", 0, ""), ("interrupt", 130, "interrupted\n")]
)
def test_a_process_ends_at_once_and_quietly(config, ending, code, stderr):
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", LOOP, config.sources["only"].paths[0], ending],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    with process:
        assert process.stdout.readline() == "running\n"
        if ending == "interrupt":
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, stderr)


def test_an_id_outside_the_vocabulary_stops_the_iteration(config, tmp_path):
    tokens = np.fromfile(tmp_path / "b.npy", dtype="<u2")
    tokens[5] = 5000
    tokens.tofile(tmp_path / "b.npy")
    with pytest.raises(InputError, match=r"b\.npy: found token id 5000 at position 5, expected 0 to 4095"):
        take(config, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {}}, "sources: found none, expected at least one"),
        ({"num_tokens": 3}, "num_tokens: found 3, expected at least 4"),
        ({"sequence_length": 1}, "sequence_length: found 1, expected at least 2"),
        ({"seed": -1}, "seed: found -1, expected at least 0"),
        ({"num_workers": -1}, "num_workers: found -1, expected at least 0"),
        ({"num_workers": 0, "num_prefetch": 0}, "num_prefetch: found 0, expected at least 1"),
        ({"num_workers": 5, "num_prefetch": 4}, "num_prefetch: found 4, expected at least 5"),
    ],
)
def test_a_field_out_of_range_is_an_error(config, changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        dataclasses.replace(config, **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eos_token_id": 4096}, "eos_token_id: found 4096, expected 0 to 4095"),
        ({"batch_size": 0}, "batch_size: found 0, expected at least 1"),
        ({"batch_size": 18}, "sources: found 17 rows of 4 tokens in an epoch of only, expected at least 18"),
        ({"start_step": -1}, "start_step: found -1, expected at least 0"),
    ],
)
def test_an_argument_out_of_range_is_an_error(config, arguments, message):
    defaults = {"vocab_size": VOCAB_SIZE, "eos_token_id": EOS, "pad_token_id": PAD, "batch_size": BATCH}
    with pytest.raises(InputError, match=message):
        make_batches(config, **(defaults | arguments))


def test_the_fingerprint_knows_what_decides_the_batches_and_ignores_the_rest(config, tmp_path):
    def of(changed=config, vocab_size=VOCAB_SIZE, eos_token_id=EOS, pad_token_id=PAD, batch_size=BATCH):
        return fingerprint(data_identity(changed, vocab_size, eos_token_id, pad_token_id, batch_size))

    best_fit = dataclasses.replace(config, packing="best_fit")
    (tmp_path / "c.mask").write_bytes(b"1" * 34)

    changed = [
        dataclasses.replace(config, seed=8),
        dataclasses.replace(config, sequence_length=5),
        dataclasses.replace(config, document_masking=False),
        dataclasses.replace(config, num_tokens=40),
        dataclasses.replace(config, repetition_filter=True),
        best_fit,
        dataclasses.replace(best_fit, files_per_group=2),
        dataclasses.replace(best_fit, long_documents="fragment"),
        dataclasses.replace(
            config,
            sources={
                "only": dataclasses.replace(config.sources["only"], label_mask_paths=(f"{tmp_path}/c.mask",))
            },
        ),
        dataclasses.replace(config, sources={"other": config.sources["only"]}),
        dataclasses.replace(
            config, sources={"only": dataclasses.replace(config.sources["only"], max_repetition=2.0)}
        ),
        dataclasses.replace(config, sources=one_source(f"{tmp_path}/a.npy")),
        dataclasses.replace(config, sources=one_source(f"{tmp_path}/b.npy", f"{tmp_path}/a.npy")),
    ]
    prints = [
        of(),
        *map(of, changed),
        of(best_fit, pad_token_id=2),
        of(vocab_size=5000),
        of(eos_token_id=1),
        of(batch_size=4),
    ]
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes() + b"00")
    prints.append(of())
    assert len(set(prints)) == len(prints)

    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).rename(moved / name)
    same = dataclasses.replace(
        config, sources=one_source(f"{moved}/a.npy", f"{moved}/b.npy"), num_workers=3, num_prefetch=9
    )
    assert of(same) == prints[-1]


def test_padding_is_needed_for_best_fit_only(config):
    best_fit = dataclasses.replace(config, packing="best_fit")
    for pad_token_id in (None, 4096):
        with pytest.raises(InputError, match=rf"pad_token_id: found {pad_token_id}, expected .*best_fit"):
            make_batches(best_fit, VOCAB_SIZE, EOS, pad_token_id, BATCH)
    make_batches(config, VOCAB_SIZE, EOS, None, BATCH).close()


def test_the_identity_names_the_files(config):
    assert data_identity(config, VOCAB_SIZE, EOS, PAD, BATCH)["sources"]["only"]["shards"] == [
        ["a.npy", 76],
        ["b.npy", 64],
    ]
