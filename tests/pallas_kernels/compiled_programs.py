"""Programs with the kernels in them, lowered and compiled for H200s that are not there: `test_compiled.py` runs this.

python -m tests.pallas_kernels.compiled_programs
"""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid_jax.config import ModelConfig
from hybrid_jax.gpus import gpu_kind
from hybrid_jax.models import init_cache
from hybrid_jax.models.gated_delta_net import GatedDeltaNet
from hybrid_jax.models.tokens import describe_part, describe_tokens
from hybrid_jax.planning.target import described_devices, use_described_gpus
from pallas_kernels.gated_delta_rule import chunk_gated_delta_rule, dispatch, recurrent_gated_delta_rule

TOKENS, STATES = P("rows", None, "heads"), P("rows", "heads")
# Kernels of each pass.
FORWARD, BACKWARD, DECODE = 2, 2, 1

CONFIG = ModelConfig.preset("tiny", dtype="bfloat16", linear_key_head_dim=96, linear_value_head_dim=192)
op = functools.partial(chunk_gated_delta_rule, use_qk_l2norm=True)


def main():
    use_described_gpus()
    dispatch.gpu_refusal = lambda: None
    devices = np.array(described_devices(gpu_kind("h200"), 4)).reshape(2, 2)
    auto = Mesh(devices, ("rows", "heads"))
    sharding(auto, Mesh(devices, auto.axis_names, axis_types=(AxisType.Explicit,) * 2))
    one_device = NamedSharding(Mesh(devices[:1, :1], auto.axis_names), P())
    transformations(one_device)
    decoding(one_device)
    layer(one_device)
    spread_layer(Mesh(devices[0], ("context",)))


def arrays(length=128, tokens=None, states=None, value_dim=192):
    """q, k, v, g, beta and initial state of 4 rows, placed as told."""

    def array(*shape, dtype=jnp.bfloat16, sharding=tokens):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    q, v, g = array(4, length, 4, 96), array(4, length, 4, value_dim), array(4, length, 4, dtype=jnp.float32)
    return q, q, v, g, g, array(4, 4, 96, value_dim, dtype=jnp.float32, sharding=states or tokens)


def on(mesh, length=128):
    return arrays(length, NamedSharding(mesh, TOKENS), NamedSharding(mesh, STATES))


def with_state(rule):
    return lambda *xs: rule(*xs[:5], initial_state=xs[5])


def gradient(rule):
    def loss(*xs):
        o, state = with_state(rule)(*xs)
        return jnp.sum(o.astype(jnp.float32) ** 2) + jnp.sum(state**2)

    return jax.grad(loss, argnums=tuple(range(6)))


def check(name, function, arguments, num_kernels):
    lowered = jax.jit(function).lower(*arguments)
    found = lowered.as_text().count("stablehlo.custom_call @mosaic_gpu_v2")
    assert found == num_kernels, f"{name}: found {found} kernels, expected {num_kernels}"
    return lowered


def check_split(name, function, arguments, num_kernels):
    """Every device works on what it has."""
    text = check(name, function, arguments, num_kernels).compile().as_text()
    moved = re.findall("all-gather|all-to-all|collective-permute", text)
    assert not moved, f"{name}: {moved}"


def sharding(auto, explicit):
    split = functools.partial(
        jax.shard_map, mesh=auto, in_specs=(*[TOKENS] * 5, STATES), out_specs=(TOKENS, STATES)
    )
    both = FORWARD + BACKWARD
    inside = jax.shard_map(
        gradient(op), mesh=auto, in_specs=(*[TOKENS] * 5, STATES), out_specs=(*[TOKENS] * 5, STATES)
    )
    check_split("shard_map", inside, on(auto), both)
    decode = split(with_state(recurrent_gated_delta_rule), check_vma=False)
    check_split("decoding in shard_map", decode, on(auto, length=1), DECODE)

    q, k, v, g, beta, state = on(explicit)
    with jax.set_mesh(explicit):
        check_split("Explicit axes", gradient(op), (q, k, v, g, beta, state), both)
    # Without a mesh that is set, too.
    whole_gates = jax.ShapeDtypeStruct(g.shape, g.dtype, sharding=NamedSharding(explicit, P()))
    documents = jax.ShapeDtypeStruct((4, 128), jnp.int32, sharding=NamedSharding(explicit, P("rows")))

    def packed(segment_ids, *xs):
        return op(*xs, segment_ids=segment_ids)

    arguments = documents, q, k, v, whole_gates, beta
    check_split("documents, gates that lie otherwise and no state", packed, arguments, FORWARD)
    decode = with_state(recurrent_gated_delta_rule)
    check_split("decoding over Explicit axes", decode, on(explicit, length=1), DECODE)

    check("Auto axes, which only the arrays know", gradient(op), on(auto), 0)
    with jax.set_mesh(auto):
        check("Auto axes, set", gradient(op), arrays(), 0)


