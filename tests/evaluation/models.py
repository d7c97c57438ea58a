"""Small models with random weights, and what one long pass of them gives."""

from functools import cache

import jax
import numpy as np

from hybrid_jax.config import ModelConfig
from hybrid_jax.config.rope import Rope, RopeParameters
from hybrid_jax.models import CausalLM, create_model
from tests.training.toy import MODEL, VOCAB_SIZE, toy_model

LONGEST = 410


@cache
def hybrid_model() -> CausalLM:
    """One linear layer and one of attention with rotary positions."""
    rope = RopeParameters(full_attention=Rope())
    return create_model(toy_model(rope_parameters=rope, max_position_embeddings=LONGEST))


def olmo3_model() -> CausalLM:
    """One layer with a sliding window of 8 tokens and one that sees all before."""
    sizes = {name: MODEL[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    layers = ("sliding_attention", "full_attention")
    return create_model(
        ModelConfig.preset("tiny_olmo3", **sizes, num_hidden_layers=2, layer_types=layers, sliding_window=8)
    )


def random_ids(*lengths) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(3, VOCAB_SIZE, length) for length in lengths]


def one_pass(model: CausalLM, ids) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of every token but the first, and whether it is the likeliest."""
    logits = logits_of(model, ids)[:-1]
    labels = np.asarray(ids[1:])
    log_probs = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels]
    return log_probs, np.argmax(logits, axis=1) == labels


def logits_of(model: CausalLM, ids) -> np.ndarray:
    """Logits after each token; one program for all lengths."""
    padded = np.zeros((1, LONGEST), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(model(padded).logits[0, : len(ids)])
