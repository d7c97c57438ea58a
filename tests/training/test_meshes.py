"""Training on eight devices: the same numbers as on one, nothing kept twice that is split, no needless traffic."""

import re
import shutil
from dataclasses import replace
from functools import cache, partial

import jax
import numpy as np
import pytest

from hybrid_jax.config import ModelConfig, Rope, RopeParameters
from hybrid_jax.errors import InputError
from hybrid_jax.models import create_model
from hybrid_jax.models.paths import named_parameters
from hybrid_jax.sharding import MeshConfig, batch_sharding, make_mesh
from hybrid_jax.training.objectives import LanguageModeling
from hybrid_jax.training.optimizer import OptimizerConfig, make_optimizer
from hybrid_jax.training.placement import check_placement
from hybrid_jax.training.schedule import ScheduleConfig, make_schedule
from hybrid_jax.training.state import TrainState, create_state, state_shapes
from hybrid_jax.training.step import make_train_step
from hybrid_jax.training.trainer import train
from tests.models.conftest import relative_error
from tests.tolerances import FLOAT32_GRADIENT, FLOAT32_RESHARDED
from tests.training.toy import toy_model, toy_run

LENGTH, BATCH, STEPS, VOCAB = 64, 8, 5, 48
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": LENGTH,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
ROPE = Rope(rope_theta=10_000.0)
MODELS = {
    "hybrid": ModelConfig(
        **SHAPE,
        layer_types=("linear_attention", "full_attention") * 2,
        linear_key_head_dim=4,
        linear_value_head_dim=8,
    ),
    # The window reaches into the neighbour's part at context 2 and 4, and past several at context 8.
    "olmo3": ModelConfig(
        **SHAPE,
        model_type="olmo3",
        layer_types=("sliding_attention", "full_attention") * 2,
        sliding_window=12,
        rope_parameters=RopeParameters(full_attention=ROPE, sliding_attention=ROPE),
    ),
}
ALL_AXES = {"fsdp": 2, "context": 2, "tensor": 2}
# The slow ones divide nothing in a way that the others do not.
MESHES = (
    {"fsdp": 8},
    {"fsdp": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "context": 2},
    {"context": 8},
    pytest.param({"tensor": 3}, marks=pytest.mark.slow),
    pytest.param({"context": 4, "tensor": 2}, marks=pytest.mark.slow),
)
ON_MESHES = pytest.mark.parametrize("sizes", MESHES, ids=lambda s: " ".join(f"{a}{n}" for a, n in s.items()))
SCHEDULE = make_schedule(ScheduleConfig(learning_rate=3e-4, warmup=2), 10)


def mesh_of(sizes):
    return make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values()) or [1]))])


def packed_batch(seed: int) -> dict[str, np.ndarray]:
    """Rows of up to five documents that cross every border between parts, padding inside and behind."""
    random = np.random.default_rng(seed)
    input_ids = random.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
    segment_ids = np.sort(random.integers(1, 6, (BATCH, LENGTH)), axis=1).astype(np.int32)
    segment_ids[:, -3:] = 0
    segment_ids[0, 20:30] = 0  # a whole part of context 8
    segment_ids[1] = 1
    labels = np.concatenate([input_ids[:, 1:], np.full((BATCH, 1), -100, np.int32)], axis=1)
    labels[segment_ids == 0] = -100
    return {"input_ids": input_ids, "labels": labels, "segment_ids": segment_ids}


def optimizer_for(config: ModelConfig):
    return make_optimizer(OptimizerConfig(), SCHEDULE, jax.eval_shape(partial(create_model, config)))


@cache
def initial_state(config: ModelConfig) -> TrainState:
    return jax.device_get(create_state(config, optimizer_for(config), 0, mesh_of({})))


@cache
def compiled_step(config: ModelConfig, num_microbatches: int, batch_shape: tuple[int, int], **sizes: int):
    """A program for the tests that run it and for those that read it."""
    mesh, optimizer = mesh_of(sizes), optimizer_for(config)
    shapes = state_shapes(config, optimizer, 0, mesh)
    batch = {
        name: jax.ShapeDtypeStruct(batch_shape, np.int32, sharding=batch_sharding(mesh))
        for name in ("input_ids", "labels", "segment_ids")
    }
    step = make_train_step(optimizer, SCHEDULE, LanguageModeling(1e-5), num_microbatches, mesh)
    return step.lower(shapes, batch).compile()


@pytest.fixture(autouse=True, scope="module")
def programs_are_freed():
    yield
    compiled_step.cache_clear()


def run(config: ModelConfig, sizes, num_microbatches: int = 1) -> tuple[list[float], TrainState]:
    mesh, optimizer = mesh_of(sizes), optimizer_for(config)
    shapes = state_shapes(config, optimizer, 0, mesh)
    state = jax.tree.map(
        lambda leaf, shape: jax.device_put(leaf, shape.sharding), initial_state(config), shapes
    )
    step = compiled_step(config, num_microbatches, (BATCH, LENGTH), **sizes)
    losses = []
    for seed in range(STEPS):
        state, metrics = step(state, jax.device_put(packed_batch(seed), batch_sharding(mesh)))
        losses.append(float(metrics["train/CE loss"]))
    return losses, state


