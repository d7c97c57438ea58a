import jax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError
from hybrid_jax.models.causal_lm import CausalLM
from hybrid_jax.models.paths import named_parameters
from hybrid_jax.sharding import make_mesh, parameter_sharding


@pytest.mark.parametrize("preset", ["tiny", "tiny_olmo3"])
def test_every_parameter_has_a_place_and_matrices_are_split(preset):
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    config = ModelConfig.preset(preset, num_key_value_heads=4)
    model = jax.eval_shape(lambda: CausalLM(config, rngs=nnx.Rngs(0)))
    for path, leaf in named_parameters(model).items():
        sharding = parameter_sharding(path, leaf.shape, mesh)
        pieces = leaf.size // jax.numpy.prod(jax.numpy.array(sharding.shard_shape(leaf.shape)))
        if path.endswith(("_proj.kernel", "embedding", "lm_head.kernel")):
            assert pieces == 8, path


def test_axes_of_size_one_are_left_out():
    sharding = parameter_sharding("lm_head.kernel", (64, 256), make_mesh({"fsdp": 8}))
    assert sharding.spec == P("fsdp")


def test_a_size_that_does_not_divide_names_the_tensor():
    with pytest.raises(
        InputError, match=r"lm_head.kernel has shape \(60, 256\); dimension 0 \(embed\).* by 8 \(fsdp\)"
    ):
        parameter_sharding("lm_head.kernel", (60, 256), make_mesh({"fsdp": 8}))


def test_a_mesh_must_use_all_devices():
    with pytest.raises(InputError, match="= 4 devices, expected 8"):
        make_mesh({"fsdp": 4})


def test_unknown_axes_are_named():
    with pytest.raises(InputError, match="found axes pipeline"):
        make_mesh({"pipeline": 8})


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(InputError, match=r"no rule for the parameter router\.kernel"):
        parameter_sharding("router.kernel", (4, 4), make_mesh({"fsdp": 8}))
