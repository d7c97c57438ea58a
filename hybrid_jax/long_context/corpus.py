"""What the models learn from: text, and RULER's questions with their answers at every length that fits a row."""

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from hybrid_jax.data.prepare import prepare_stdlib_corpus
from hybrid_jax.data.token_shards import LabelledDocument, write_labelled_shard
from hybrid_jax.data.tokenizer import load_tokenizer, special_token_id
from hybrid_jax.evaluation.ruler import Texts, make_samples, read_haystack
from hybrid_jax.long_context.config import LongContextConfig, StageConfig


class Corpus(NamedTuple):
    """Files to learn from and to be scored on.

    Attributes:
        tokenizer_folder: with ``tokenizer.json``.
        shards: of text, as files or glob patterns.
        long_shards: likewise, for the extension.
        held_out: texts that are not in them.
    """

    tokenizer_folder: Path
    shards: tuple[str, ...]
    long_shards: tuple[str, ...]
    held_out: Path


def prepare_corpus(config: LongContextConfig) -> Corpus:
    """The text that ``config`` names, or the standard library's.

    Raises:
        InputError: as ``prepare_stdlib_corpus``.
        OSError: a file cannot be written.
    """
    text = config.text
    if text is not None:
        return Corpus(text.tokenizer, text.shards, text.long_shards or text.shards, text.held_out)
    found = prepare_stdlib_corpus(config.output_folder / "data", config.olmo_hybrid.vocab_size)
    shards = (str(found.train_path),)
    return Corpus(found.folder, shards, shards, found.held_out_path)


def write_needles(config: LongContextConfig, stage: StageConfig, corpus: Corpus) -> Path:
    """Write the questions of a stage, as many tokens as it reads of them, to a shard; or find it written.

    Raises:
        InputError: a task's frame does not fit a row.
        OSError: a file cannot be written.
    """
    path = config.output_folder / "data" / f"needles_{stage.sequence_length}.npy"
    if not path.exists():
        tokenizer = load_tokenizer(corpus.tokenizer_folder)
        documents = _questions(config, stage, tokenizer)
        eos_token_id = special_token_id(tokenizer)
        write_labelled_shard(path, documents, config.olmo_hybrid.vocab_size, eos_token_id)
    return path


def lengths_of(config: LongContextConfig, stage: StageConfig) -> list[int]:
    """Lengths of a stage's questions: that of pretraining's rows, doubled as often as fits its own."""
    lengths = [config.pretraining.sequence_length]
    while 2 * lengths[-1] <= stage.sequence_length:
        lengths.append(2 * lengths[-1])
    return lengths


def _questions(
    config: LongContextConfig, stage: StageConfig, tokenizer: Tokenizer
) -> Iterator[LabelledDocument]:
    """As many tokens of each length and task."""
    lengths = lengths_of(config, stage)
    tokens = config.needle_ratio * stage.num_steps * stage.batch_size * stage.sequence_length
    texts = Texts(read_haystack())
    end = special_token_id(tokenizer)
    for length in lengths:
        wanted = ceil(tokens / len(lengths) / len(config.tasks) / length)
        for task in config.tasks:
            # A seed of its own: none of these questions is asked at the end.
            samples = make_samples(
                task, tokenizer, length, wanted, texts, seed=config.seed + 1, with_reply=True
            )
            for sample in samples:
                prompt = tokenizer.encode(sample.prompt)
                reply = [*tokenizer.encode(sample.reply, add_special_tokens=False).ids, end]
                asks_from = sample.prompt.rfind("\n") + 1
                labels = [start >= asks_from for start, _ in prompt.offsets] + [True] * len(reply)
                yield LabelledDocument(np.array(prompt.ids + reply), np.array(labels))
