"""Named model sizes: plain data, one dictionary of ModelConfig fields each.

Sources: the released 7B configurations; ladder sizes from arXiv 2604.03444, Table 22 and Appendix D.
"""

from typing import Any

from hybrid_jax.config.rope import Rope, RopeParameters

_ROPE = Rope(rope_theta=500_000.0)
_YARN = Rope(rope_theta=500_000.0, rope_type="yarn", factor=8.0, original_max_position_embeddings=8192)
_ROPE_EVERYWHERE = RopeParameters(full_attention=_ROPE, sliding_attention=_ROPE)

# name: hidden_size, num_attention_heads, num_hidden_layers, intermediate_size
_LADDER = {
    "60m": (384, 8, 8, 1536),
    "100m": (512, 8, 12, 2048),
    "190m": (768, 12, 12, 3072),
    "370m": (1024, 16, 16, 4096),
    "600m": (1280, 16, 16, 5120),
    "760m": (1536, 16, 16, 6144),
    "1b": (2048, 16, 16, 8192),
}


def _ladder(size: str) -> dict[str, Any]:
    hidden_size, num_heads, num_layers, intermediate_size = _LADDER[size]
    return {
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "num_hidden_layers": num_layers,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 8192,
    }


# The ladder rounds GDN's key width up to 128 at every size (Appendix D.3), values to twice that.
_LADDER_GDN = {"model_type": "olmo_hybrid", "linear_key_head_dim": 128, "linear_value_head_dim": 256}

PRESETS: dict[str, dict[str, Any]] = {
    # As released after long-context extension: no positions (DRoPE). Pretraining used RoPE theta 5e5 at 8192.
    "olmo_hybrid_7b": {"model_type": "olmo_hybrid"},
    "olmo3_7b": {
        "model_type": "olmo3",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "sliding_window": 4096,
        "rope_parameters": RopeParameters(full_attention=_YARN, sliding_attention=_ROPE),
    },
    "tiny": {
        "model_type": "olmo_hybrid",
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 24,
        "max_position_embeddings": 256,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "tiny_olmo3": {
        "model_type": "olmo3",
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 8,
        "max_position_embeddings": 256,
        "rope_parameters": _ROPE_EVERYWHERE,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}
for _size in _LADDER:
    PRESETS[f"olmo_hybrid_{_size}"] = {
        **_ladder(_size),
        **_LADDER_GDN,
        "rope_parameters": RopeParameters(full_attention=_ROPE),
    }
    PRESETS[f"olmo3_{_size}"] = {
        **_ladder(_size),
        "model_type": "olmo3",
        "sliding_window": 4096,
        "rope_parameters": _ROPE_EVERYWHERE,
    }
    PRESETS[f"gdn_{_size}"] = {
        **_ladder(_size),
        **_LADDER_GDN,
        "layer_types": ("linear_attention",) * _LADDER[_size][2],
    }
