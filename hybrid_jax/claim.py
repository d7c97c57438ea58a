"""A folder of results belongs to what it was made from: nothing made from something else is added to it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.differences import differences
from hybrid_jax.errors import InputError
from hybrid_jax.yaml_config import read_yaml, to_yaml

Record = Mapping[str, Any]


def claim_folder(
    path: Path,
    record: Record,
    results: Sequence[str],
    deciding: Callable[[Record, Record], tuple[Record, Record]],
) -> None:
    """Write at ``path`` what the results beside it are made from, unless they are made from something else.

    Args:
        path: a YAML file.
        record: plain values.
        results: glob patterns of what is worth keeping, as seen from the folder of ``path``. Where nothing fits them,
            the folder is still free, whatever it was meant for before.
        deciding: of ``record`` and a saved one, what must agree in both.

    Raises:
        InputError: the saved record differs in what must agree, or is none.
        OSError: the file cannot be read or written.
    """
    if path.exists() and any(True for pattern in results for _ in path.parent.glob(pattern)):
        try:
            found = differences(*deciding(record, read_yaml(path)), "", "the folder")
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: found no record of results, expected {', '.join(record)}") from None
        if found:
            raise InputError(
                f"{path}: results there are made from something else, expected the same or another output_folder: "
                + "; ".join(found)
            )
    with write_then_rename(path) as temporary:
        temporary.write_text(to_yaml(record), encoding="utf-8")
