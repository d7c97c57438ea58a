"""What one execution of a compiled program costs a device: products, memory traffic and collectives, loops included."""

import json
import math
import re
from dataclasses import dataclass

import numpy as np

from hybrid_jax.planning.hlo import Computation, Instruction, Program

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
_FUSIONS = ("fusion", "fusion-start")
_SLICES = ("dynamic-slice", "gather", "slice")
_SAME_ELEMENTS = ("bitcast", "reshape", "convert", "copy", "transpose")
# Instructions that move nothing themselves.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "async-start",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "iota",
}


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of a program.

    Attributes:
        kind: as XLA writes it, without "-start".
        num_bytes: what each device puts in, once.
        times: how often it runs.
        groups: device numbers [groups, members]; pairs of sender and receiver for a permutation.
    """

    kind: str
    num_bytes: int
    times: int
    groups: np.ndarray

    @property
    def traffic(self) -> float:
        """Bytes that each device sends in all, with a ring over the members of a group."""
        members = self.groups.shape[1]
        if self.kind == "collective-permute":
            share = 1.0
        elif self.kind == "all-gather":
            share = float(members - 1)
        elif self.kind == "all-reduce":
            share = 2 * (members - 1) / members
        else:
            share = (members - 1) / members
        return share * self.num_bytes * self.times


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one execution, on one device.

    Attributes:
        matmul_flops: of matrix products, recomputation included.
        memory_bytes: read from and written to memory by everything but collectives.
        collectives: those with more than one member.
    """

    matmul_flops: int
    memory_bytes: int
    collectives: tuple[Collective, ...]


def program_cost(program: Program) -> Cost:
    """Add up ``program``, each loop as often as it runs."""
    flops = memory = 0
    collectives: list[Collective] = []
    for computation, times in program.executed():
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in _COLLECTIVES:
                groups = _groups(instruction.attributes, program.num_devices)
                if groups.shape[1] > 1:
                    num_bytes = sum(computation[name].num_bytes for name in instruction.operands)
                    collectives.append(Collective(kind=kind, num_bytes=num_bytes, times=times, groups=groups))
            elif instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
                memory += times * _memory_bytes(instruction, computation, program)
                flops += times * _matmul_flops(instruction, computation, program)
    return Cost(matmul_flops=flops, memory_bytes=memory, collectives=tuple(collectives))


def _memory_bytes(instruction: Instruction, computation: Computation, program: Program) -> int:
    """What an instruction reads and writes; of arrays it takes or replaces a slice of, that slice."""
    if instruction.opcode in _FUSIONS:
        return _fused_bytes(program.computations[instruction.called()[0]])
    operands = [computation[name] for name in instruction.operands]
    if instruction.opcode in _SLICES:
        return 2 * instruction.num_bytes
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1].num_bytes
    return instruction.num_bytes + sum(operand.num_bytes for operand in operands)


def _fused_bytes(fused: Computation) -> int:
    """What a fusion reads of its parameters and writes as its results."""
    users: dict[str, list[Instruction]] = {name: [] for name in fused}
    for instruction in fused.values():
        for operand in instruction.operands:
            users[operand].append(instruction)
    (root,) = (instruction for instruction in fused.values() if instruction.is_root)
    results = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    read = sum(
        _read_bytes(instruction, users) for instruction in fused.values() if instruction.opcode == "parameter"
    )
    return read + sum(_written_bytes(result, fused) for result in results)


def _read_bytes(array: Instruction, users: dict[str, list[Instruction]]) -> int:
    """How much of ``array`` its users read: slices where they only take or replace slices of it, else all."""
    total = 0
    for user in users[array.name]:
        if user.opcode in _SLICES:
            total += user.num_bytes
        elif user.opcode in _SAME_ELEMENTS:
            total += _read_bytes(user, users)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != array.name:
            return array.num_bytes
    return min(total, array.num_bytes)


def _written_bytes(result: Instruction, fused: Computation) -> int:
    while result.opcode in _SAME_ELEMENTS:
        result = fused[result.operands[0]]
    return (
        fused[result.operands[1]].num_bytes if result.opcode == "dynamic-update-slice" else result.num_bytes
    )


def _matmul_flops(instruction: Instruction, computation: Computation, program: Program) -> int:
    if instruction.opcode in _FUSIONS:
        fused = program.computations[instruction.called()[0]]
        return sum(_matmul_flops(inner, fused, program) for inner in fused.values())
    contracting: tuple[int, ...] = ()
    if instruction.opcode == "dot":
        contracting = instruction.attribute("lhs_contracting_dims")
    elif instruction.opcode == "custom-call":
        # The vendor's library; its second result is scratch memory.
        found = re.search(r'"dot_dimension_numbers":(\{[^{}]*\})', instruction.attributes)
        if found:
            contracting = tuple(map(int, json.loads(found[1])["lhs_contracting_dimensions"]))
    if not contracting:
        return 0
    (lhs,) = computation[instruction.operands[0]].shapes
    return 2 * math.prod(instruction.shapes[0].dims) * math.prod(lhs.dims[dim] for dim in contracting)


def _groups(attributes: str, num_devices: int) -> np.ndarray:
    """Who takes part with whom, from any of the ways XLA writes it."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return _listed(pairs[1])
    text = attributes.partition("replica_groups=")[2]
    if named := re.match(r"mesh\[([^\]]*)\] *\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'?(\w+)'?=(\d+)", named[1])}
        taken = [list(sizes).index(name) for name in re.findall(r"'?(\w+)'?", named[2])]
        devices = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        rest = [dim for dim in range(devices.ndim) if dim not in taken]
        members = math.prod(devices.shape[dim] for dim in taken)
        return devices.transpose(*rest, *taken).reshape(-1, members)
    if iota := re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        devices = np.arange(int(iota[1]) * int(iota[2])).reshape([int(n) for n in iota[3].split(",")])
        if iota[4]:
            devices = devices.transpose([int(n) for n in iota[4].split(",")])
        return devices.reshape(int(iota[1]), int(iota[2]))
    if listed := re.match(r"\{(\{.*?\})\}", text):
        return _listed(listed[1])
    return np.arange(num_devices)[None]


def _listed(text: str) -> np.ndarray:
    return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)])
