"""The Gated DeltaNet layer of OLMo Hybrid (arXiv 2412.06464, 2604.03444; transformers ``OlmoHybridGatedDeltaNet``)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from hybrid_jax.config import ModelConfig
from hybrid_jax.models.cache import LinearCache
from hybrid_jax.models.context_rule import heads_rule, prefix_rule
from hybrid_jax.models.linear import Linear, flatten_rows
from hybrid_jax.models.norm import GatedRMSNorm
from hybrid_jax.models.short_conv import ShortConv, halos
from hybrid_jax.models.tokens import Tokens
from hybrid_jax.sharding.manual import axis_size
from pallas_kernels.gated_delta_rule import (
    SAVED_FOR_BACKWARD,
    chunk_gated_delta_rule,
    recurrent_gated_delta_rule,
)

# The layer's own output norm, whatever the model's eps (fla's default, kept by the release).
_O_NORM_EPS = 1e-5
_HALOS = "short_conv_halos"


class GatedDeltaNet(nnx.Module):
    """Short convolutions, data-dependent decay and write strength, the gated delta rule, and a norm, gated or not.

    Decay, write strength, state and output norm are float32; projections run in the compute dtype.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        hidden, stddev, dtype = config.hidden_size, config.initializer_range, config.dtype
        num_heads = config.linear_num_value_heads
        key_width = config.linear_num_key_heads * config.linear_key_head_dim
        value_width = num_heads * config.linear_value_head_dim
        self.q_proj = Linear(hidden, key_width, stddev, dtype, rngs=rngs)
        self.k_proj = Linear(hidden, key_width, stddev, dtype, rngs=rngs)
        self.v_proj = Linear(hidden, value_width, stddev, dtype, rngs=rngs)
        self.a_proj = Linear(hidden, num_heads, stddev, dtype, rngs=rngs)
        self.b_proj = Linear(hidden, num_heads, stddev, dtype, rngs=rngs)
        self.g_proj = (
            Linear(hidden, value_width, stddev, dtype, rngs=rngs) if config.linear_use_gate else None
        )
        self.o_proj = Linear(value_width, hidden, stddev, dtype, sum_axis="tensor", rngs=rngs)
        self.q_conv1d = ShortConv(key_width, config, rngs=rngs)
        self.k_conv1d = ShortConv(key_width, config, rngs=rngs)
        self.v_conv1d = ShortConv(value_width, config, rngs=rngs)
        self.o_norm = GatedRMSNorm(config.linear_value_head_dim, _O_NORM_EPS)
        self.A_log = nnx.Param(_init_a_log(rngs.params(), config))
        self.dt_bias = nnx.Param(_init_dt_bias(rngs.params(), config))
        self.key_head_dim = config.linear_key_head_dim
        self.value_head_dim = config.linear_value_head_dim
        self.context_parallel = config.context_parallel
        self.beta_range = 2.0 if config.linear_allow_neg_eigval else 1.0

    def __call__(
        self, x: Float[Array, "B T D"], tokens: Tokens, cache: LinearCache | None
    ) -> tuple[Float[Array, "B T D"], LinearCache | None]:
        rows = flatten_rows(x)
        projections = (self.q_proj, self.k_proj, self.v_proj, self.a_proj, self.b_proj)
        inputs = [project(rows).reshape(*x.shape[:2], -1) for project in projections]
        o, cache = _recurrence(self, *inputs, tokens, cache)
        gate = None if self.g_proj is None else self.g_proj(rows).reshape(o.shape)
        return _normalize_and_project(self.o_norm, self.o_proj, o, gate).reshape(x.shape), cache


