"""Parameter paths, shapes and dtypes of one small model per family, frozen in ``golden/*.json``.

Checkpoints, key maps and sharding rules all lean on these names. After a change that is meant, write them anew with
``python -m tests.house.golden`` and explain the difference in the commit.
"""

import json
from pathlib import Path

import jax
from flax import nnx

from hybrid_jax.config import PRESETS, ModelConfig
from hybrid_jax.models.causal_lm import CausalLM
from hybrid_jax.models.paths import named_parameters

FOLDER = Path(__file__).parent / "golden"
TINY_PRESETS = sorted(name for name in PRESETS if name.startswith("tiny"))


def parameters(preset: str) -> dict[str, str]:
    """Path of every parameter -> "dtype[sizes]", in the order of the tree; nothing is computed."""
    config = ModelConfig.preset(preset)
    model = jax.eval_shape(lambda: CausalLM(config, rngs=nnx.Rngs(0)))
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in named_parameters(model).items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in TINY_PRESETS:
        (FOLDER / f"{name}.json").write_text(json.dumps(parameters(name), indent=1) + "\n", encoding="utf-8")