def transformations(one_device):
    whole = arrays(tokens=one_device)
    check("remat", gradient(jax.checkpoint(op)), whole, 2 * FORWARD + BACKWARD)

    def layers(*xs):
        def one(v, _):
            again = jax.checkpoint(lambda v: op(xs[0], v[..., :96], v, *xs[3:5], initial_state=xs[5])[0])
            return again(v), None

        return jnp.sum(jax.lax.scan(one, xs[2], None, length=3)[0].astype(jnp.float32))

    check("scan of remat", jax.grad(layers, argnums=2), whole, 2 * FORWARD + BACKWARD)
    check("vmap", in_rows(gradient(op)), whole, FORWARD + BACKWARD)


def in_rows(function):
    return jax.vmap(lambda *xs: function(*(x[None] for x in xs)))


def decoding(one_device):
    token = arrays(length=1, tokens=one_device)
    # The model's queries and keys are float32 once they are normalised.
    for normalised in (False, True):
        rule = with_state(functools.partial(recurrent_gated_delta_rule, use_qk_l2norm=normalised))
        check("decoding of rows", in_rows(rule), token, DECODE)
        check("decoding with remat", jax.checkpoint(rule), token, DECODE)
        in_place = jax.jit(rule, donate_argnums=5).lower(*token)
        untouched_but_by_kernels("decoding", in_place, "f32[4,4,96,192]", num_kernels=1)

    # 8 values are left to XLA, which writes them into the same state.
    token = arrays(length=1, tokens=one_device, value_dim=200)
    check("decoding of rows of 200 values", in_rows(rule), token, DECODE)
    text = jax.jit(rule, donate_argnums=5).lower(*token).compile().as_text()
    assert not re.search(r"= f32\[4,4,96,200\]\S* copy", text), text

    token = arrays(length=1, tokens=one_device)

    def steps(*xs):
        def one(state, _):
            o, state = recurrent_gated_delta_rule(*xs[:5], initial_state=state)
            return state, o

        return jax.lax.scan(one, xs[5], None, length=3)

    check("scan of decoding", steps, token, DECODE)
    in_place = jax.jit(steps, donate_argnums=5).lower(*token)
    untouched_but_by_kernels("scan of decoding", in_place, "f32[4,4,96,192]", num_kernels=1)


def untouched_but_by_kernels(name, lowered, state, num_kernels):
    """No instruction but the kernel writes or moves an array of the state's shape."""
    text = lowered.compile().as_text()
    assert text.count('custom_call_target="mosaic_gpu_v2"') == num_kernels, f"{name}: {text}"
    made = re.findall(rf"= {re.escape(state)}\S* ([\w-]+)\(", text)
    others = set(made) - {"parameter", "get-tuple-element", "bitcast"}
    assert not others, f"{name}: {others}"


def placed(sharding, *tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def new_layer():
    return jax.eval_shape(lambda: GatedDeltaNet(CONFIG, rngs=nnx.Rngs(0)))


def tokens_of(length):
    """Activations and documents."""
    activations = jax.ShapeDtypeStruct((4, length, CONFIG.hidden_size), jnp.bfloat16)
    return activations, jax.ShapeDtypeStruct((4, length), jnp.int32)


def layer(one_device):
    module = new_layer()
    cache = jax.eval_shape(lambda: init_cache(CONFIG, 4, 64, 1))
    one_layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), cache.layers[0][0])

    def loss(module, x, segment_ids):
        tokens, _ = describe_tokens(segment_ids.shape, segment_ids, None, None)
        return module(x, tokens, None)[0].astype(jnp.float32).sum()

    # What the layer's remat keeps spares it a second forward pass.
    check("training a layer", jax.grad(loss), placed(one_device, module, *tokens_of(128)), FORWARD + BACKWARD)

    def step(module, x, segment_ids, cache):
        tokens, row = describe_tokens(segment_ids.shape, segment_ids, None, cache)
        y, new = module(x, tokens, cache.layers)
        return y, replace(cache, layers=new, **row)

    arguments = placed(one_device, module, *tokens_of(1), replace(cache, layers=one_layer))
    lowered = jax.jit(step, donate_argnums=3).lower(*arguments)
    untouched_but_by_kernels("a layer's decoding", lowered, "f32[4,4,96,192]", num_kernels=1)


def spread_layer(mesh):
    """Context parallelism: V grows by K, as each part of a row also computes what it makes of any state."""

    def loss(module, x, segment_ids):
        tokens = describe_part(segment_ids, None, "context")
        return jax.lax.psum(module(x, tokens, None)[0].astype(jnp.float32).sum(), "context")

    parts = P(None, "context")
    split = jax.shard_map(loss, mesh=mesh, in_specs=(P(), parts, parts), out_specs=P())
    arguments = (
        *placed(NamedSharding(mesh, P()), new_layer()),
        *placed(NamedSharding(mesh, parts), *tokens_of(256)),
    )
    check("training a layer with its rows spread", jax.grad(split), arguments, FORWARD + BACKWARD)


if __name__ == "__main__":
    main()
