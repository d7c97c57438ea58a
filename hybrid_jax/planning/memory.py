"""Where the bytes of a device go during a training step."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax

from hybrid_jax.models.paths import named_parameters
from hybrid_jax.planning.hlo import Program, Shape
from hybrid_jax.training.state import TrainState

# Of a device's memory, what a run can have: the rest is for the CUDA context, NCCL's buffers and loaded kernels.
USABLE = 0.92
# Instructions whose result is another's memory.
_VIEWS = ("tuple", "get-tuple-element", "bitcast", "parameter", "while", "opt-barrier", "conditional", "call")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device.

    Attributes:
        parameters: float32 masters.
        optimizer: moments.
        batch: tokens, labels and segment ids.
        activations: kept from the forward to the backward pass of a microbatch, before XLA shares or drops any.
        temporaries: everything else the step needs at its fullest moment: gradients, gathered parameters, scratch.
        peak: of the whole step, as the compiler lays it out.
    """

    parameters: int
    optimizer: int
    batch: int
    activations: int
    temporaries: int
    peak: int


def step_memory(
    compiled: jax.stages.Compiled, state: TrainState, batch: Any, saved: Iterable[jax.ShapeDtypeStruct]
) -> Memory:
    """Divide up what ``compiled`` needs.

    Args:
        compiled: the training step.
        state: the shapes it was compiled for, with shardings.
        batch: likewise.
        saved: from ``saved_activations``.
    """
    statistics: Any = compiled.memory_analysis()
    temporary = statistics.temp_size_in_bytes
    activations = min(sum(_num_bytes(leaf.shape, leaf.dtype) for leaf in saved), temporary)
    return Memory(
        parameters=_tree_bytes(state.model),
        optimizer=_tree_bytes(state.opt_state),
        batch=_tree_bytes(batch),
        activations=activations,
        temporaries=temporary - activations,
        peak=compiled_peak(compiled),
    )


def compiled_peak(compiled: jax.stages.Compiled) -> int:
    """Bytes of one device at the fullest moment of ``compiled``, its arguments and results included."""
    statistics: Any = compiled.memory_analysis()
    # What is given away and comes back changed is counted once.
    returned = statistics.output_size_in_bytes - statistics.alias_size_in_bytes
    return statistics.argument_size_in_bytes + returned + statistics.temp_size_in_bytes


def largest_contributors(
    program: Program, state: TrainState, saved: Iterable[jax.ShapeDtypeStruct], number: int = 10
) -> list[tuple[str, int]]:
    """What takes most of a device's memory: descriptions and bytes, largest first.

    Temporary arrays of equal shape are named once; several of them, or none, may be there at the fullest moment.
    """
    found: Counter[str] = Counter()
    for kind, tree in (("parameter", state.model), ("optimizer state of", state.opt_state)):
        for name, leaf in named_parameters(tree).items():
            found[f"{kind} {name}"] = _local_bytes(leaf)
    for leaf in saved:
        found[f"kept for the backward pass: {leaf.dtype}{list(leaf.shape)}"] += _num_bytes(
            leaf.shape, leaf.dtype
        )
    shapes: set[Shape] = set()
    for computation, _ in program.executed():
        for instruction in computation.values():
            if instruction.opcode in _VIEWS or instruction.opcode.endswith("-done"):
                continue
            for shape in set(instruction.shapes) - shapes:
                origin = re.search(r'op_name="([^"]*)"', instruction.attributes)
                source = origin[1].rsplit("/", 1)[-1] if origin else instruction.opcode
                found[f"temporary {shape.dtype}{list(shape.dims)} of {source}"] = shape.num_bytes
            shapes.update(instruction.shapes)
    return found.most_common(number)


def _tree_bytes(tree: Any) -> int:
    return sum(_local_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return _num_bytes(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)


def _num_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * jax.numpy.dtype(dtype).itemsize