@cache
def on_one_device(name: str):
    losses, state = run(MODELS[name], {})
    return losses, {path: np.asarray(leaf) for path, leaf in named_parameters(state.model).items()}


def assert_same_as_on_one_device(name: str, losses, state) -> None:
    expected_losses, expected = on_one_device(name)
    np.testing.assert_allclose(losses, expected_losses, rtol=FLOAT32_RESHARDED)
    for path, leaf in named_parameters(state.model).items():
        # Over each tensor: Adam divides by the gradient's size, so single elements with hardly any tell nothing.
        assert relative_error(leaf, expected[path]) <= FLOAT32_RESHARDED, path


@ON_MESHES
def test_five_steps_equal_those_of_one_device(sizes):
    losses, state = run(MODELS["hybrid"], sizes)
    assert_same_as_on_one_device("hybrid", losses, state)


@pytest.mark.parametrize(
    "sizes", [ALL_AXES, pytest.param({"context": 4}, marks=pytest.mark.slow), {"context": 8}]
)
def test_windows_across_parts(sizes):
    losses, state = run(MODELS["olmo3"], sizes)
    assert_same_as_on_one_device("olmo3", losses, state)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["block", "dots"])
def test_recomputing_changes_nothing_on_a_mesh(remat):
    losses, state = run(MODELS["hybrid"].replace(remat=remat), ALL_AXES)
    assert_same_as_on_one_device("hybrid", losses, state)


@pytest.mark.slow
def test_microbatches_change_nothing_on_a_mesh():
    losses, state = run(MODELS["hybrid"], {"fsdp": 2, "context": 2}, num_microbatches=2)
    assert_same_as_on_one_device("hybrid", losses, state)


@pytest.mark.slow
def test_grouped_heads_and_four_parts():
    config = MODELS["hybrid"].replace(num_key_value_heads=2, linear_num_key_heads=3, linear_num_value_heads=6)
    (losses, state), (expected_losses, expected) = (run(config, sizes) for sizes in ({"context": 4}, {}))
    np.testing.assert_allclose(losses, expected_losses, rtol=FLOAT32_RESHARDED)
    for path, leaf in named_parameters(state.model).items():
        assert relative_error(leaf, named_parameters(expected.model)[path]) <= FLOAT32_RESHARDED, path


@pytest.mark.slow
def test_linear_layers_may_exchange_tokens_for_heads():
    losses, state = run(MODELS["hybrid"].replace(context_parallel="heads"), {"context": 2, "tensor": 3})
    assert_same_as_on_one_device("hybrid", losses, state)


@ON_MESHES
def test_each_device_holds_its_share_of_the_same_initial_values(sizes):
    config, mesh = MODELS["hybrid"], mesh_of(sizes)
    state = create_state(config, optimizer_for(config), 0, mesh)
    split = mesh.shape["fsdp"] * mesh.shape["tensor"]
    for tree in (state.model, state.opt_state):
        for path, leaf in named_parameters(tree).items():
            held = {shard.data.nbytes for shard in leaf.addressable_shards}
            assert len(held) == 1, path
            if path.endswith(("_proj.kernel", "embedding", "lm_head.kernel")):
                assert held == {leaf.nbytes // split}, path
    jax.tree.map(np.testing.assert_array_equal, state, initial_state(config))


def gathered_shapes(text: str) -> set[tuple[int, ...]]:
    found = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)
    return {tuple(int(size) for size in shape.split(",") if size) for shape in found}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [{"fsdp": 8}, ALL_AXES])
def test_only_parameters_and_segment_ids_are_gathered(name, sizes):
    config = MODELS[name]
    text = compiled_step(config, 1, (BATCH, LENGTH), **sizes).as_text()
    rows = BATCH // sizes["fsdp"]
    kernels = {leaf.shape[-2:] for leaf in jax.tree.leaves(jax.eval_shape(partial(create_model, config)))}
    tensor = sizes.get("tensor", 1)
    allowed = {
        (a, b) for k in kernels if len(k) == 2 for a in (k[0], k[0] // tensor) for b in (k[1], k[1] // tensor)
    }
    allowed.add((rows, LENGTH))
    unexpected = {
        shape for shape in gathered_shapes(text) if shape[-2:] not in allowed or np.prod(shape[:-2]) > 1
    }
    assert not unexpected
    assert gathered_shapes(text)


def test_gradients_of_split_parameters_are_scattered_not_replicated():
    text = compiled_step(MODELS["olmo3"], 1, (BATCH, LENGTH), fsdp=8).as_text()
    assert "reduce-scatter" in text
    # What is summed whole: norms, loss sums, gradient norms. Never a matrix.
    whole = re.findall(r"= \w+\[([\d,]*)\]\S* all-reduce(?:-start)?\(", text)
    assert (
        max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in whole)
        <= 4 * SHAPE["hidden_size"]
    )


