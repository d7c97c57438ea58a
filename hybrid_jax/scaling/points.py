"""The results of a ladder: one JSON object per line, each a checkpoint of one run, evaluated."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.errors import InputError
from hybrid_jax.yaml_config import from_mapping, to_mapping

ARCHITECTURES = {
    "olmo3": "OLMo 3",
    "olmo_hybrid": "OLMo Hybrid",
    "gdn": "Gated DeltaNet",
    "hybrid_1to1": "hybrid 1:1",
    "hybrid_7to1": "hybrid 7:1",
    "hybrid_middle": "hybrid, attention in the middle",
    "hybrid_positive": "hybrid, positive eigenvalues",
    "hybrid_no_gate": "hybrid without gate",
}
"""Name in files (as in presets) -> name in tables and figures. A new architecture gets a line here."""

# Losses are comparable only where these agree.
_SHARED = ("corpus", "tokenizer", "vocab_size")
# What makes a line another one's double: a fit would count the same result twice.
_IDENTITY = ("architecture", "size", "tokens", "decayed", "seed")


@dataclass(frozen=True, kw_only=True)
class LadderPoint:
    """One line of a results file: every field is required, and no other is allowed.

    Attributes:
        architecture: one of ``ARCHITECTURES``.
        size: the ladder's name for the size, such as "60m"; the same for all architectures.
        num_params: N, all parameters but the input embeddings; the head counts (arXiv 2604.03444, Eq. 2).
        tokens: D, trained on up to this checkpoint.
        flops: C, spent on training up to this checkpoint, forward and backward.
        loss: cross-entropy of the evaluation, in nats per token; a mean over several corpora is one loss.
        corpus: what was trained and evaluated on. One file, one corpus.
        tokenizer: the name of the tokenizer. One file, one tokenizer.
        vocab_size: rows of the embedding. One file, one size.
        horizon: the period that this checkpoint belongs to, in multiples of 20 tokens a parameter.
        decayed: whether the learning rate had decayed to 0: only such checkpoints are fitted.
        seed: of the run.
    """

    architecture: str
    size: str
    num_params: int
    tokens: int
    flops: float
    loss: float
    corpus: str
    tokenizer: str
    vocab_size: int
    horizon: float
    decayed: bool
    seed: int

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"architecture: found {self.architecture!r}, expected one of {', '.join(ARCHITECTURES)}"
            )
        for name in ("num_params", "tokens", "flops", "loss", "vocab_size", "horizon"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}: found {value}, expected a finite number above 0")


def read_points(path: Path) -> tuple[LadderPoint, ...]:
    """All points of a results file, in its order.

    Raises:
        InputError: naming file, line and field: no such file, a line that is no JSON object, a field that is missing,
            unknown, of the wrong type or out of its range, an unknown architecture, corpora or vocabularies that
            differ, the same checkpoint twice, no line at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file, expected the results of a ladder (JSONL)") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no text, expected a JSON object on each line") from None
    points: dict[tuple[Any, ...], tuple[int, LadderPoint]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        point = from_mapping(LadderPoint, _parse(line, where), where)
        first_number, first = next(iter(points.values()), (number, point))
        for name in _SHARED:
            found, expected = getattr(point, name), getattr(first, name)
            if found != expected:
                raise InputError(
                    f"{where}: {name}: found {found!r}, expected {expected!r} as in line {first_number}: "
                    "losses are comparable on one corpus and one vocabulary only"
                )
        identity = tuple(getattr(point, name) for name in _IDENTITY)
        if identity in points:
            raise InputError(
                f"{where}: found the checkpoint of line {points[identity][0]} again "
                f"({', '.join(_IDENTITY)} agree), expected each once"
            )
        points[identity] = (number, point)
    if not points:
        raise InputError(f"{path}: is empty, expected a JSON object on each line")
    return tuple(point for _, point in points.values())


def append_point(path: Path, point: LadderPoint) -> None:
    """Add a line; the file has it whole or not at all, whenever a run is stopped.

    Raises OSError where the file cannot be written.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines.append(json.dumps(to_mapping(point)))
    with write_then_rename(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def by_architecture(points: Sequence[LadderPoint]) -> dict[str, tuple[LadderPoint, ...]]:
    """The points that are fitted, after the learning rate's decay, of each architecture in the order of the table.

    Raises InputError where not one checkpoint is decayed.
    """
    groups = {
        name: tuple(each for each in points if each.decayed and each.architecture == name)
        for name in ARCHITECTURES
    }
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        raise InputError(
            "decayed: found false in all points, expected checkpoints after the learning rate's decay"
        )
    return groups


def _parse(line: str, where: str) -> dict[str, Any]:
    expected = f"expected an object with {', '.join(each.name for each in dataclasses.fields(LadderPoint))}"
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not readable as JSON ({error.msg}), {expected}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where}: found {line.strip()[:40]!r}, {expected}")
    return content
