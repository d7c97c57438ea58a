"""Decoding by context length: time per token and bytes of cache, OLMo Hybrid beside OLMo 3 of equal size.

Both models read a prompt and continue it to each length, in bursts that alternate between them, so that a busy machine
slows both alike; medians are compared. Caches have room for that length, rounded up as in generation; those of windows
for a window and 511 tokens at most. Weights are random, which changes neither figure. The small models have 8 layers
and the 7B's pattern: one layer in four of full attention, the others Gated DeltaNet or attention in a window.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.checkpoints.key_map import stays_float32
from hybrid_jax.cli import run_script
from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError
from hybrid_jax.generation import stream
from hybrid_jax.generation.api import cache_capacity
from hybrid_jax.models import CausalLM, count_parameters
from hybrid_jax.models.cache import init_cache
from hybrid_jax.models.paths import parameter_path

# Tokens per second of the 7B models on 8 A100 with vLLM (OLMo Hybrid's report).
PAPER = {1024: (2909, 3039), 4096: (2164, 3077), 8192: (1510, 2736), 16384: (1690, 1876), 32768: (1247, 1422)}
_SMALL: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Its MLPs are as much wider as brings it to the hybrid's number of parameters.
_SMALL_OLMO3: dict[str, Any] = {
    **_SMALL,
    "model_type": "olmo3",
    "sliding_window": 4096,
    "intermediate_size": 1216,
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure.

    Attributes:
        size: "small", 20M parameters for two CPU cores, or "7b".
        lengths: tokens of context, prompt and what is made from it.
        batch_size: rows continued at once.
        burst: tokens of a timing.
        rounds: timings of each model at each length; the median counts.
        dtype: of weights, matmuls and attention's cache.
        output: JSON lines to write, one for each length.
    """

    size: Literal["small", "7b"] = "small"
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    batch_size: int = 1
    burst: int = 32
    rounds: int = 5
    dtype: Literal["float32", "bfloat16"] = "float32"
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "burst", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if min(self.lengths, default=0) < self.num_tokens:
            raise InputError(
                f"lengths: found {self.lengths}, expected one or more, of at least the {self.num_tokens} tokens that "
                "are made"
            )

    @property
    def num_tokens(self) -> int:
        """Made after the prompt: one by reading it, a burst to compile, and the timed ones."""
        return 1 + (1 + self.rounds) * self.burst

    def configs(self) -> tuple[ModelConfig, ModelConfig]:
        """OLMo 3 and OLMo Hybrid, with positions for the longest context."""
        settings: dict[str, Any] = {"max_position_embeddings": max(self.lengths) + 1, "dtype": self.dtype}
        if self.size == "7b":
            return ModelConfig.preset("olmo3_7b", **settings), ModelConfig.preset(
                "olmo_hybrid_7b", **settings
            )
        return ModelConfig(**_SMALL_OLMO3, **settings), ModelConfig(**_SMALL, **settings)


def main() -> None:
    """Measure length by length; print a table."""
    bench = tyro.cli(Bench, description=__doc__)
    console = Console(highlight=False)
    models = [random_model(config) for config in bench.configs()]
    sizes = " and ".join(f"{count_parameters(model.config) / 1e6:,.1f}M" for model in models)
    table = Table(title=f"decoding, {sizes} parameters, batch {bench.batch_size}, {bench.dtype}")
    for column in (
        "context",
        "OLMo 3 ms/token",
        "hybrid ms/token",
        "speed",
        "OLMo 3 cache",
        "hybrid cache",
        "memory",
        "speed in the paper",
    ):
        table.add_column(column, justify="right")
    rows = []
    for length in bench.lengths:
        console.print(f"context of {length:,} tokens")
        milliseconds = per_token(models, bench, length)
        megabytes = [cache_bytes(model.config, bench, length) / 2**20 for model in models]
        names = ("olmo3", "hybrid")
        rows.append(
            {
                "context": length,
                **{f"{name}_ms_per_token": each for name, each in zip(names, milliseconds, strict=True)},
                **{f"{name}_cache_mib": each for name, each in zip(names, megabytes, strict=True)},
            }
        )
        paper = f"{PAPER[length][1] / PAPER[length][0]:.2f}x" if length in PAPER else ""
        table.add_row(
            f"{length:,}",
            *(f"{each:.2f}" for each in milliseconds),
            f"{milliseconds[0] / milliseconds[1]:.2f}x",
            *(f"{each:.1f} MiB" for each in megabytes),
            f"{megabytes[0] / megabytes[1]:.2f}x",
            paper,
        )
        if bench.output is not None:
            with write_then_rename(bench.output) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    console.print(table)


def random_model(config: ModelConfig) -> CausalLM:
    """A model whose weights have the dtype they would be loaded with."""

    def weights(key: jax.Array) -> CausalLM:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if stays_float32(parameter_path(path)) else leaf.astype(config.dtype),
            CausalLM(config, rngs=nnx.Rngs(key)),
        )

    return jax.jit(weights)(jax.random.key(0))


def per_token(models: list[CausalLM], bench: Bench, length: int) -> list[float]:
    """Median milliseconds that each model takes to make a token for every row, up to ``length`` tokens of context."""
    shape = bench.batch_size, length + 1 - bench.num_tokens
    ids = np.random.default_rng(0).integers(0, models[0].config.vocab_size, shape)
    bursts = [
        stream(model, list(ids), bench.num_tokens, eos_token_id=-1, burst_size=bench.burst)
        for model in models
    ]
    taken: list[list[float]] = [[] for _ in models]
    for each in bursts:
        next(each)  # the prompt
        next(each)  # compiles
    for _ in range(bench.rounds):
        for times, each in zip(taken, bursts, strict=True):
            times.append(_milliseconds(each) / bench.burst)
    return [statistics.median(times) for times in taken]


def cache_bytes(config: ModelConfig, bench: Bench, length: int) -> int:
    """Bytes of the cache that ``per_token`` holds."""
    return init_cache(config, bench.batch_size, cache_capacity(length), 512).num_bytes


def _milliseconds(bursts: Iterator[Any]) -> float:
    began = time.perf_counter()
    next(bursts)
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    run_script(main)