def test_whole_parameters_are_gathered_again_and_not_kept_for_the_gradient():
    text = compiled_step(MODELS["hybrid"], 1, (BATCH, LENGTH), fsdp=8).as_text()
    repeats, width, inner = 2, SHAPE["hidden_size"], SHAPE["intermediate_size"]
    assert f"f32[{repeats},{width // 8},{inner}]" in text
    assert f"f32[{repeats},{width},{inner}]" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_activation_memory_falls_with_the_devices_that_share_a_row(name):
    whole, part = (
        compiled_step(MODELS[name], 1, (1, 8192), **sizes).memory_analysis().temp_size_in_bytes
        for sizes in ({}, {"context": 8})
    )
    assert part <= whole / 6


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_rows_of_65536_tokens_train_over_eight_devices():
    config = MODELS["hybrid"].replace(
        hidden_size=16,
        num_attention_heads=1,
        num_key_value_heads=1,
        linear_num_key_heads=1,
        linear_num_value_heads=1,
        num_hidden_layers=2,
        layer_types=("linear_attention", "full_attention"),
        max_position_embeddings=65_536,
    )
    random = np.random.default_rng(0)
    input_ids = random.integers(0, VOCAB, (1, 65_536)).astype(np.int32)
    segment_ids = np.sort(random.integers(1, 4, input_ids.shape), axis=1).astype(np.int32)
    batch = {"input_ids": input_ids, "labels": np.roll(input_ids, -1, axis=1), "segment_ids": segment_ids}
    figures = []
    for sizes in ({}, {"context": 8}):
        mesh, optimizer = mesh_of(sizes), optimizer_for(config)
        state = create_state(config, optimizer, 0, mesh)
        step = make_train_step(optimizer, SCHEDULE, LanguageModeling(1e-5), 1, mesh)
        _, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        figures.append([float(metrics[key]) for key in ("train/CE loss", "optim/total grad norm")])
    np.testing.assert_allclose(*figures, rtol=FLOAT32_RESHARDED)


@pytest.mark.slow
def test_a_run_on_a_mesh_continues_on_another(tmp_path):
    """A checkpoint knows nothing of the mesh it was written on."""
    on_mesh = toy_run(tmp_path, num_steps=4, batch_size=8, mesh=MeshConfig(fsdp=4, context=2))
    whole = train(on_mesh)
    stopped = tmp_path / "stopped"
    train(replace(on_mesh, output_folder=stopped))
    shutil.rmtree(stopped / "checkpoints" / "4")
    resumed = train(replace(on_mesh, output_folder=stopped, mesh=MeshConfig()), jax.devices()[:1])
    for path, leaf in named_parameters(whole.model).items():
        found = named_parameters(resumed.model)[path]
        assert relative_error(found, leaf) <= FLOAT32_GRADIENT, path


def test_fsdp_takes_the_devices_that_are_left():
    assert MeshConfig(tensor=2).make().shape == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    assert MeshConfig().make(jax.devices()[:1]).size == 1
    with pytest.raises(InputError, match=r"fsdp 2 x context 1 x tensor 3 = 6 devices, expected 8"):
        MeshConfig(fsdp=2, tensor=3).make()
    with pytest.raises(InputError, match="tensor: found 0"):
        MeshConfig(tensor=0)


@pytest.mark.parametrize(
    ("sizes", "overrides", "message"),
    [
        ({"fsdp": 8}, {}, r"batch_size: found 4, expected a multiple of mesh.data x mesh.fsdp.* = 8"),
        (
            {"context": 8},
            {"length": 40},
            r"data.sequence_length: found 40, expected a multiple of 2 x mesh.context = 16",
        ),
        ({"context": 8}, {"length": 16}, r"data.sequence_length: found 16, expected at least 3 tokens"),
        ({"tensor": 8}, {}, r"model.num_attention_heads: found 2, expected a multiple of mesh.tensor = 8"),
        ({"tensor": 2}, {}, r"model.num_key_value_heads: found 1, expected a multiple of mesh.tensor = 2"),
        (
            {"context": 2},
            {"model": toy_model(context_parallel="heads")},
            r"model.linear_num_key_heads: found 1, expected a multiple of mesh.tensor x mesh.context = 2",
        ),
    ],
)
def test_what_does_not_divide_is_named(tmp_path, sizes, overrides, message):
    config = toy_run(tmp_path, **{key: value for key, value in overrides.items() if key != "length"})
    config = replace(config, data=replace(config.data, sequence_length=overrides.get("length", 32)))
    with pytest.raises(InputError, match=message):
        check_placement(config, mesh_of(sizes))
