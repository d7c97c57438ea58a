import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError
from hybrid_jax.models import create_model
from hybrid_jax.models.cache import init_cache
from hybrid_jax.models.causal_lm import CausalLM
from hybrid_jax.models.paths import named_parameters
from tests.models.conftest import CONFIGS, random_model, relative_error


def test_logits_are_float32_and_finite(model, input_ids):
    logits = model(input_ids).logits
    assert logits.shape == (2, 40, 256)
    assert logits.dtype == jnp.float32
    assert bool(jnp.isfinite(logits).all())


def test_a_token_sees_only_what_came_before(model, input_ids):
    """The gradient of one token's logits with respect to later inputs is exactly zero."""
    ids = jnp.asarray(input_ids[:1])

    def logit(embedded):
        probe = jax.tree.map(lambda leaf: leaf, model)
        probe.embed_tokens.embedding[...] = embedded
        return probe.logits(probe.hidden_states(jnp.arange(12)[None]))[0, 5].sum()

    table = model.embed_tokens.embedding[...]
    gradient = jax.jit(jax.grad(logit))(table)
    reach = jnp.abs(gradient[:12]).sum(-1)
    assert bool((reach[:6] > 0).all())
    if model.lm_head is not None:
        assert bool((reach[6:] == 0).all())
    other = ids.at[:, 9:].set(0)
    np.testing.assert_array_equal(model(ids).logits[:, :9], model(other).logits[:, :9])


@pytest.mark.parametrize("splits", [(17, 30), (1, 20)])
def test_growing_cache_equals_the_whole(model, input_ids, splits):
    whole = model(input_ids).logits
    parts, cache = [], None
    for piece in np.split(input_ids, splits, axis=1):
        out = model(piece, cache=cache)
        parts.append(out.logits)
        cache = out.cache
    assert relative_error(np.concatenate(parts, 1), whole) < 1e-5


def test_unstacked_decoding_in_place_equals_the_whole(model, input_ids):
    whole = model(input_ids).logits
    out = model(input_ids[:, :17], cache=init_cache(model.config, 2, 48, 17))
    apart, cache = model.unstacked(out.cache)
    step = jax.jit(lambda model, token, cache: model(token, cache=cache))
    for t in range(17, 40):
        out = step(apart, jnp.asarray(input_ids[:, t : t + 1]), cache)
        cache = out.cache
        assert relative_error(out.logits[:, 0], whole[:, t]) < 2e-5


def test_a_cache_can_be_forked(model, input_ids):
    start = model(input_ids[:, :20]).cache
    one = model(input_ids[:, 20:30], cache=start).logits
    model(input_ids[:, 30:], cache=start)
    np.testing.assert_array_equal(model(input_ids[:, 20:30], cache=start).logits, one)


def test_windowed_layers_keep_only_their_window():
    config = ModelConfig.preset("tiny_olmo3", max_position_embeddings=4096)
    cache = init_cache(config, 1, 4096, 16)
    slots = sorted({leaf.shape[3] for group in cache.layers for c in group for leaf in (c.k, c.v)})
    assert slots == [8 + 16 - 1, 4096]


def test_recomputation_changes_nothing(input_ids):
    def gradient(remat):
        model = random_model(CONFIGS["repeating"].replace(remat=remat))
        return jax.jit(jax.grad(lambda m: jnp.sum(m.hidden_states(jnp.asarray(input_ids)) ** 2)))(model)

    plain = jax.tree.leaves(gradient("none"))
    for remat in ("block", "dots"):
        for found, expected in zip(jax.tree.leaves(gradient(remat)), plain, strict=True):
            assert relative_error(found, expected) < 1e-5


def test_recomputation_keeps_less(input_ids):
    """What the backward pass keeps shrinks from none to dots to block."""

    def kept(remat):
        model = jax.eval_shape(lambda: create_model(CONFIGS["hybrid"].replace(remat=remat)))
        _, pullback = jax.eval_shape(
            lambda m: jax.vjp(lambda m: m.hidden_states(jnp.asarray(input_ids)), m), model
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert kept("block") < kept("dots") < kept("none")


def test_bfloat16_compute_stays_near_float32(input_ids):
    model = random_model(CONFIGS["hybrid"])
    half = random_model(CONFIGS["hybrid"].replace(dtype="bfloat16"))
    full, rough = model(input_ids).logits, half(input_ids).logits
    assert rough.dtype == jnp.float32
    assert relative_error(rough, full) < 0.05


def test_depth_costs_no_tracing():
    def equations(num_layers):
        config = ModelConfig.preset("tiny", num_hidden_layers=num_layers)
        model = jax.eval_shape(lambda: create_model(config))
        ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        return len(str(jax.make_jaxpr(lambda m, i: m.hidden_states(i))(model, ids)).splitlines())

    assert equations(32) == equations(8)


def test_a_single_layer_can_be_taken_out(model):
    block = model.layer(1)
    stacked = named_parameters(model)
    for path, leaf in named_parameters(block).items():
        matches = [
            value
            for name, value in stacked.items()
            if name.endswith(path) and leaf.shape == value.shape[1:] and bool((value == leaf).any())
        ]
        assert matches, path


def test_initial_values_are_as_published():
    config = ModelConfig.preset("tiny", hidden_size=256, num_attention_heads=8, num_key_value_heads=8)
    parameters = named_parameters(create_model(config))
    kernels = {path: leaf for path, leaf in parameters.items() if path.endswith(("kernel", "embedding"))}
    for path, leaf in kernels.items():
        if leaf.size > 10_000:
            assert 0.9 * 0.02 < float(leaf.std()) < 1.02 * 0.02, path
        assert float(jnp.abs(leaf).max()) <= 0.06, path
    for path, leaf in parameters.items():
        if path.endswith("scale"):
            assert bool((leaf == 1).all()), path
        if path.endswith("A_log"):
            assert bool((jnp.exp(leaf) <= 16).all())
        if path.endswith("dt_bias"):
            step = jax.nn.softplus(leaf)
            assert bool(((step >= 0.99e-3) & (step <= 0.101)).all())
    repeats = next(leaf for path, leaf in kernels.items() if path == "groups.0.layers.0.mlp.up_proj.kernel")
    assert not bool((repeats[0] == repeats[1]).any()), "repeats must not share their initial values"


@pytest.mark.parametrize("bad", [-1, 256])
def test_ids_outside_the_vocabulary_are_refused(model, input_ids, bad):
    ids = input_ids.copy()
    ids[1, 3] = bad
    with pytest.raises(InputError, match=f"found token id {bad}, expected 0 <= id < vocab_size 256"):
        model(ids)


def test_vmap_over_models_equals_one_at_a_time(input_ids):
    models = [random_model(CONFIGS["hybrid"], seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    states = jax.jit(lambda model: model.hidden_states(jnp.asarray(input_ids)))
    together = jax.jit(jax.vmap(states))(stacked)
    for i, model in enumerate(models):
        assert relative_error(together[i], states(model)) < 1e-5


def test_modules_are_plain_pytrees(model):
    leaves, structure = jax.tree.flatten(model)
    assert isinstance(jax.tree.unflatten(structure, leaves), CausalLM)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
