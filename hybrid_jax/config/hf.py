"""ModelConfig to and from the contents of Hugging Face's config.json.

Rules for positions follow transformers 5.23 (``Olmo3Config.convert_rope_params_to_dict`` and
``PreTrainedConfig.convert_rope_params_to_dict``), older ``rope_theta`` / ``rope_scaling`` fields included.
"""

import warnings
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from hybrid_jax.config.rope import Rope, RopeParameters
from hybrid_jax.errors import InputError

if TYPE_CHECKING:
    from hybrid_jax.config.model_config import ModelConfig

ARCHITECTURES = {"olmo_hybrid": "OlmoHybridForCausalLM", "olmo3": "Olmo3ForCausalLM"}
# What transformers assumes where config.json is silent and its class default differs from ours.
_SILENT_DEFAULTS: dict[str, dict[str, Any]] = {
    "olmo_hybrid": {},
    "olmo3": {
        "vocab_size": 50_304,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "eos_token_id": 50_279,
        "pad_token_id": 1,
    },
}
_SILENT_THETA = {"olmo_hybrid": 10_000.0, "olmo3": 500_000.0}
# Fields that would change the numbers and that no released model uses.
_UNSUPPORTED = {"attention_bias": False, "hidden_act": "silu"}
_OWN_FIELDS = ("model_type", "rope_parameters", "dtype", "remat", "context_parallel")


def fields_from_hf(hf_config: dict[str, Any]) -> dict[str, Any]:
    """ModelConfig's fields from a config.json; fields of transformers that do not shape the model are passed over.

    Raises:
        InputError: unknown ``model_type``, or a field that this project cannot honour.
    """
    from hybrid_jax.config.model_config import ModelConfig

    model_type = hf_config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise InputError(
            f"config.json: model_type: found {model_type!r}, expected one of {', '.join(ARCHITECTURES)}"
        )
    for name, supported in _UNSUPPORTED.items():
        if hf_config.get(name, supported) != supported:
            raise InputError(
                f"config.json: {name}: found {hf_config[name]!r}, only {supported!r} is supported"
            )
    found = dict(_SILENT_DEFAULTS[model_type])
    for field in fields(ModelConfig):
        if field.name in hf_config and field.name not in _OWN_FIELDS:
            value = hf_config[field.name]
            found[field.name] = tuple(value) if isinstance(value, list) else value
    found["model_type"] = model_type
    found["rope_parameters"] = _rope_from_hf(model_type, hf_config)
    return found


def _rope_from_hf(model_type: str, hf_config: dict[str, Any]) -> RopeParameters:
    given = hf_config.get("rope_parameters")
    max_length = hf_config.get("max_position_embeddings") or _SILENT_DEFAULTS[model_type].get(
        "max_position_embeddings"
    )
    if model_type == "olmo_hybrid":
        flat = dict(hf_config.get("rope_scaling") or given or {})
        if "full_attention" in flat:
            return RopeParameters(
                full_attention=_rope(flat["full_attention"], 10_000.0, max_length),
                sliding_attention=_rope(flat.get("sliding_attention"), 10_000.0, max_length),
            )
        if "rope_theta" not in flat and "rope_theta" not in hf_config:
            warnings.warn(
                "config.json has no rope_theta: like transformers, taking rotary positions with theta 10000. "
                'A model without positions says "rope_parameters": {"rope_theta": null}.',
                stacklevel=4,
            )
        theta = hf_config.get("rope_theta", _SILENT_THETA[model_type])
        return RopeParameters(full_attention=_rope(flat, theta, max_length))
    nested = dict(given or {})
    if nested and not nested.keys() & {"full_attention", "sliding_attention"}:
        warnings.warn(
            "config.json: rope_parameters of olmo3 must be nested by layer type; like transformers, ignoring the "
            f"flat {nested} and taking theta 500000.",
            stacklevel=4,
        )
    full = {**(nested.get("full_attention") or {}), **(hf_config.get("rope_scaling") or {})}
    # transformers hands the old top-level rope_theta to full layers only.
    theta = hf_config.get("rope_theta", _SILENT_THETA[model_type])
    return RopeParameters(
        full_attention=_rope(full, theta, max_length),
        sliding_attention=_rope(nested.get("sliding_attention") or {}, _SILENT_THETA[model_type], max_length),
    )