# For the gradient, what the op saves, projections and what neighbours sent are kept; the rest is cheaper done again.
@partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(SAVED_FOR_BACKWARD, _HALOS))
def _recurrence(
    layer: GatedDeltaNet,
    q: Float[Array, "B T Ck"],
    k: Float[Array, "B T Ck"],
    v: Float[Array, "B T Cv"],
    a: Float[Array, "B T N"],
    b: Float[Array, "B T N"],
    tokens: Tokens,
    cache: LinearCache | None,
) -> tuple[Float[Array, "B T N V"], LinearCache | None]:
    """What the state answers to each token, from the projections, and the layer's cache: none of part of a row."""
    batch, length, _ = q.shape
    spread = axis_size("context") > 1
    convolutions = (layer.q_conv1d, layer.k_conv1d, layer.v_conv1d)
    if spread:
        arrived = checkpoint_name(halos((q, k, v), tokens, layer.q_conv1d.width - 1), _HALOS)
        q, k, v = (
            convolve.of_part(x, tokens, halo)
            for convolve, x, halo in zip(convolutions, (q, k, v), arrived, strict=True)
        )
    else:
        tails = (None,) * 3 if cache is None else (cache.q_tail, cache.k_tail, cache.v_tail)
        (q, q_tail), (k, k_tail), (v, v_tail) = (
            convolve(x, tokens, tail)
            for convolve, x, tail in zip(convolutions, (q, k, v), tails, strict=True)
        )

    beta = layer.beta_range * jax.nn.sigmoid(b.astype(jnp.float32))
    step = a.astype(jnp.float32) + layer.dt_bias[...].astype(jnp.float32)
    g = -jnp.exp(layer.A_log[...].astype(jnp.float32)) * jax.nn.softplus(step)

    q = q.reshape(batch, length, -1, layer.key_head_dim)
    k = k.reshape(batch, length, -1, layer.key_head_dim)
    v = v.reshape(batch, length, -1, layer.value_head_dim)
    if spread:
        spread_rule = prefix_rule if layer.context_parallel == "prefix" else heads_rule
        return spread_rule(q, k, v, g, beta, tokens), None
    rule = recurrent_gated_delta_rule if length == 1 else chunk_gated_delta_rule
    state = None
    if cache is not None:
        # The op gives its initial state to the row's first document: it must be the one left open.
        goes_on = tokens.open_is_first[:, None, None]
        if length == 1:  # the state is not touched before the op, which can then write to it in place
            g, state = jnp.where(goes_on, g, -jnp.inf), cache.state
        else:
            state = jnp.where(goes_on[..., None], cache.state, 0.0)
    o, state = rule(q, k, v, g, beta, initial_state=state, segment_ids=tokens.documents, use_qk_l2norm=True)
    return o, LinearCache(q_tail=q_tail, k_tail=k_tail, v_tail=v_tail, state=state)


@jax.checkpoint  # the normalised output is cheaper to compute again than to write and read back
def _normalize_and_project(
    o_norm: GatedRMSNorm, o_proj: Linear, o: Float[Array, "B T N V"], gate: Float[Array, "B T N V"] | None
) -> Float[Array, "BT D"]:
    return o_proj(o_norm(o, gate).reshape(-1, o.shape[2] * o.shape[3]))


def _init_a_log(key: Array, config: ModelConfig) -> Float[Array, " N"]:
    """Logarithm of A ~ U(min, max), the per-head decay rate; A = 0 would have no logarithm."""
    shape = (config.linear_num_value_heads,)
    rate = jax.random.uniform(key, shape, jnp.float32, config.linear_a_log_min, config.linear_a_log_max)
    return jnp.log(jnp.maximum(rate, 1e-4))


def _init_dt_bias(key: Array, config: ModelConfig) -> Float[Array, " N"]:
    """softplus^-1 of a step log-uniform in [dt_min, dt_max], floored."""
    shape = (config.linear_num_value_heads,)
    low, high = math.log(config.linear_dt_min), math.log(config.linear_dt_max)
    step = jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high))
    step = jnp.maximum(step, config.linear_dt_init_floor)
    return step + jnp.log(-jnp.expm1(-step))
