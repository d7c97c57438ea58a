"""Which stored tensors make up a model, whatever layout they came in.

Nothing decides on a layout beforehand: each tensor found says by its own name and shape what it is. What is
understood beside the released layout (``key_map``):

- norms of Gated DeltaNet layers called attention_layer_norm and feedforward_layer_norm, and the attention layers'
  post_attention_layernorm called feedforward_layer_norm (transformers' ``save_pretrained``);
- short convolutions cut into three equal parts where their widths differ (the same);
- short convolutions fused in one conv1d (transformers in memory);
- out_proj and norm for o_proj and o_norm (some OLMo-core exports);
- lm_head stored beside the embedding that it is tied to.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hybrid_jax.checkpoints.key_map import Entry, Index, key_map
from hybrid_jax.checkpoints.safetensors_reader import DTYPES, StoredTensor
from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError

_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)")
_CONVS = tuple(f"linear_attn.{part}_conv1d.weight" for part in "qkv")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Family -> other name within a layer -> released names of what it holds, and what to say of it.
_RENAMED = "norms called attention_layer_norm and feedforward_layer_norm"
_EXPORTED = "out_proj and norm for o_proj and o_norm"
_ALIASES: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
    "olmo_hybrid": {
        "attention_layer_norm.weight": (("input_layernorm.weight",), _RENAMED),
        "feedforward_layer_norm.weight": (("post_attention_layernorm.weight",), _RENAMED),
        "linear_attn.out_proj.weight": (("linear_attn.o_proj.weight",), _EXPORTED),
        "linear_attn.norm.weight": (("linear_attn.o_norm.weight",), _EXPORTED),
        "linear_attn.conv1d.weight": (_CONVS, "q, k and v convolutions fused in conv1d"),
    },
    "olmo3": {},
}
_THIRDS = "q, k and v convolutions cut into three equal parts"
_TIED_HEAD = "lm_head stored beside the embedding it is tied to"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a tensor's values are: ``rows`` of these stored tensors, one below the other."""

    stored: tuple[StoredTensor, ...]
    rows: slice | None = None

    def read(self, index: Index) -> np.ndarray:
        """The part ``index`` of the tensor."""
        if self.rows is None:
            return self.stored[0].read(index)
        return np.concatenate([each.read() for each in self.stored])[self.rows][index]


@dataclass(frozen=True, kw_only=True)
class Match:
    """What was found for a model.

    Attributes:
        sources: by the tensors' released names.
        variations: how the layout differs from the released one, in words.
        tied_head: a stored head, which must equal the embedding.
        problems: one line for each tensor that does not fit.
    """

    sources: dict[str, Source]
    variations: tuple[str, ...]
    tied_head: StoredTensor | None
    problems: tuple[str, ...]

    def check(self, where: object) -> None:
        """Raise InputError with every problem at once, if there is one."""
        if self.problems:
            raise InputError("\n  ".join([f"{where}: the weights do not fit config.json:", *self.problems]))


def match_tensors(config: ModelConfig, found: Mapping[str, StoredTensor]) -> Match:
    """Find every tensor of the model among ``found``; problems are collected, not raised."""
    entries = {entry.name: entry for entry in key_map(config)}
    given: dict[str, list[Source]] = {name: [] for name in entries}
    expected: dict[str, tuple[int, ...]] = {}
    variations: dict[str, None] = {}
    problems = []
    for name, stored in found.items():
        targets, variation = _targets(config, name)
        if not all(target in entries for target in targets):
            problems.append(f"unexpected: {name} {list(stored.shape)}")
            continue
        if stored.dtype not in DTYPES:
            problems.append(f"dtype of {name}: found {stored.dtype}, expected one of {', '.join(DTYPES)}")
        if variation is not None:
            variations[variation] = None
        expected[name] = _joined_shape([entries[target] for target in targets])
        if name == _HEAD and config.tie_word_embeddings:
            continue
        start = 0
        for target in targets:
            stop = start + entries[target].shape[0]
            rows = slice(start, stop) if len(targets) > 1 else None
            given[target].append(Source(stored=(stored,), rows=rows))
            start = stop

    sources = {}
    for name, entry in entries.items():
        if len(given[name]) == 1:
            sources[name] = given[name][0]
        elif given[name]:
            origins = " and ".join(source.stored[0].name for source in given[name])
            problems.append(f"mapped twice: {name}, from {origins}")
        else:
            problems.append(f"missing: {name}, expected {list(entry.shape)}")
    for convs in _convs_by_layer(entries):
        thirds = _thirds(convs, sources)
        if thirds:
            sources.update(thirds)
            expected.update((stored.name, stored.shape) for stored in thirds[convs[0].name].stored)
            variations[_THIRDS] = None
    problems += [
        f"wrong shape: {name}, found {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if found[name].shape != shape
    ]
    return Match(
        sources=sources,
        variations=tuple(variations),
        tied_head=found.get(_HEAD) if config.tie_word_embeddings else None,
        problems=tuple(problems),
    )


def _targets(config: ModelConfig, name: str) -> tuple[tuple[str, ...], str | None]:
    """Released names of what the tensor called ``name`` holds, and the variation it is a sign of."""
    if name == _HEAD and config.tie_word_embeddings:
        return (_EMBEDDING,), _TIED_HEAD
    in_layer = _LAYER.fullmatch(name)
    if in_layer is None:
        return (name,), None
    layer, inner = in_layer.groups()
    targets, variation = _ALIASES[config.model_type].get(inner, ((inner,), None))
    return tuple(layer + target for target in targets), variation


def _joined_shape(entries: list[Entry]) -> tuple[int, ...]:
    return (sum(entry.shape[0] for entry in entries), *entries[0].shape[1:])


def _convs_by_layer(entries: Mapping[str, Entry]) -> list[list[Entry]]:
    layers = [name.removesuffix(_CONVS[0]) for name in entries if name.endswith(_CONVS[0])]
    return [[entries[layer + conv] for conv in _CONVS] for layer in layers]


def _thirds(convs: list[Entry], sources: Mapping[str, Source]) -> dict[str, Source]:
    """Sources of a layer's convolutions if they were joined and cut anew by ``torch.chunk(3)``, else nothing."""
    if not all(conv.name in sources and sources[conv.name].rows is None for conv in convs):
        return {}
    stored = tuple(sources[conv.name].stored[0] for conv in convs)
    height, *others = _joined_shape(convs)
    part = -(-height // 3)
    cut = [(size, *others) for size in (part, part, height - 2 * part)]
    shapes = [each.shape for each in stored]
    if shapes != cut or shapes == [conv.shape for conv in convs]:
        return {}
    starts = [0, convs[0].shape[0], convs[0].shape[0] + convs[1].shape[0]]
    return {
        conv.name: Source(stored=stored, rows=slice(start, start + conv.shape[0]))
        for conv, start in zip(convs, starts, strict=True)
    }