def _rope(given: dict[str, Any] | None, default_theta: float | None, max_length: int | None) -> Rope | None:
    """A Rope from one of transformers' dictionaries; None where its ``rope_theta`` is null."""
    if given is None:
        return None
    known = {"rope_theta": default_theta, **given}
    known.setdefault("rope_type", known.pop("type", "default"))
    if known["rope_theta"] is None:
        return None
    if known.pop("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise InputError("config.json: rope_parameters.partial_rotary_factor: only 1.0 is supported")
    unknown = known.keys() - {field.name for field in fields(Rope)}
    if unknown:
        raise InputError(f"config.json: rope_parameters: found unsupported {', '.join(sorted(unknown))}")
    if known["rope_type"] not in ("default", "yarn"):
        raise InputError(
            f"config.json: rope_type: found {known['rope_type']!r}, expected 'default' or 'yarn'"
        )
    if known["rope_type"] == "yarn":
        known.setdefault("original_max_position_embeddings", max_length)
    return Rope(**{name: value for name, value in known.items() if value is not None})


def hf_from_config(config: "ModelConfig") -> dict[str, Any]:
    """The contents of config.json for ``config``.

    Warns where transformers has no way to say the same (all-linear models, sliding windows in a hybrid, NoPE in
    OLMo 3); this project still reads such a file back.
    """
    linear = config.model_type == "olmo_hybrid"
    written: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
    }
    for field in fields(config):
        if field.name in _OWN_FIELDS or (field.name.startswith("linear_") and not linear):
            continue
        value = getattr(config, field.name)
        written[field.name] = list(value) if isinstance(value, tuple) else value
    if config.head_dim * config.num_attention_heads == config.hidden_size:
        del written["head_dim"]
    if linear and config.sliding_window is None:
        del written["sliding_window"]
    if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
        written["pad_token_id"] = None  # torch refuses a padding index outside its embedding
    ropes = config.rope_parameters
    full, sliding = _rope_to_hf(ropes.full_attention), _rope_to_hf(ropes.sliding_attention)
    if not linear or "sliding_attention" in config.layer_types:
        written["rope_parameters"] = {"full_attention": full, "sliding_attention": sliding}
    else:
        written["rope_parameters"] = full
    written.update(
        hidden_act="silu", attention_bias=False, attention_dropout=0.0, bos_token_id=None, use_cache=True
    )
    for reason in _beyond_transformers(config):
        warnings.warn(f"transformers cannot load this model: {reason}. hybrid_jax can.", stacklevel=3)
    return written


def _rope_to_hf(rope: Rope | None) -> dict[str, Any]:
    if rope is None:
        return {"rope_theta": None, "rope_type": "default"}
    if rope.rope_type == "default":
        return {"rope_theta": rope.rope_theta, "rope_type": "default"}
    return {name: value for name, value in asdict(rope).items() if value is not None}


def _beyond_transformers(config: "ModelConfig") -> list[str]:
    reasons = []
    types = set(config.layer_types)
    if config.model_type == "olmo_hybrid":
        if "full_attention" not in types:
            reasons.append("its OlmoHybrid wants at least one full-attention layer")
        if "linear_attention" not in types:
            reasons.append("its OlmoHybrid wants at least one linear-attention layer")
        if "sliding_attention" in types:
            reasons.append("its OlmoHybrid has no sliding windows")
        if not config.linear_use_gate:
            reasons.append("its OlmoHybrid has an output gate in every linear layer")
    elif any(spec.rope is None for spec in config.layer_specs):
        reasons.append("its Olmo3 has no layers without rotary positions")
    return reasons
