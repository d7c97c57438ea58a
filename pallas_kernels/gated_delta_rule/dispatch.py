"""Which implementation serves a call: the one that is named, or the kernels where they can and plain JAX elsewhere."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.gated_delta_rule.chunked import chunked_gated_delta_rule
from pallas_kernels.gated_delta_rule.recurrent import recurrent_gated_delta_rule

_log = logging.getLogger(__name__)
_config: Any = jax.config  # whose fields type checkers do not know

XLA, KERNELS = "xla", "mosaic_gpu"
_NAMES = (KERNELS, XLA)
_OLDEST_JAX = (0, 11)
# Keys: what one wgmma instruction reaches. Values, of which kernels take 64 at a time: what `backward_tokens.py`, which
# has the code once for each 64, was compiled for; 256 and 256 more for context parallelism.
_LARGEST_DIMS = {"keys'": 256, "values'": 512}

Rule = Callable[..., tuple[jax.Array, jax.Array]]


def choose_chunked(name: str | None, q: jax.Array, k: jax.Array, v: jax.Array, chunk_size: int) -> Rule:
    """The implementation called ``name`` for whole sequences, or the fastest that serves if it is None.

    Raises:
        ValueError: there is none of that name, or it does not serve.
    """
    refusal = _common_refusal(q, k, v)
    if refusal is None and chunk_size != 64:
        refusal = f"chunk_size is {chunk_size}, expected 64"
    if _choose("chunk_gated_delta_rule", name, refusal) == XLA:
        return _over_shards(chunked_gated_delta_rule)
    # Late, as there are versions of jax that the kernels cannot be imported with.
    from pallas_kernels.gated_delta_rule.fused import fused_gated_delta_rule

    return _over_shards(fused_gated_delta_rule)


def choose_recurrent(name: str | None, q: jax.Array, k: jax.Array, v: jax.Array) -> Rule:
    """As `choose_chunked`, for one token after the other."""
    refusal = _common_refusal(q, k, v)
    if refusal is None and q.shape[1] != 1:
        refusal = f"q has {q.shape[1]} tokens, expected one"
    if refusal is None and v.shape[3] < 64:
        refusal = f"the values' length is {v.shape[3]}, expected at least 64"
    if refusal is None and jax.typeof(v).manual_axis_type.varying:
        refusal = (
            "the arrays differ between devices inside shard_map, which a state updated in place must not say"
        )
    if _choose("recurrent_gated_delta_rule", name, refusal) == XLA:
        return _over_shards(recurrent_gated_delta_rule)
    from pallas_kernels.gated_delta_rule.fused import fused_decode_step

    return _over_shards(fused_decode_step)


def _choose(op: str, name: str | None, refusal: str | None) -> str:
    if name is None:
        chosen = KERNELS if refusal is None else XLA
        _tell_once(op, chosen, refusal)
        return chosen
    if name not in _NAMES:
        raise ValueError(f"implementation is {name!r}, there are: {', '.join(_NAMES)}")
    if name == KERNELS and refusal is not None:
        raise ValueError(f"implementation {name!r} does not serve {op} here: {refusal}")
    return name


@functools.cache
def _tell_once(op: str, chosen: str, refusal: str | None) -> None:
    on_gpu = jax.default_backend() == "gpu"
    reason = "a Hopper GPU" if refusal is None else f"not {KERNELS}, as {refusal}"
    _log.log(logging.WARNING if on_gpu and refusal else logging.INFO, "%s runs as %s: %s", op, chosen, reason)


def gpu_refusal() -> str | None:
    """Why the kernels cannot run on this machine, None if they can."""
    if jax.__version_info__ < _OLDEST_JAX:
        return f"jax is {jax.__version__}, expected at least {'.'.join(map(str, _OLDEST_JAX))}"
    if jax.default_backend() != "gpu":
        return f"the backend is {jax.default_backend()}, expected a GPU"
    device = jax.devices()[0]
    if getattr(device, "compute_capability", None) != "9.0":
        return f"the GPU is {device.device_kind}, expected a Hopper (compute capability 9.0)"
    return None


def _common_refusal(q: jax.Array, k: jax.Array, v: jax.Array) -> str | None:
    """Why no kernel serves these arrays here, None if one may."""
    return gpu_refusal() or _placement_refusal(v) or _arrays_refusal(q, k, v) or _sharding_refusal(q, k, v)


def _placement_refusal(x: jax.Array) -> str | None:
    """Arrays of another device than the default one, where that can be known: under jit, from their mesh only."""
    if jax.default_backend() != "gpu":
        return None
    device: Any = jax.typeof(x).sharding.mesh.abstract_device
    if not isinstance(x, jax.core.Tracer):
        (device, *_) = x.devices()
    device = device or _config.jax_default_device
    platform = getattr(device, "platform", device)
    return "the arrays lie on the CPU, expected a GPU" if platform == "cpu" else None


def _arrays_refusal(q: jax.Array, k: jax.Array, v: jax.Array) -> str | None:
    if _config.jax_enable_x64:  # gates may be of 64 bits then, and indices are
        return "jax_enable_x64 is on, expected off"
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.dtype != jnp.bfloat16:
            return f"{name} is {x.dtype}, expected bfloat16"
    for (name, largest), size in zip(_LARGEST_DIMS.items(), (k.shape[-1], v.shape[-1]), strict=True):
        if size % 8 or size > largest:
            return f"the {name} length is {size}, expected a multiple of 8 up to {largest}"
    return None


def _sharding_refusal(q: jax.Array, k: jax.Array, v: jax.Array) -> str | None:
    # Under jit, arrays know their mesh even where none is set.
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(x).sharding.mesh for x in (q, k, v))]
    auto = {
        name: None
        for mesh in meshes
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and mesh.shape[name] > 1
    }
    if auto:
        return (
            f"mesh axes {', '.join(auto)} are left to the compiler, which cannot split a kernel: expected shard_map "
            "or Explicit axes"
        )
    specs = [_spec(x) for x in (q, k, v)]
    if any(spec[1] or spec[3] for spec in specs) or len({(spec[0], spec[2]) for spec in specs}) > 1:
        return f"q, k and v are sharded as {specs}, expected all over the same axes, in batch and heads only"
    return None


def _spec(x: jax.Array) -> P:
    """The mesh axes over which each dim of ``x`` is split by an Explicit mesh."""
    spec = jax.typeof(x).sharding.spec
    return P(*spec, *[None] * (x.ndim - len(spec)))


def _over_shards(run: Rule) -> Rule:
    """``run`` on each device's rows and heads, where an Explicit mesh splits the values' so."""

    def sharded(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        g: jax.Array,
        beta: jax.Array,
        state: jax.Array,
        *options: float | int,
    ) -> tuple[jax.Array, jax.Array]:
        rows, _, heads, _ = _spec(v)
        if rows is None and heads is None:
            return run(q, k, v, g, beta, state, *options)
        mesh = jax.typeof(v).sharding.mesh
        tokens, states = P(rows, None, heads), P(rows, heads)
        in_specs = (*[tokens] * 5, states)
        split = jax.shard_map(
            lambda *arrays: run(*arrays, *options),
            mesh=mesh,
            in_specs=in_specs,
            out_specs=(tokens, states),
            check_vma=False,
        )
        # A state that was left out is nowhere yet, and gates need not lie as values do.
        shardings = [NamedSharding(mesh, spec) for spec in in_specs]
        return split(*map(jax.reshard, (q, k, v, g, beta, state), shardings))

    return sharded
