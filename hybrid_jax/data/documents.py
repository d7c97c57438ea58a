"""Reading what a corpus comes as: JSON lines (plain, gzip, Zstandard), Parquet, and folders of text files."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hybrid_jax.errors import InputError

_JSON_LINES = tuple(f"{name}{packed}" for name in (".jsonl", ".json") for packed in ("", ".gz", ".zst"))
_PARQUET = ".parquet"
_CHUNK_BYTES = 1 << 17
_PARQUET_BATCH = 256


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        where: file and line (JSON lines) or row (Parquet), both counted from 1, for messages.
        values: the row's fields.
    """

    where: str
    values: dict[str, Any]


def missing_extra(package: str, purpose: str) -> InputError:
    """What to raise where a package of the extra ``data`` cannot be imported."""
    return InputError(f"{package}: not installed, needed for {purpose}: pip install 'hybrid-jax[data]'")


def check_input(path: Path) -> None:
    """Refuse what is no folder and no file that ``read_rows`` can read.

    Raises:
        InputError: the path does not exist, or its name ends in none of the known kinds.
    """
    if not path.exists():
        raise InputError(f"{path}: found no such file or folder")
    if path.is_file() and not path.name.endswith((*_JSON_LINES, _PARQUET)):
        kinds = ", ".join((*_JSON_LINES, _PARQUET))
        raise InputError(f"{path}: found a file of unknown kind, expected {kinds}, or a folder of text files")


def read_rows(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), skip: int = 0
) -> Iterator[Row]:
    """Read a file's rows in order; blank lines of JSON lines are no rows.

    Args:
        path: a file that ``check_input`` lets pass.
        required: fields that every row must have.
        optional: further fields to read; JSON lines bring all their fields in any case.
        skip: rows to leave out at the beginning.

    Raises:
        InputError: a line is no JSON object, a required field is missing, the file is damaged or a folder, or a
            package that reads it is not installed.
    """
    if path.is_dir():
        raise InputError(f"{path}: found a folder, expected a file ({', '.join((*_JSON_LINES, _PARQUET))})")
    if path.name.endswith(_PARQUET):
        yield from islice(_parquet_rows(path, required, optional), skip, None)
        return
    for number, line in islice(_json_lines(path), skip, None):
        where = f"{path}: line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: expected a JSON object: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{where}: expected a JSON object, found a {type(values).__name__}")
        _check_fields(where, values, required)
        yield Row(where, values)


def read_texts(path: Path, text_field: str, suffixes: Sequence[str], skip: int = 0) -> Iterator[str]:
    """Read documents: one field of a file's rows, or the files of a folder (below it too), by relative path.

    Args:
        path: a file or folder that ``check_input`` lets pass.
        text_field: the field of a file's rows.
        suffixes: how the names of a folder's text files end.
        skip: documents to leave out at the beginning.

    Raises:
        InputError: as ``read_rows``; a text is no string or no Unicode; a folder has no such files.
    """
    if not path.is_dir():
        for row in read_rows(path, [text_field], skip=skip):
            text = row.values[text_field]
            if not isinstance(text, str):
                found = "null" if text is None else type(text).__name__
                raise InputError(f"{row.where}: field {text_field!r}: found {found}, expected a string")
            check_unicode(row.where, text)
            yield text
        return
    for file in text_files(path, suffixes)[skip:]:
        try:
            yield file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: expected UTF-8 text: {error}") from error


def text_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The regular files at any depth of a folder whose names end so, ordered by relative path.

    Raises:
        InputError: there is none.
    """
    found = [
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(tuple(suffixes))
    ]
    files = [path for path in found if path.is_file()]
    if not files:
        raise InputError(
            f"{folder}: found no files ending in {' or '.join(suffixes)} (suffixes names others)"
        )
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def check_unicode(where: str, text: str) -> None:
    """Refuse half a surrogate pair, which JSON can spell out and no tokenizer can encode.

    Raises:
        InputError: the text has one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: expected Unicode text: {error}") from error


def _check_fields(where: str, found: Sequence[str] | dict[str, Any], required: Sequence[str]) -> None:
    for name in required:
        if name not in found:
            raise InputError(f"{where}: found no field {name!r} among {sorted(found)}")


def _json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line that is not blank."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_decompressed_lines(path, file), start=1):
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: cannot be read after line {number}: {error}") from error


def _decompressed_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    if path.suffix == ".gz":
        with gzip.open(file) as decompressed:
            yield from decompressed
    elif path.suffix == ".zst":
        rest = b""
        for chunk in _zstd_chunks(file):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        if rest:
            yield rest
    else:
        yield from file


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress one frame after another; zstandard's own reader takes a file cut short for a whole one."""
    try:
        import zstandard
    except ImportError as error:
        raise missing_extra("zstandard", "files ending in .zst") from error

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = decompressor.decompressobj()
    inside = False
    while compressed := file.read(_CHUNK_BYTES):
        while compressed:
            try:
                yield frame.decompress(compressed)
            except zstandard.ZstdError as error:
                raise EOFError(error) from error
            inside = not frame.eof
            compressed = b""
            if frame.eof:
                compressed = frame.unused_data
                frame = decompressor.decompressobj()
    if inside:
        raise EOFError("the compressed file ends in the middle")


def _parquet_rows(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "Parquet files") from error

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_fields(str(path), names, required)
            columns = [name for name in (*required, *optional) if name in names]
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read after row {number}: {error}") from error
