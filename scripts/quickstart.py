"""From nothing to a trained, scored, sampled and exported OLMo Hybrid, on this machine: ``make quickstart``.

Tokens come from the Python standard library's own source. Stopped with Ctrl-C, the same command continues.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

import hybrid_jax
from hybrid_jax.cli import run_script
from hybrid_jax.data.config import DataConfig, SourceConfig
from hybrid_jax.data.prepare import PreparedCorpus, prepare_stdlib_corpus, read_held_out
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation import (
    TextScore,
    border_token_id,
    compressed_bits_per_byte,
    pooled,
    read_documents,
    score_documents,
)
from hybrid_jax.models import CausalLM
from hybrid_jax.training.curves import plot_loss
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.trainer import train
from hybrid_jax.yaml_config import load

PROMPTS = ("def read_lines(path):\n", "class Queue:\n    ", "import os\n\n")


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """What ``make quickstart`` does; every step is kept, so a stopped one continues.

    Attributes:
        config: the run.
        steps: optimizer steps, if not those of the configuration.
        output: folder for everything that is made, if not that of the configuration.
    """

    config: Path = Path("configs/quickstart.yaml")
    steps: int | None = None
    output: Path | None = None


def main() -> None:
    """Prepare data, train, score, sample, export, draw, and say where everything is."""
    arguments = tyro.cli(Quickstart, description=__doc__)
    console = Console(highlight=False, soft_wrap=True)
    run = load(RunConfig, arguments.config)
    if not isinstance(run.data, DataConfig):
        raise InputError(f"{arguments.config}: data: found preferences, expected sources of text")
    output = arguments.output or run.output_folder
    corpus = prepare_stdlib_corpus(output / "data", run.model.vocab_size)
    console.print(
        f"data: {corpus.num_train_files} files of the Python standard library to train on, "
        f"{corpus.num_train_tokens:,} tokens; {corpus.num_held_out_files} held out"
    )
    run = replace(
        run,
        output_folder=output,
        num_steps=arguments.steps or run.num_steps,
        data=replace(run.data, sources={"stdlib": SourceConfig(paths=(str(corpus.train_path),))}),
    )
    began = time.perf_counter()
    model = train(run).model
    minutes = (time.perf_counter() - began) / 60

    tokenizer = load_tokenizer(corpus.folder)
    score, compressors = evaluate(model, tokenizer, corpus, max_length=2 * run.data.sequence_length)
    show_samples(console, model, tokenizer)
    curve, export = output / "loss.png", output / "hf"
    plot_loss(output, curve, title="OLMo Hybrid on the Python standard library")
    hybrid_jax.save_pretrained(model, export, tokenizer_from=corpus.folder)

    table = Table(title="Held-out text", show_header=True)
    table.add_column("compressor")
    table.add_column("bits per byte", justify="right")
    for name, bits in {**compressors, "this model": score.bits_per_byte}.items():
        table.add_row(name, f"{bits:.3f}")
    console.print(table)
    console.print(
        f"trained {run.num_steps} steps of {run.batch_size * run.data.sequence_length:,} tokens "
        f"({minutes:.1f} minutes this time); held-out cross-entropy {score.cross_entropy:.3f} nats per token\n"
        f"loss curve        {curve}\n"
        f"metrics           {output / 'metrics.jsonl'}\n"
        f"checkpoints       {output / 'checkpoints'}\n"
        f"Hugging Face copy {export}\n"
        f"more text:        python scripts/generate.py {export} 'def main():'"
    )


def evaluate(
    model: CausalLM, tokenizer: Tokenizer, corpus: PreparedCorpus, max_length: int
) -> tuple[TextScore, dict[str, float]]:
    """Bits per byte of the held-out files by the model, and by gzip and xz on all of them as one text.

    The model sees ``max_length`` tokens at a time, the compressors all that comes before.
    """
    documents = read_documents(corpus.held_out_path, model.config, tokenizer)
    scores = score_documents(model, documents, border_token_id(model.config), max_length=max_length)
    data = "".join(file.text for file in read_held_out(corpus.held_out_path)).encode()
    return pooled("held out", scores), compressed_bits_per_byte(data)


def show_samples(console: Console, model: CausalLM, tokenizer: Tokenizer) -> None:
    """Print one sampled continuation of each prompt."""
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    continuations = hybrid_jax.generate(model, prompts, max_new_tokens=96, temperature=0.7, top_p=0.95)
    for prompt, tokens in zip(PROMPTS, continuations, strict=True):
        console.rule("sample")
        console.print(prompt, end="", style="bold", markup=False)
        console.print(tokenizer.decode(tokens), markup=False)
    console.rule()


if __name__ == "__main__":
    run_script(main)
