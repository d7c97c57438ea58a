"""The language model: embedding, layers, norm, head."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError
from hybrid_jax.models.block import Block, LayerStack, layer_index
from hybrid_jax.models.cache import Cache
from hybrid_jax.models.linear import Embed, Linear
from hybrid_jax.models.norm import RMSNorm
from hybrid_jax.models.paths import gather_module
from hybrid_jax.models.tokens import describe_part, describe_tokens
from hybrid_jax.sharding.manual import axis_size


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CausalLMOutput:
    """logits [B, T, vocab] float32, and a cache from which the rows can be continued."""

    logits: Float[Array, "B T vocab"]
    cache: Cache


class CausalLM(nnx.Module):
    """A decoder of Gated DeltaNet and attention layers.

    A module is a pytree: it goes through jax.jit, jax.grad, jax.tree.map and jax.eval_shape like any other.
    Parameters keep the dtype they have (float32 when made here); matmuls run in ``config.dtype``.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        sizes = (config.vocab_size, config.hidden_size, config.initializer_range, config.dtype)
        self.embed_tokens = Embed(*sizes, rngs=rngs)
        # Stacks of layers; single ones in a model made by ``unstacked``.
        self.groups: nnx.List[Any] = nnx.List(
            [LayerStack(config, group, rngs=rngs) for group in config.layer_groups]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        head = (config.hidden_size, config.vocab_size, config.initializer_range, config.dtype)
        self.lm_head = None if config.tie_word_embeddings else Linear(*head, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "B T"],
        segment_ids: Int[Array | np.ndarray, "B T"] | None = None,
        positions: Int[Array | np.ndarray, "B T"] | None = None,
        cache: Cache | None = None,
    ) -> CausalLMOutput:
        """Logits of every token's successor.

        Args:
            input_ids: token ids.
            segment_ids: document of each token for packed rows: a document is a run of one non-zero id, 0 is
                padding, and nothing passes between documents. None: each row is one document.
            positions: positions for rotary embeddings; None counts from 0 in each document.
            cache: what the rows have seen, from an earlier call or ``init_cache``; never changed.

        Returns:
            Logits, float32, and the cache after these tokens.

        Raises:
            InputError: a token id outside the vocabulary (checked where ids are concrete, not while tracing).
        """
        _check_ids(input_ids, self.config.vocab_size)
        arrays = [
            None if x is None else jnp.asarray(x, jnp.int32) for x in (input_ids, segment_ids, positions)
        ]
        return _forward(self, *arrays, cache)

    def hidden_states(
        self,
        input_ids: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Activations after the final norm, in the compute dtype, for training: no cache, ``config.remat`` obeyed."""
        if axis_size("context") > 1:
            segment_ids = jnp.ones_like(input_ids) if segment_ids is None else segment_ids
            tokens = describe_part(segment_ids, positions, "context")
        else:
            tokens, _ = describe_tokens(input_ids.shape, segment_ids, positions, None)
        x = self.embed_tokens(input_ids)
        for stack in self.groups:
            x = stack.without_cache(x, tokens, self.config)
        return self.norm(x)

    def gathered_ends(self) -> "CausalLM":
        """This model with embedding and head whole where they are split over ``fsdp``; layers gather their own."""
        model = nnx.clone(self)
        model.embed_tokens = gather_module(self.embed_tokens, "embed_tokens.", self.config.dtype)
        if self.lm_head is not None:
            model.lm_head = gather_module(self.lm_head, "lm_head.", self.config.dtype)
        return model

    def hidden_states_and_cache(
        self,
        input_ids: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None,
        positions: Int[Array, "B T"] | None,
        cache: Cache | None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Activations after the final norm, and the cache after these tokens."""
        tokens, row = describe_tokens(input_ids.shape, segment_ids, positions, cache)
        x = self.embed_tokens(input_ids)
        layers = []
        for number, stack in enumerate(self.groups):
            x, caches = stack(x, tokens, None if cache is None else cache.layers[number])
            layers.append(caches)
        return self.norm(x), Cache(layers=tuple(layers), **row)

    def output_kernel(self) -> Float[Array, "D vocab"]:
        """What turns hidden states into logits: the head's kernel, or the embedding where they are tied."""
        return self.embed_tokens.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... vocab"]:
        """Float32 logits of hidden states."""
        kernel = self.output_kernel().astype(hidden.dtype)
        return jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)

    def layer(self, index: int) -> Block:
        """Layer ``index`` on its own, for a closer look: a module with that layer's parameters."""
        group, repeat, position = layer_index(self.config, index)
        return self.groups[group].layer(repeat, position)

    def unstacked(self, cache: Cache) -> tuple["CausalLM", Cache]:
        """The same model and cache with every layer apart: slower to compile, no copying of slices when run.

        For decoding, where reading the parameters is what takes the time. The layers' parameters are copied, one
        repeat of a group at a time; embedding, norm and head are shared.
        """
        model = nnx.clone(self)
        layers = [
            layer
            for stack, caches in zip(self.groups, cache.layers, strict=True)
            for repeat in range(stack.num_repeats)
            for layer in zip(*_take((list(stack.layers), caches), repeat), strict=True)
        ]
        model.groups = nnx.List([block for block, _ in layers])
        return model, replace(cache, layers=tuple(layer_cache for _, layer_cache in layers))


def create_model(config: ModelConfig, seed: int = 0) -> CausalLM:
    """A freshly initialised model, float32, made in one compiled call."""
    return jax.jit(lambda key: CausalLM(config, rngs=nnx.Rngs(key)))(jax.random.key(seed))


def count_parameters(config: ModelConfig, *, with_input_embedding: bool = True) -> int:
    """Number of parameters; scaling laws leave out the input embedding."""
    model = jax.eval_shape(partial(CausalLM, config), rngs=nnx.Rngs(0))
    total = sum(leaf.size for leaf in jax.tree.leaves(model))
    return total if with_input_embedding else total - config.vocab_size * config.hidden_size


@jax.jit
def _forward(
    model: CausalLM, input_ids: Array, segment_ids: Array | None, positions: Array | None, cache: Cache | None
) -> CausalLMOutput:
    hidden, cache = model.hidden_states_and_cache(input_ids, segment_ids, positions, cache)
    return CausalLMOutput(logits=model.logits(hidden), cache=cache)


def _check_ids(input_ids: Array | np.ndarray, vocab_size: int) -> None:
    if isinstance(input_ids, jax.core.Tracer) or 0 in np.shape(input_ids):
        return
    low, high = int(np.min(input_ids)), int(np.max(input_ids))
    if low < 0 or high >= vocab_size:
        found = low if low < 0 else high
        raise InputError(f"input_ids: found token id {found}, expected 0 <= id < vocab_size {vocab_size}")


@jax.jit
def _take(stacked: Any, repeat: Int[Array, ""]) -> Any:
    """One repeat of stacked modules and caches; the same program for every repeat."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, repeat, keepdims=False), stacked)
