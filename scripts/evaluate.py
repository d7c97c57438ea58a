"""Score models: ``evaluate.py text`` for bits per byte, ``tasks`` for those of lm-eval, ``ruler`` for long texts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.checkpoints import from_pretrained
from hybrid_jax.checkpoints.model_folder import find_folder
from hybrid_jax.cli import run_script
from hybrid_jax.data.tokenizer import TOKENIZER_FILE, load_tokenizer
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation import (
    TextScore,
    border_token_id,
    lm_eval_model,
    pooled,
    read_documents,
    run_tasks,
    score_documents,
)
from hybrid_jax.evaluation.ruler import TASKS, Texts, read_haystack
from hybrid_jax.evaluation.ruler.report import (
    add_missing,
    all_asked,
    missing,
    plot_scores,
    read_cells,
    score_table,
)
from hybrid_jax.evaluation.ruler.scores import check_length
from hybrid_jax.models import CausalLM

Dtype = Literal["float32", "bfloat16"]
Model = tyro.conf.Positional[str]
app = tyro.extras.SubcommandApp()
console = Console(highlight=False, soft_wrap=True)


@app.command
def text(
    model: Model,
    inputs: tyro.conf.Positional[tuple[Path, ...]],
    output: Path | None = None,
    max_length: int | None = None,
    window: int = 512,
    batch_size: int = 8,
    text_field: str = "text",
    suffixes: tuple[str, ...] = (".txt",),
    dtype: Dtype = "float32",
    revision: str | None = None,
) -> None:
    """Bits per byte, cross-entropy and perplexity of texts.

    Args:
        model: a folder with config.json, safetensors and tokenizer.json, or an id on the hub.
        inputs: text files, JSON lines (.jsonl, .json, also .gz and .zst), Parquet, folders of text files, or token
            shards (.npy), whose bytes are counted where the model has a tokenizer.
        output: JSON lines to write, one for each document.
        max_length: most tokens before a scored one; longer documents are cut. All of the document if not given, or
            where positions are rotary the model's max_position_embeddings.
        window: tokens of a row read at once.
        batch_size: rows read at once.
        text_field: the field that holds the text.
        suffixes: how the names of text files end; each is a document.
        dtype: of the weights and matmuls.
        revision: branch, tag or commit on the hub.
    """
    _check_some(inputs=inputs)
    loaded, folder = _load(model, dtype, revision)
    tokenizer = load_tokenizer(folder) if (folder / TOKENIZER_FILE).is_file() else None
    scores: list[TextScore] = []
    totals: list[TextScore] = []
    for path in inputs:
        documents = read_documents(path, loaded.config, tokenizer, text_field=text_field, suffixes=suffixes)
        found = score_documents(
            loaded,
            documents,
            border_token_id(loaded.config),
            max_length=max_length,
            window=window,
            batch_size=batch_size,
        )
        first = len(scores)
        scores.extend(found)
        totals.append(pooled(str(path), scores[first:]))
    if len(inputs) > 1:
        totals.append(pooled("all", scores))
    if output is not None:
        with write_then_rename(output) as temporary:
            lines = [json.dumps(_record(score)) + "\n" for score in scores]
            temporary.write_text("".join(lines), encoding="utf-8")
    table = Table("text", "tokens", "bytes", "nats per token", "perplexity", "bits per byte")
    for score in totals:
        num_bytes = "unknown" if score.num_bytes is None else f"{score.num_bytes:,}"
        bits = "unknown" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}"
        table.add_row(
            score.name,
            f"{score.num_tokens:,}",
            num_bytes,
            f"{score.cross_entropy:.4f}",
            f"{score.perplexity:.2f}",
            bits,
        )
    console.print(table)
    if any(score.num_bytes is None for score in totals):
        console.print(
            f"bytes are unknown: counting those of token shards takes a {TOKENIZER_FILE} in {folder}"
        )


@app.command
def tasks(
    model: Model,
    names: tyro.conf.Positional[tuple[str, ...]],
    output: Path | None = None,
    folder: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    window: int = 512,
    batch_size: int = 8,
    dtype: Dtype = "float32",
    revision: str | None = None,
) -> None:
    """Tasks of lm-eval (needs the extra eval).

    Args:
        model: a folder with config.json, safetensors and tokenizer.json, or an id on the hub.
        names: of tasks or groups, or patterns such as 'arc_*'.
        output: a JSON file to write: metrics, settings and versions.
        folder: of YAML files that describe tasks, to take them from in place of lm-eval's own.
        num_fewshot: examples before each question; the task's own number if not given.
        limit: questions of each task, the first ones.
        max_length: most tokens read for an answer; max_position_embeddings if not given.
        window: tokens of a row read at once.
        batch_size: rows read or continued at once.
        dtype: of the weights and matmuls.
        revision: branch, tag or commit on the hub.
    """
    _check_some(names=names)
    loaded, model_folder = _load(model, dtype, revision)
    lm = lm_eval_model(loaded, model_folder, max_length=max_length, window=window, batch_size=batch_size)
    results = run_tasks(lm, names, folder=folder, num_fewshot=num_fewshot, limit=limit)
    if output is not None:
        kept = {
            name: results[name]
            for name in ("results", "groups", "configs", "versions", "n-shot", "n-samples")
            if name in results
        }
        with write_then_rename(output) as temporary:
            temporary.write_text(json.dumps(kept, indent=1, default=str) + "\n", encoding="utf-8")
    table = Table("task", "metric", "value", "standard error")
    for task, metrics in results["results"].items():
        for metric, value in metrics.items():
            name, _, kind = metric.partition(",")
            if isinstance(value, float) and not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr,{kind}")
                table.add_row(
                    task, name, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else "unknown"
                )
    console.print(table)


@app.command
def ruler(
    models: tyro.conf.Positional[tuple[str, ...]],
    lengths: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536),
    tasks: tuple[str, ...] = tuple(TASKS),
    num_samples: int = 100,
    seed: int = 0,
    output: Path | None = None,
    plot: Path | None = None,
    haystack: Path | None = None,
    batch_size: int = 8,
    dtype: Dtype = "float32",
    revision: str | None = None,
) -> None:
    """RULER: what models find in texts of given lengths.

    Args:
        models: folders with config.json, safetensors and tokenizer.json, or ids on the hub; their table stands side by
            side.
        lengths: tokens of a question and its answer, in each model's own.
        tasks: of RULER.
        num_samples: questions of each task and length.
        seed: for all that is drawn in them.
        output: JSON lines, one for each model, task and length, written as they come; what it has is not done again. A
            model is known by its name and revision.
        plot: a PNG to draw: the mean over the tasks by length.
        haystack: a text file to hide needles in; the reference of the Python language if not given.
        batch_size: questions answered at once.
        dtype: of the weights and matmuls.
        revision: branch, tag or commit on the hub.
    """
    _check_some(models=models, lengths=lengths, tasks=tasks)
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise InputError(f"tasks: found {', '.join(unknown)}, expected some of {', '.join(TASKS)}")
    texts = Texts(read_haystack(haystack))
    cells = read_cells(output) if output is not None and output.is_file() else []
    at = "" if revision is None else f"@{revision}"
    asked = {
        model: all_asked(
            f"{model}{at}", tasks, lengths, texts, num_samples=num_samples, seed=seed, dtype=dtype
        )
        for model in models
    }
    for model in models:
        if not missing(cells, asked[model]):
            continue
        loaded, folder = _load(model, dtype, revision)
        check_length(loaded, max(lengths))
        add_missing(
            cells,
            asked[model],
            loaded,
            load_tokenizer(folder),
            texts,
            batch_size=batch_size,
            path=output,
            say=console.print,
        )
    found = {cell[:-1]: cell for cell in cells}
    shown = [found[each] for model in models for each in asked[model]]
    console.print(score_table(shown))
    if plot is not None:
        plot_scores(shown, plot)


def _check_some(**given: Sequence[Any]) -> None:
    for name, values in given.items():
        if not values:
            raise InputError(f"{name}: found none, expected at least one")


def _load(model: str, dtype: Dtype, revision: str | None) -> tuple[CausalLM, Path]:
    folder = find_folder(model, revision)
    return from_pretrained(folder, dtype=dtype), folder


def _record(score: TextScore) -> dict[str, Any]:
    return {
        "document": score.name,
        "tokens": score.num_tokens,
        "bytes": score.num_bytes,
        "cross_entropy": score.cross_entropy,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
    }


if __name__ == "__main__":
    run_script(lambda: app.cli(description=__doc__))
