"""Floating point operations that a model's definition asks for, whatever an implementation adds to them."""

from hybrid_jax.config.model_config import LayerSpec, ModelConfig


def training_flops_per_token(config: ModelConfig, length: int) -> int:
    """Forward and backward of one token in rows of ``length``, as OLMo-core counts (``flops.py`` of its modules).

    Six for each weight of a matrix; 12 h d_h min(window, T) for attention, without halving for causality; three times
    the forward cost 2 * 4 (2k + v) + 8 N d_k d_v of a Gated DeltaNet layer's convolutions and recurrence, of which
    OLMo-core counts the forward pass alone. Recomputation (remat), norms and the embedding's look-up do not count.
    """
    layers = sum(_layer_flops(config, spec, length) for spec in config.layer_specs)
    return layers + 6 * config.hidden_size * config.vocab_size


def _layer_flops(config: ModelConfig, spec: LayerSpec, length: int) -> int:
    width = config.hidden_size
    mlp = 6 * 3 * width * config.intermediate_size
    if spec.layer_type == "linear_attention":
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = config.linear_num_value_heads * config.linear_value_head_dim
        gate = values if config.linear_use_gate else 0
        weights = width * (2 * keys + 2 * values + gate + 2 * config.linear_num_value_heads)
        convolutions = 2 * config.linear_conv_kernel_dim * (2 * keys + values)
        recurrence = 8 * values * config.linear_key_head_dim
        return mlp + 6 * weights + 3 * (convolutions + recurrence)
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    seen = length if spec.window is None else min(spec.window, length)
    return mlp + 6 * width * (2 * queries + 2 * keys) + 12 * queries * seen
