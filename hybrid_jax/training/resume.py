"""What must not have changed between the checkpoint and the run that continues it."""

from collections.abc import Mapping
from typing import Any

from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError
from hybrid_jax.yaml_config import from_mapping, to_mapping

# These decide how it is computed, never what comes out.
_FREE_MODEL_FIELDS = ("remat", "context_parallel")


def check_same_model(model: ModelConfig, saved: Mapping[str, Any], checkpoint: str) -> None:
    """Refuse to continue ``checkpoint`` with another model than the one it was ``saved`` with (as JSON values).

    Raises:
        InputError: lists every differing field.
    """
    found, expected = to_mapping(model), to_mapping(from_mapping(ModelConfig, saved, checkpoint))
    for name in _FREE_MODEL_FIELDS:
        del found[name], expected[name]
    _refuse(_differences(found, expected, "model."), checkpoint, "another model")


def check_same_data(data: Mapping[str, Any], saved: Mapping[str, Any], checkpoint: str) -> None:
    """Refuse to continue ``checkpoint`` with other data, of which the same step would give another batch.

    Raises:
        InputError: lists what changed.
    """
    _refuse(_differences(data, saved, "data."), checkpoint, "other data")


def _refuse(differences: list[str], checkpoint: str, what: str) -> None:
    if differences:
        raise InputError(
            f"{checkpoint}: made with {what}: {'; '.join(differences)}. "
            "Undo the change, or start a new run with another output_folder"
        )


def _differences(found: Any, saved: Any, name: str) -> list[str]:
    if isinstance(found, Mapping) and isinstance(saved, Mapping):
        keys = list(found) + [key for key in saved if key not in found]
        return [
            line for key in keys for line in _differences(found.get(key), saved.get(key), f"{name}{key}.")
        ]
    if found == saved:
        return []
    name = name.rstrip(".")
    if isinstance(found, list) and isinstance(saved, list):
        added, lost = (
            [each for each in found if each not in saved],
            [each for each in saved if each not in found],
        )
        if added or lost:
            return [f"{name}: found {_shorten(added)} where the checkpoint has {_shorten(lost)}"]
    return [f"{name}: found {found!r}, the checkpoint has {saved!r}"]


def _shorten(entries: list[Any], limit: int = 3) -> str:
    shown = ", ".join(str(each) for each in entries[:limit])
    more = f" and {len(entries) - limit} more" if len(entries) > limit else ""
    return f"[{shown}{more}]"
