"""ModelConfig: one frozen description of a decoder, with Hugging Face's field names."""

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hybrid_jax.config.presets import PRESETS
from hybrid_jax.config.rope import Rope, RopeParameters
from hybrid_jax.errors import InputError

LAYER_TYPES = ("linear_attention", "full_attention", "sliding_attention")
LayerType = Literal["linear_attention", "full_attention", "sliding_attention"]

# Fields that may be left out and are resolved when the object is made: never None for whoever reads them.
if TYPE_CHECKING:
    Derived = int
    DerivedLayerTypes = tuple[LayerType, ...]
else:
    Derived = int | None
    DerivedLayerTypes = tuple[LayerType, ...] | None
_DERIVED: Any = None


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What one layer is: its token mixer, and for attention its window (tokens, None = all) and positions."""

    layer_type: LayerType
    window: int | None = None
    rope: Rope | None = None


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """A run of layers that repeats ``specs`` ``num_repeats`` times, starting at layer ``first_layer``."""

    specs: tuple[LayerSpec, ...]
    num_repeats: int
    first_layer: int


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder of Gated DeltaNet and attention layers; the defaults are the released OLMo Hybrid 7B.

    Field names are those of transformers' ``OlmoHybridConfig`` and ``Olmo3Config``. Fields left None take the
    family's defaults when the object is made. ``dtype`` is the compute dtype of matmuls; norms, gates, decay,
    recurrent state, logits and loss are float32 whatever it says. ``linear_use_gate`` false leaves the output gate out
    of linear layers, whose outputs are then only normalised. ``remat`` chooses what the backward pass
    recomputes: "none", the whole "block", or all but the matmul outputs ("dots"). ``context_parallel`` chooses how
    linear layers run where rows are split over devices: by combining the states of their parts ("prefix", any number
    of devices) or by exchanging tokens for heads ("heads", where key heads divide).

    Raises:
        InputError: a field's value is impossible or contradicts another's.
    """

    model_type: Literal["olmo_hybrid", "olmo3"] = "olmo_hybrid"
    vocab_size: int = 100_352
    hidden_size: int = 3840
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 30
    num_key_value_heads: Derived = _DERIVED
    head_dim: Derived = _DERIVED
    layer_types: DerivedLayerTypes = _DERIVED
    sliding_window: int | None = None
    rope_parameters: RopeParameters = RopeParameters()
    max_position_embeddings: int = 65_536
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    linear_num_key_heads: Derived = _DERIVED
    linear_num_value_heads: Derived = _DERIVED
    linear_key_head_dim: Derived = _DERIVED
    linear_value_head_dim: Derived = _DERIVED
    linear_conv_kernel_dim: int = 4
    linear_allow_neg_eigval: bool = True
    linear_use_gate: bool = True
    linear_a_log_min: float = 0.0
    linear_a_log_max: float = 16.0
    linear_dt_min: float = 0.001
    linear_dt_max: float = 0.1
    linear_dt_init_floor: float = 1e-4
    eos_token_id: int | tuple[int, ...] | None = 100_257
    pad_token_id: int | None = 100_277
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "block", "dots"] = "none"
    context_parallel: Literal["prefix", "heads"] = "prefix"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ):
            _check_positive(name, getattr(self, name))
        heads = self.num_attention_heads
        if self.hidden_size % heads and not self.head_dim:
            raise InputError(
                f"hidden_size: found {self.hidden_size}, expected a multiple of num_attention_heads {heads}"
            )
        key_heads = self.linear_num_key_heads or heads
        key_dim = self.linear_key_head_dim or int(0.75 * self.hidden_size / key_heads)
        derived: dict[str, Any] = {
            "num_key_value_heads": heads,
            "head_dim": self.hidden_size // heads,
            "layer_types": default_layer_types(self.model_type, self.num_hidden_layers),
            "linear_num_key_heads": key_heads,
            "linear_num_value_heads": heads,
            "linear_key_head_dim": key_dim,
            "linear_value_head_dim": 2 * key_dim,
        }
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        for name in (
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "linear_num_key_heads",
            "linear_num_value_heads",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_conv_kernel_dim",
        ):
            _check_positive(name, getattr(self, name))
        _check_choice("model_type", self.model_type, ("olmo_hybrid", "olmo3"))
        _check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        _check_choice("remat", self.remat, ("none", "block", "dots"))
        _check_choice("context_parallel", self.context_parallel, ("prefix", "heads"))
        _check_multiple(
            "num_attention_heads", self.num_attention_heads, "num_key_value_heads", self.num_key_value_heads
        )
        _check_multiple(
            "linear_num_value_heads",
            self.linear_num_value_heads,
            "linear_num_key_heads",
            self.linear_num_key_heads,
        )
        if len(self.layer_types) != self.num_hidden_layers:
            raise InputError(
                f"layer_types: found {len(self.layer_types)} entries, "
                f"expected num_hidden_layers = {self.num_hidden_layers}"
            )
        for index, layer_type in enumerate(self.layer_types):
            _check_choice(f"layer_types[{index}]", layer_type, LAYER_TYPES)
        if self.model_type == "olmo3" and "linear_attention" in self.layer_types:
            raise InputError("layer_types: found 'linear_attention', which model_type 'olmo3' does not have")
        if "sliding_attention" in self.layer_types and not (self.sliding_window and self.sliding_window > 0):
            raise InputError(
                f"sliding_window: found {self.sliding_window}, but layer_types has 'sliding_attention'"
            )
        if self.is_rotary and self.head_dim % 2:
            raise InputError(f"head_dim: found {self.head_dim}, expected an even number for rotary positions")
        for token in self.eos_token_ids:
            if not 0 <= token < self.vocab_size:
                raise InputError(
                    f"eos_token_id: found {token}, expected 0 <= id < vocab_size {self.vocab_size}"
                )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "ModelConfig":
        """The preset called ``name`` (see ``PRESETS``) with some fields replaced.

        Raises:
            InputError: no such preset (with the nearest names), or the result contradicts itself.
        """
        if name not in PRESETS:
            near = difflib.get_close_matches(name, PRESETS) or sorted(PRESETS)
            raise InputError(f"preset: found {name!r}, expected one of {', '.join(near)}")
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def from_hf(cls, hf_config: dict[str, Any]) -> "ModelConfig":
        """Read the contents of a Hugging Face ``config.json`` (``olmo_hybrid`` or ``olmo3``).

        Raises:
            InputError: unknown ``model_type``, or a field this project cannot honour.
        """
        from hybrid_jax.config.hf import fields_from_hf

        return cls(**fields_from_hf(hf_config))

    def to_hf(self) -> dict[str, Any]:
        """The contents of a ``config.json`` that transformers reads as the same model."""
        from hybrid_jax.config.hf import hf_from_config

        return hf_from_config(self)

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields changed."""
        return replace(self, **changes)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """End-of-text ids; empty when there is none."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """One LayerSpec per layer, in order."""
        ropes = self.rope_parameters
        kinds = {
            "linear_attention": LayerSpec(layer_type="linear_attention"),
            "full_attention": LayerSpec(layer_type="full_attention", rope=ropes.full_attention),
            "sliding_attention": LayerSpec(
                layer_type="sliding_attention", window=self.sliding_window, rope=ropes.sliding_attention
            ),
        }
        return tuple(kinds[layer_type] for layer_type in self.layer_types)

    @property
    def is_rotary(self) -> bool:
        """Whether any layer has rotary positions, which end at ``max_position_embeddings``."""
        return any(spec.rope is not None for spec in self.layer_specs)

    @property
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """The layers as runs of a repeating pattern, chosen so that the fewest distinct layers are traced."""
        return group_layers(self.layer_specs)


def default_layer_types(model_type: str, num_layers: int) -> tuple[LayerType, ...]:
    """The family's own pattern: three linear (or sliding) layers, then one of full attention."""
    other: LayerType = "linear_attention" if model_type == "olmo_hybrid" else "sliding_attention"
    types: list[LayerType] = ["full_attention" if i % 4 == 3 else other for i in range(num_layers)]
    if model_type == "olmo_hybrid" and "full_attention" not in types:
        types[-1] = "full_attention"
    return tuple(types)


def group_layers(specs: tuple[LayerSpec, ...]) -> tuple[LayerGroup, ...]:
    """Split ``specs`` into repeating runs with the smallest total period, then the fewest runs."""
    num_layers = len(specs)
    best: list[tuple[int, int, tuple[LayerGroup, ...]]] = [(0, 0, ())] * (num_layers + 1)
    for start in reversed(range(num_layers)):
        options = []
        for period in range(1, num_layers - start + 1):
            pattern = specs[start : start + period]
            repeats = 1
            while specs[start + repeats * period : start + (repeats + 1) * period] == pattern:
                repeats += 1
            traced, runs, rest = best[start + repeats * period]
            group = LayerGroup(specs=pattern, num_repeats=repeats, first_layer=start)
            options.append((traced + period, runs + 1, (group, *rest)))
        best[start] = min(options, key=lambda option: option[:2])
    return best[0][2]


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value <= 0:
        raise InputError(f"{name}: found {value!r}, expected a positive integer")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}: found {value!r}, expected one of {', '.join(choices)}")


def _check_multiple(name: str, value: int, of_name: str, of: int) -> None:
    if value % of:
        raise InputError(f"{name}: found {value}, expected a multiple of {of_name} = {of}")
