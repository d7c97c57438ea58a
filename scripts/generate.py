"""Continue a prompt with a model from a Hugging Face folder or the hub: ``generate.py runs/quickstart/hf "def "``."""

import sys
import time
from dataclasses import dataclass
from typing import Literal

import tyro
from tokenizers import decoders

from hybrid_jax.checkpoints import from_pretrained
from hybrid_jax.checkpoints.model_folder import find_folder
from hybrid_jax.cli import run_script
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.generation import stream


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to generate.

    Attributes:
        model: a folder with config.json, safetensors and tokenizer.json, or an id on the hub.
        prompt: the text to continue; - reads it from stdin.
        max_new_tokens: most tokens to make; fewer come where the model ends its text.
        temperature: 0 takes the likeliest token each time.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the fewest likeliest tokens with at least this probability.
        eos_token_id: the id that ends the text; the model's own if not given, -1 for none.
        seed: for drawing.
        dtype: of the weights and matmuls.
        revision: branch, tag or commit on the hub.
    """

    model: tyro.conf.Positional[str]
    prompt: tyro.conf.Positional[str]
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    eos_token_id: int | None = None
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    revision: str | None = None


def main() -> None:
    """Load, then write the text as it is made; speed goes to stderr."""
    options = tyro.cli(Options, description=__doc__)
    folder = find_folder(options.model, options.revision)
    tokenizer = load_tokenizer(folder)
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    prompt = tokenizer.encode(text).ids
    bursts = stream(
        from_pretrained(folder, dtype=options.dtype),
        [prompt],
        options.max_new_tokens,
        options.temperature,
        options.top_k,
        options.top_p,
        options.eos_token_id,
        options.seed,
    )
    print(text, end="", flush=True)
    # Holds back the bytes of a character until all of them are there.
    decoder = decoders.DecodeStream(ids=prompt, skip_special_tokens=True)
    made_at = [(0, time.perf_counter())]
    for (tokens,) in bursts:
        made_at.append((made_at[-1][0] + len(tokens), time.perf_counter()))
        print("".join(decoder.step(tokenizer, token) or "" for token in tokens), end="", flush=True)
    print(flush=True)
    print(_speed(len(prompt), made_at), file=sys.stderr)


def _speed(num_prompt_tokens: int, made_at: list[tuple[int, float]]) -> str:
    """Tokens made and seconds; the rate counts from the second look on, after everything is compiled."""
    num_tokens, end = made_at[-1]
    line = (
        f"{num_prompt_tokens} prompt tokens, {num_tokens} new in {end - made_at[0][1]:.1f} s with compiling"
    )
    if len(made_at) < 4:
        return line
    compiled, start = made_at[2]
    return f"{line}; {(num_tokens - compiled) / (end - start):.1f} tokens/s once compiled"


if __name__ == "__main__":
    run_script(main)
