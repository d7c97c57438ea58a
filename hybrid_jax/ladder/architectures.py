"""The architectures of a ladder and of the paper's ablations, as models of one size (arXiv 2604.03444, Appendix D).

Attention keeps its place in OLMo 3's pattern of windows whichever layers it is left in: the whole row in every fourth
layer and the last, a window elsewhere. In the 1:1 and the middle hybrid some attention is windowed therefore, as it was
in the paper's ladders (``hybrid-gdn-ladder.py`` and ``hybrid-gdn-middle-ladder.py`` on OLMo-core's branch).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hybrid_jax.config import ModelConfig, RopeParameters
from hybrid_jax.config.model_config import LayerType
from hybrid_jax.errors import InputError
from hybrid_jax.ladder.config import SizeConfig
from hybrid_jax.scaling.points import ARCHITECTURES

_WINDOW_PERIOD = 4


class Architecture(NamedTuple):
    """What makes an architecture of a size.

    Attributes:
        attention: which of so many layers have attention; the others are Gated DeltaNet's.
        changes: to the model's other fields.
    """

    attention: Callable[[int], set[int]]
    changes: Mapping[str, Any] = {}


def _every(period: int) -> Callable[[int], set[int]]:
    """The last of every ``period`` layers, and the last of all."""
    return lambda num_layers: {*range(period - 1, num_layers, period), num_layers - 1}


def _middle(num_layers: int) -> set[int]:
    """A quarter of the layers in the middle, and the last."""
    num_attention = num_layers // 4
    start = (num_layers - num_attention) // 2
    return {*range(start, start + num_attention), num_layers - 1}


_BUILT = {
    "olmo3": Architecture(_every(1), {"model_type": "olmo3"}),
    "olmo_hybrid": Architecture(_every(4)),
    "gdn": Architecture(lambda num_layers: set()),
    "hybrid_1to1": Architecture(_every(2)),
    "hybrid_7to1": Architecture(_every(8)),
    "hybrid_middle": Architecture(_middle),
    "hybrid_positive": Architecture(_every(4), {"linear_allow_neg_eigval": False}),
    "hybrid_no_gate": Architecture(_every(4), {"linear_use_gate": False}),
}
assert _BUILT.keys() == ARCHITECTURES.keys(), "every architecture of a results file can be built"


def model_config(name: str, size: SizeConfig, base: ModelConfig, key_multiple: int) -> ModelConfig:
    """The model of one architecture and size.

    Args:
        name: of the architecture.
        size: its width and depth.
        base: everything else.
        key_multiple: what 3/4 of an attention head's width is rounded up to for a key head of Gated DeltaNet, whose
            value heads are twice as wide.

    Raises:
        InputError: an unknown architecture, or a size that contradicts itself.
    """
    if name not in _BUILT:
        raise InputError(f"architectures: found {name!r}, expected some of {', '.join(_BUILT)}")
    architecture, num_layers = _BUILT[name], size.num_hidden_layers
    attention = architecture.attention(num_layers)
    layer_types = tuple(_layer_type(i, num_layers, attention) for i in range(num_layers))
    key_dim = -(-int(0.75 * size.hidden_size / size.num_attention_heads) // key_multiple) * key_multiple
    windowed = "sliding_attention" in layer_types
    ropes = base.rope_parameters
    fields: dict[str, Any] = {
        "model_type": "olmo_hybrid",
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": size.num_attention_heads,
        "num_key_value_heads": None,
        "head_dim": None,
        "layer_types": layer_types,
        "sliding_window": base.sliding_window if windowed else None,
        "rope_parameters": RopeParameters(
            full_attention=ropes.full_attention if "full_attention" in layer_types else None,
            sliding_attention=ropes.sliding_attention if windowed else None,
        ),
        "linear_num_key_heads": None,
        "linear_num_value_heads": None,
        "linear_key_head_dim": key_dim,
        "linear_value_head_dim": 2 * key_dim,
    }
    return base.replace(**{**fields, **architecture.changes})


def _layer_type(index: int, num_layers: int, attention: set[int]) -> LayerType:
    if index not in attention:
        return "linear_attention"
    whole = index % _WINDOW_PERIOD == _WINDOW_PERIOD - 1 or index == num_layers - 1
    return "full_attention" if whole else "sliding_attention"
