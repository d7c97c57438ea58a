"""What is read off compiled programs, against what was written: products, traffic and collectives in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from hybrid_jax.planning.cost import _groups, program_cost
from hybrid_jax.planning.hlo import Shape, parse
from hybrid_jax.sharding import make_mesh

N, TRIPS = 64, 7


def cost_of(function, *shapes):
    return program_cost(parse(jax.jit(function).lower(*shapes).compile().as_text()))


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_products_in_nested_loops():
    def looped(x, kernels):
        def outer(x, kernel):
            return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ kernel), x), None

        return jax.lax.scan(outer, x, kernels)[0]

    cost = cost_of(looped, array(8, N), array(TRIPS, N, N))
    assert cost.matmul_flops == TRIPS * 3 * 2 * 8 * N * N
    assert cost.collectives == ()


def test_batched_products_and_gradients():
    def loss(x, kernel):
        return jnp.sum(jnp.einsum("gbd,gde->gbe", x, kernel) ** 2)

    cost = cost_of(jax.grad(loss, argnums=(0, 1)), array(3, 8, N), array(3, N, N))
    assert cost.matmul_flops == 3 * (2 * 3 * 8 * N * N)


def test_a_loop_that_takes_and_puts_slices_moves_slices():
    def copy_rows(source):
        def put(i, target):
            row = jax.lax.dynamic_slice_in_dim(source, i, 1)
            return jax.lax.dynamic_update_slice_in_dim(target, jnp.sin(row), i, 0)

        return jax.lax.fori_loop(0, 1024, put, jnp.zeros_like(source))

    size = 1024 * 256 * 4
    # Each row is read and written once; the zeros are written, and little besides.
    assert 2 * size <= cost_of(copy_rows, array(1024, 256)).memory_bytes <= 6 * size


@pytest.mark.parametrize(
    ("kind", "collective", "sent"),
    [
        ("all-gather", lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), 3 * N),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(jnp.tile(x, 4), "fsdp", tiled=True), 3 * N),
        ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), 2 * 3 / 4 * N),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 2)]), N),
        (
            "all-to-all",
            lambda x: jax.lax.all_to_all(x.reshape(4, -1), "fsdp", 0, 0).reshape(-1),
            3 / 4 * N,
        ),
    ],
)
def test_collectives_in_a_loop(kind, collective, sent):
    mesh = make_mesh({"data": 2, "fsdp": 4})

    def body(_, x):
        return jnp.cos(x + jnp.sum(collective(jnp.sin(x))))

    looped = jax.shard_map(
        lambda x: jax.lax.fori_loop(0, TRIPS, body, x),
        mesh=mesh,
        in_specs=PartitionSpec(("data", "fsdp")),
        out_specs=PartitionSpec(("data", "fsdp")),
        check_vma=False,
    )
    (found,) = cost_of(looped, array(8 * N)).collectives
    assert (found.kind, found.times) == (kind, TRIPS)
    assert found.traffic == pytest.approx(4 * TRIPS * sent)
    members = {tuple(group) for group in found.groups.tolist()}
    if kind == "collective-permute":
        assert members == {(0, 1), (1, 2), (4, 5), (5, 6)}
    else:
        assert members == {(0, 1, 2, 3), (4, 5, 6, 7)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'data'}", [[0, 2], [1, 3]]),
        ("replica_groups={}, dimensions={0}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{3,2}}", [[0, 1], [3, 2]]),
    ],
)
def test_every_way_of_writing_groups(text, expected):
    np.testing.assert_array_equal(_groups(f", channel_id=1, {text}, more=1", 4), expected)


def test_sizes_of_arrays():
    assert Shape("bf16", (3, 5)).num_bytes == 30
    assert Shape("f8e4m3fn", (16,)).num_bytes == 16
    assert Shape("s4", (16,)).num_bytes == 8
    assert Shape("pred", ()).num_bytes == 1
    assert Shape("token", ()).num_bytes == 0


def test_branches_count_and_endless_loops_are_refused():
    def branch(x, kernel):
        return jax.lax.cond(jnp.sum(x) > 0, lambda: jnp.sin(x @ kernel), lambda: x)

    cost = cost_of(branch, array(8, N), array(N, N))
    assert cost.matmul_flops == 2 * 8 * N * N
    with pytest.raises(ValueError, match="runs an unknown number of times"):
        cost_of(lambda x: jax.lax.while_loop(lambda x: x[0] < 5, lambda x: x * x, x), array(3))


def test_recomputed_products_count_again():
    width, inner, tokens = 32, 64, 256

    def mlp(kernels, x):
        def layer(x, kernels):
            up, down = kernels
            return x + jax.nn.silu(x @ up) @ down, None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, kernels)[0])

    kernels = (array(TRIPS, width, inner), array(TRIPS, inner, width))
    cost = cost_of(jax.grad(mlp), kernels, array(tokens, width))
    forward = TRIPS * 2 * 2 * tokens * width * inner
    # The last product of a recomputed layer is not needed again, nor the first layer's gradient of x.
    assert 3.4 * forward <= cost.matmul_flops <= 4 * forward
