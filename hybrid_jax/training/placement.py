"""Whether a run's model and batches divide over its mesh, said before anything is made."""

from jax.sharding import Mesh

from hybrid_jax.errors import InputError
from hybrid_jax.training.run_config import RunConfig


def check_placement(config: RunConfig, mesh: Mesh) -> None:
    """Refuse a run whose rows, tokens or heads do not divide over ``mesh``.

    Parameters check their own dimensions where they are placed (``parameter_sharding``).

    Raises:
        InputError: names the field, what was found, and the mesh axes that must divide it.
    """
    rows = mesh.shape["data"] * mesh.shape["fsdp"] * config.num_microbatches
    _check_divides("batch_size", config.batch_size, rows, "mesh.data x mesh.fsdp x num_microbatches")
    context = mesh.shape["context"]
    if context > 1:
        # Attention gives each device a piece from the front of the row and one from its back.
        _check_divides("data.sequence_length", config.data.sequence_length, 2 * context, "2 x mesh.context")
        shortest = config.model.linear_conv_kernel_dim - 1
        if config.data.sequence_length // context < shortest:
            raise InputError(
                f"data.sequence_length: found {config.data.sequence_length}, expected at least {shortest} tokens "
                f"(linear_conv_kernel_dim - 1) for each of mesh.context = {context} devices"
            )
    model = config.model
    heads = {
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
    }
    linear = "linear_attention" in model.layer_types
    if linear:
        heads |= {
            "linear_num_key_heads": model.linear_num_key_heads,
            "linear_num_value_heads": model.linear_num_value_heads,
        }
    for name, number in heads.items():
        _check_divides(f"model.{name}", number, mesh.shape["tensor"], "mesh.tensor")
    if linear and context > 1 and model.context_parallel == "heads":
        devices = mesh.shape["tensor"] * context
        _check_divides(
            "model.linear_num_key_heads", model.linear_num_key_heads, devices, "mesh.tensor x mesh.context"
        )


def _check_divides(name: str, found: int, divisor: int, divisor_name: str) -> None:
    if found % divisor:
        raise InputError(f"{name}: found {found}, expected a multiple of {divisor_name} = {divisor}")
