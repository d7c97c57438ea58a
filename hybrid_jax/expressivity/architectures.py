"""The architectures that are compared, as changes to one model's configuration."""

from typing import NamedTuple

from hybrid_jax.config import ModelConfig
from hybrid_jax.config.model_config import LayerType
from hybrid_jax.errors import InputError

_LINEAR: LayerType = "linear_attention"
_FULL: LayerType = "full_attention"


class Architecture(NamedTuple):
    """A pattern of layers, and whether linear ones may have negative eigenvalues (beta up to 2 instead of 1).

    Attributes:
        label: as in tables and figures.
        pattern: repeated over the model's layers.
        neg_eigval: of linear layers.
    """

    label: str
    pattern: tuple[LayerType, ...]
    neg_eigval: bool = True


def _hybrid(num_linear: int) -> tuple[LayerType, ...]:
    return (_LINEAR,) * num_linear + (_FULL,)


ARCHITECTURES = {
    "transformer": Architecture("transformer", (_FULL,)),
    "gdn_neg": Architecture("GDN (-)", (_LINEAR,)),
    "gdn_pos": Architecture("GDN (+)", (_LINEAR,), neg_eigval=False),
    "hybrid_neg": Architecture("hybrid 3:1 (-)", _hybrid(3)),
    "hybrid_pos": Architecture("hybrid 3:1 (+)", _hybrid(3), neg_eigval=False),
    "hybrid_1to1_neg": Architecture("hybrid 1:1 (-)", _hybrid(1)),
    "hybrid_1to1_pos": Architecture("hybrid 1:1 (+)", _hybrid(1), neg_eigval=False),
    "hybrid_7to1_neg": Architecture("hybrid 7:1 (-)", _hybrid(7)),
    "hybrid_7to1_pos": Architecture("hybrid 7:1 (+)", _hybrid(7), neg_eigval=False),
}


def architecture(name: str) -> Architecture:
    """The architecture called ``name``. Raises InputError if there is none."""
    if name not in ARCHITECTURES:
        raise InputError(f"architectures: found {name!r}, expected some of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def model_config(name: str, base: ModelConfig, vocab_size: int) -> ModelConfig:
    """``base`` with the layers of architecture ``name``, at least one whole pattern of them.

    Raises:
        InputError: an unknown architecture, or a number of layers that its pattern does not divide.
    """
    chosen = architecture(name)
    num_layers = max(base.num_hidden_layers, len(chosen.pattern))
    if num_layers % len(chosen.pattern):
        raise InputError(
            f"model.num_hidden_layers: found {base.num_hidden_layers}, expected a multiple of {len(chosen.pattern)} "
            f"for {name}"
        )
    return base.replace(
        model_type="olmo_hybrid",
        vocab_size=vocab_size,
        num_hidden_layers=num_layers,
        layer_types=chosen.pattern * (num_layers // len(chosen.pattern)),
        linear_allow_neg_eigval=chosen.neg_eigval,
        eos_token_id=None,
        pad_token_id=0,
    )
