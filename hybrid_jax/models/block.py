"""A decoder layer as a short list of residual branches, and a stack of layers that is scanned."""

from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float

from hybrid_jax.config import LayerGroup, LayerSpec, ModelConfig
from hybrid_jax.models.attention import Attention
from hybrid_jax.models.cache import LayerCache
from hybrid_jax.models.gated_delta_net import GatedDeltaNet
from hybrid_jax.models.linear import LINEAR_OUTPUT
from hybrid_jax.models.mlp import MLP
from hybrid_jax.models.norm import RMSNorm
from hybrid_jax.models.paths import gather_module
from hybrid_jax.models.tokens import Tokens
from hybrid_jax.sharding.manual import axis_size, save_unless_gathered


@dataclass(frozen=True)
class Branch:
    """One residual branch, ``x + norm_after(module(norm_before(x)))``, by the names of the layer's modules."""

    module: str
    norm_before: str | None = None
    norm_after: str | None = None


# Norm names are Hugging Face's: post_attention_layernorm stands before the MLP of a linear layer, but after the
# attention of an attention layer.
_BRANCHES = {
    "linear_attention": (
        Branch("linear_attn", norm_before="input_layernorm"),
        Branch("mlp", norm_before="post_attention_layernorm"),
    ),
    "full_attention": (
        Branch("self_attn", norm_after="post_attention_layernorm"),
        Branch("mlp", norm_after="post_feedforward_layernorm"),
    ),
}
_BRANCHES["sliding_attention"] = _BRANCHES["full_attention"]
MIXERS = ("linear_attn", "self_attn")


class Block(nnx.Module):
    """One decoder layer."""

    def __init__(self, config: ModelConfig, spec: LayerSpec, *, rngs: nnx.Rngs) -> None:
        self.branches = _BRANCHES[spec.layer_type]
        for branch in self.branches:
            for norm in (branch.norm_before, branch.norm_after):
                if norm is not None:
                    setattr(self, norm, RMSNorm(config.hidden_size, config.rms_norm_eps))
        if spec.layer_type == "linear_attention":
            self.linear_attn = GatedDeltaNet(config, rngs=rngs)
        else:
            self.self_attn = Attention(config, spec, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], tokens: Tokens, cache: LayerCache | None
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        new_cache: LayerCache | None = None
        for branch in self.branches:
            y = x if branch.norm_before is None else getattr(self, branch.norm_before)(x)
            module = getattr(self, branch.module)
            if branch.module in MIXERS:
                y, new_cache = module(y, tokens, cache)
            else:
                y = module(y)
            x = x + (y if branch.norm_after is None else getattr(self, branch.norm_after)(y))
        return x, new_cache


class LayerStack(nnx.Module):
    """``num_repeats`` repetitions of a pattern of layers; every parameter has a leading dimension of repeats.

    The pattern is traced once and scanned, so that tracing and compiling do not grow with depth. A stack that
    does not repeat runs without a scan.
    """

    def __init__(self, config: ModelConfig, group: LayerGroup, *, rngs: nnx.Rngs) -> None:
        keys = jax.random.split(rngs.params(), (len(group.specs), group.num_repeats))
        self.layers = nnx.List(
            [
                jax.vmap(lambda key, spec=spec: Block(config, spec, rngs=nnx.Rngs(key)))(keys[i])
                for i, spec in enumerate(group.specs)
            ]
        )
        self.num_repeats = group.num_repeats

    def __call__(
        self, x: Float[Array, "B T D"], tokens: Tokens, caches: tuple[LayerCache, ...] | None
    ) -> tuple[Float[Array, "B T D"], tuple[LayerCache, ...]]:
        """Run all repeats; caches are per layer of the pattern, with the same leading dimension."""

        def pattern(
            x: Array, layer: tuple[list[Block], tuple[LayerCache, ...] | None]
        ) -> tuple[Array, tuple]:
            blocks, old = layer
            new = []
            for i, block in enumerate(blocks):
                x, cache = block(x, tokens, None if old is None else old[i])
                new.append(cache)
            return x, tuple(new)

        layers = (list(self.layers), caches)
        if self.num_repeats > 1:
            return jax.lax.scan(pattern, x, layers)
        x, new = pattern(x, jax.tree.map(lambda leaf: leaf[0], layers))
        return x, jax.tree.map(lambda leaf: leaf[None], new)

    def without_cache(
        self, x: Float[Array, "B T D"], tokens: Tokens, config: ModelConfig
    ) -> Float[Array, "B T D"]:
        """Run all repeats for training: nothing is remembered, and ``config.remat`` is obeyed."""

        def run_block(block: Block, x: Array) -> Array:
            return gather_module(block, "", config.dtype)(x, tokens, None)[0]

        if config.remat == "block":
            run_block = jax.checkpoint(run_block)
        elif config.remat == "dots":
            run_block = jax.checkpoint(
                run_block, policy=jax.checkpoint_policies.save_only_these_names(LINEAR_OUTPUT)
            )
        elif axis_size("fsdp") > 1:
            # Whole parameters are gathered again for the gradient: kept, they would fill what splitting them saves.
            run_block = jax.checkpoint(run_block, policy=save_unless_gathered)

        def pattern(x: Array, blocks: list[Block]) -> tuple[Array, None]:
            for block in blocks:
                x = run_block(block, x)
            return x, None

        blocks = list(self.layers)
        if self.num_repeats > 1:
            return jax.lax.scan(pattern, x, blocks)[0]
        return pattern(x, jax.tree.map(lambda leaf: leaf[0], blocks))[0]

    def layer(self, repeat: int, position: int) -> Block:
        """A single layer, its parameters without the leading dimension."""
        return jax.tree.map(lambda leaf: leaf[repeat], self.layers[position])


def layer_index(config: ModelConfig, index: int) -> tuple[int, int, int]:
    """Where layer ``index`` lies: (group, repeat, position in the pattern)."""
    for number, group in enumerate(config.layer_groups):
        offset = index - group.first_layer
        if offset < len(group.specs) * group.num_repeats:
            repeat, position = divmod(offset, len(group.specs))
            return number, repeat, position
    raise IndexError(f"layer {index} of {config.num_hidden_layers}")
