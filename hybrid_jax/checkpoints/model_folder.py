"""Folders in Hugging Face's form: where they are found, what they hold besides weights, how they are replaced."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from hybrid_jax.config import ModelConfig
from hybrid_jax.errors import InputError

CONFIG_FILE = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
_WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_folder(path_or_hub_id: str | os.PathLike[str], revision: str | None = None) -> Path:
    """A local folder as it is; otherwise the model's files on the Hugging Face hub, downloaded where not in its cache.

    Args:
        path_or_hub_id: a folder, or an id like "allenai/Olmo-Hybrid-7B".
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: neither a folder nor a model that can be reached, or a revision of a local folder.
    """
    name = os.fspath(path_or_hub_id)
    if Path(name).is_dir():
        if revision is not None:
            raise InputError(f"revision: found {revision!r}, but {name} is a local folder, which has none")
        return Path(name)
    if Path(name).exists() or not _HUB_ID.fullmatch(name):
        raise InputError(f"{name}: no such folder, and not an id of the Hugging Face hub")
    try:
        patterns = [CONFIG_FILE, *_WEIGHT_FILES, *TOKENIZER_FILES]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        at = f" (revision {revision!r})" if revision else ""
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name}{at}: no such folder, and not reachable on the Hugging Face hub: {reason}"
        ) from None


def read_config(folder: Path) -> ModelConfig:
    """The folder's config.json.

    Raises:
        InputError: missing, not JSON, or not a model that this project knows.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    try:
        return ModelConfig.from_hf(content)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write as Hugging Face does: sorted, indented by two."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, folder: Path) -> list[str]:
    """Copy what tokenizer files there are in ``source``; returns their names.

    Raises:
        InputError: ``source`` is not a folder.
    """
    if not source.is_dir():
        raise InputError(f"tokenizer_from: {source}: no such folder")
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, folder / name)
    return found


@contextmanager
def replace_model(folder: Path) -> Iterator[Path]:
    """Yield an empty folder whose files replace the model in ``folder`` when the block ends without an exception.

    After any exception (a full disk, Ctrl-C) ``folder`` is as it was. Other files in it are left alone; weights of
    the model that was there go.

    Raises:
        InputError: ``folder`` is a file.
        OSError: it cannot be written.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, found a file")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if not folder.exists():
            os.rename(temporary, folder)
            return
        new = sorted(path.name for path in temporary.iterdir())
        for name in new:
            os.replace(temporary / name, folder / name)
        for stale in {path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)}:
            if stale.name not in new:
                stale.unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
