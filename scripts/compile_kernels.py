"""Compile every GPU kernel of the gated delta rule for an H200 that need not be there, and refuse what would be slow.

python scripts/compile_kernels.py        needs pip install 'hybrid-jax[plan]', jax 0.11 or newer

A kernel that wants more shared memory than a block can have fails, and one that spills registers to memory at a shape
that is tuned. Exit code 1 then.
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.mlir import ir
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

from hybrid_jax.cli import run_script
from hybrid_jax.errors import InputError
from hybrid_jax.gpus import gpu_kind
from hybrid_jax.planning.target import described_devices, use_described_gpus

# Keys, values, heads: OLMo Hybrid's, the commonest, and the largest that are served.
SHAPES = ((96, 192, 30), (128, 128, 32), (256, 256, 16))
# OLMo Hybrid's with context parallelism, which adds K to V: other for the kernel that unrolls its loop over V.
WIDE = (96, 320, 30)
TUNED = (*SHAPES[:2], WIDE)
NUM_TOKENS, NUM_SEQUENCES = 8192, 16


class Compiled(NamedTuple):
    """What became of one kernel.

    Attributes:
        registers: of a thread.
        spilled: bytes that a thread keeps in memory for lack of registers.
        shared_memory: bytes of a block.
        seconds: tracing, lowering and compiling.
    """

    name: str
    shape: str
    registers: int
    spilled: int
    shared_memory: int
    seconds: float


def main() -> None:
    """Print the table; InputError if a kernel is not as it must be."""
    if jax.__version_info__ < (0, 11):
        raise InputError(f"jax: found {jax.__version__}, expected 0.11 or newer")
    os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
    use_described_gpus()
    mesh = Mesh(np.array(described_devices(gpu_kind("h200"), 1)), ("device",))
    table = Table("kernel", "K / V", "registers", "spilled bytes", "shared KB", "seconds")
    problems = []
    chosen = [kernel for shape in SHAPES for kernel in kernels(mesh, *shape)]
    chosen += [kernel for kernel in kernels(mesh, *WIDE) if kernel[0] == "backward, tokens"]
    for compiled in (compile_kernel(*kernel) for kernel in chosen):
        name, shape, registers, spilled, shared_memory, seconds = compiled
        table.add_row(
            name, shape, str(registers), str(spilled), f"{shared_memory / 1024:.1f}", f"{seconds:.1f}"
        )
        if spilled and shape in {f"{key_dim} / {value_dim}" for key_dim, value_dim, _ in TUNED}:
            problems.append(f"{name} at {shape}: found {spilled} bytes of registers spilled, expected none")
    Console(width=100).print(table)
    if problems:
        raise InputError("\n".join(problems))


def kernels(
    mesh: Mesh, key_dim: int, value_dim: int, num_heads: int
) -> Iterator[tuple[str, str, Callable[..., Any], tuple[Any, ...]]]:
    """Name, shape, function and arguments of each kernel."""
    from pallas_kernels.gated_delta_rule.mosaic.backward_states import scan_backward
    from pallas_kernels.gated_delta_rule.mosaic.backward_tokens import (
        TokenInputs,
        ValueInputs,
        token_gradients,
    )
    from pallas_kernels.gated_delta_rule.mosaic.decode import decode_step
    from pallas_kernels.gated_delta_rule.mosaic.forward import scan_forward
    from pallas_kernels.gated_delta_rule.mosaic.inputs import Inputs
    from pallas_kernels.gated_delta_rule.mosaic.inverse import chunk_inverses

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))

    num_chunks, scale = NUM_TOKENS // 64, key_dim**-0.5
    q, v = array(1, NUM_TOKENS, num_heads, key_dim), array(1, NUM_TOKENS, num_heads, value_dim)
    tables = array(1, num_heads, num_chunks, 3, 64, dtype=jnp.float32)
    inputs = Inputs(q, q, v, array(1, num_heads, num_chunks, 2, 64, 64), tables)
    state = array(1, num_heads, value_dim, key_dim, dtype=jnp.float32)
    states = array(1, num_heads, num_chunks, value_dim, key_dim)
    # The model's are float32 once they are normalised; values are as they come.
    token_q = array(NUM_SEQUENCES, num_heads, key_dim, dtype=jnp.float32)
    token_v = array(NUM_SEQUENCES, num_heads, value_dim)
    gate = array(NUM_SEQUENCES, num_heads, dtype=jnp.float32)
    own_state = array(NUM_SEQUENCES, num_heads, key_dim, value_dim, dtype=jnp.float32)

    shape = f"{key_dim} / {value_dim}"
    gates = array(1, num_heads, NUM_TOKENS, dtype=jnp.float32)
    yield "inverse", shape, chunk_inverses, (q, gates)
    yield "forward", shape, partial(scan_forward, scale=scale, save=False), (inputs, state)
    yield "forward, for backward", shape, partial(scan_forward, scale=scale, save=True), (inputs, state)
    yield "backward, states", shape, partial(scan_backward, scale=scale), (inputs, v, state)
    tokens, values = TokenInputs(q, q, tables), ValueInputs(v, v, v, states, states)
    yield "backward, tokens", shape, partial(token_gradients, scale=scale), (tokens, values)
    arguments = (token_q, token_q, token_v, gate, gate, own_state)
    yield "decode", shape, partial(decode_step, scale=scale), arguments


def compile_kernel(
    name: str, shape: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Compiled:
    """Compile one, and read what CUDA's assembler says of it."""
    began = time.perf_counter()
    try:
        lowered = jax.jit(function).lower(*arguments)
    except ValueError as error:  # which is how Mosaic says that it wants more shared memory than there is
        raise InputError(f"{name} at {shape}: {error}") from error
    with captured_output() as said:
        lowered.compile()
    seconds = time.perf_counter() - began
    text = said[0]
    registers = re.findall(r"Used (\d+) registers", text)
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    if not registers or not spilled:
        raise InputError(f"{name} at {shape}: expected the assembler's report, found: {text[-500:]!r}")
    return Compiled(
        name,
        shape,
        max(map(int, registers)),
        sum(int(stores) + int(loads) for stores, loads in spilled),
        shared_memory(lowered),
        seconds,
    )


def shared_memory(lowered: Any) -> int:
    """Bytes of shared memory with which the kernel in a lowered program is launched: arrays, barriers, and scratch."""
    program = lowered.compiler_ir()
    call = next(each for each in operations(program) if "custom_call" in each.name)
    program.context.allow_unregistered_dialects = True
    kernel = ir.Module.parse(call.attributes["mhlo.backend_config"]["module"].value_bytes, program.context)
    launch = next(each for each in operations(kernel) if each.name.endswith("gpu.launch"))
    return int(launch.operands[len(launch.operands) - 1].owner.attributes["value"])


def operations(parent: Any) -> Iterator[Any]:
    """All operations of an MLIR module or operation, at any depth."""
    for region in parent.operation.regions:
        for block in region:
            for operation in block:
                yield operation.operation
                yield from operations(operation)


@contextmanager
def captured_output() -> Iterator[list[str]]:
    """What this process writes, from C++ too, as one text in the list once the context is left."""
    said: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.NamedTemporaryFile() as file:
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield said
        finally:
            for number, original in zip((1, 2), kept, strict=True):
                os.dup2(original, number)
                os.close(original)
            said.append(Path(file.name).read_text(encoding="utf-8", errors="replace"))


if __name__ == "__main__":
    run_script(main)
