"""FLOPs of a token against the parameters' own shapes and against figures worked out by hand."""

from functools import partial

import jax
import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.config.flops import training_flops_per_token
from hybrid_jax.models import create_model
from hybrid_jax.models.paths import named_parameters

LENGTH = 8192


def weights(config: ModelConfig) -> int:
    """Elements of every matrix that multiplies tokens."""
    model = jax.eval_shape(partial(create_model, config))
    return sum(
        leaf.size for name, leaf in named_parameters(model).items() if name.endswith("_proj.kernel")
    ) + (config.hidden_size * config.vocab_size)


def test_hybrid_7b():
    config = ModelConfig.preset("olmo_hybrid_7b")
    attention = 8 * 12 * 30 * 128 * LENGTH
    linear = 24 * 3 * (2 * 4 * (2 * 30 * 96 + 30 * 192) + 8 * 30 * 96 * 192)
    assert training_flops_per_token(config, LENGTH) == 6 * weights(config) + attention + linear


@pytest.mark.parametrize(("length", "seen"), [(8192, 4096), (1024, 1024)])
def test_olmo3_7b_windows(length, seen):
    config = ModelConfig.preset("olmo3_7b")
    attention = 12 * 32 * 128 * (24 * seen + 8 * length)
    assert training_flops_per_token(config, length) == 6 * weights(config) + attention


def test_grouped_heads_and_tied_embeddings_do_not_change_the_rule():
    config = ModelConfig.preset(
        "tiny", num_key_value_heads=2, linear_num_value_heads=8, tie_word_embeddings=True
    )
    assert config.linear_num_value_heads > config.linear_num_key_heads
    attention = 12 * config.num_attention_heads * config.head_dim * 64
    keys, values = config.linear_num_key_heads * 12, config.linear_num_value_heads * 24
    linear = 3 * 3 * (2 * 4 * (2 * keys + values) + 8 * values * 12)
    assert training_flops_per_token(config, 64) == 6 * weights(config) + attention + linear
