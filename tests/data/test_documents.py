"""Reading rows and texts from every kind of file, and saying what is wrong with one."""

import gzip
import json
import re
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from hybrid_jax.data.documents import check_input, read_rows, read_texts
from hybrid_jax.errors import InputError

ROWS = [{"text": f"row {number}\u2028é\n", "id": number} for number in range(600)]


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def frames(content):
    """As pzstd writes: several frames one after another, here cut without regard to lines."""
    compress = zstandard.ZstdCompressor().compress
    return b"".join(compress(content[start : start + 5000]) for start in range(0, len(content), 5000))


WRITERS = {
    "rows.jsonl": lambda rows: json_lines(rows),
    "rows.json": lambda rows: json_lines(rows).removesuffix(b"\n"),
    "rows.jsonl.gz": lambda rows: gzip.compress(json_lines(rows[:9])) + gzip.compress(json_lines(rows[9:])),
    "rows.jsonl.zst": lambda rows: frames(json_lines(rows)),
    "rows.json.zst": lambda rows: zstandard.ZstdCompressor().compress(json_lines(rows).removesuffix(b"\n")),
}


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
    else:
        path.write_bytes(WRITERS[path.name](rows))
    return path


@pytest.mark.parametrize("name", [*WRITERS, "rows.parquet"])
def test_every_kind_gives_the_same_rows(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    check_input(path)
    rows = list(read_rows(path, ["text"], ["id", "absent"]))
    assert [row.values for row in rows] == ROWS
    unit = "row" if name == "rows.parquet" else "line"
    assert rows[0].where == f"{path}: {unit} 1"
    assert list(read_rows(path, ["text"], ["id"], skip=300)) == rows[300:]
    assert list(read_texts(path, "text", [])) == [row["text"] for row in ROWS]
    assert list(read_texts(path, "text", [], skip=598)) == [row["text"] for row in ROWS[598:]]


def test_parquet_brings_nested_rows_and_only_the_columns_asked_for(tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "rows.parquet", [{"messages": messages, "id": 1}])
    assert [row.values for row in read_rows(path, ["messages"], ["tools"])] == [{"messages": messages}]


def test_blank_lines_are_no_rows_but_are_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a"}\r\n  \n{"text": "b"}\n\n')
    assert [row.where for row in read_rows(path, ["text"])] == [f"{path}: line 2", f"{path}: line 4"]
    path.write_text("")
    assert list(read_rows(path, ["text"])) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "line 2: expected a JSON object: "),
        (b'["a"]', "line 2: expected a JSON object, found a list"),
        (b'{"text": "\xff"}', "line 2: expected a JSON object: 'utf-8' codec can't decode"),
        (b"[" * 100000, "line 2: expected a JSON object: "),
        (b'{"body": "a", "id": 1}', "line 2: found no field 'text' among ['body', 'id']"),
        (b'{"text": 3}', "line 2: field 'text': found int, expected a string"),
        (b'{"text": null}', "line 2: field 'text': found null, expected a string"),
        (b'{"text": "\\ud83d"}', "line 2: expected Unicode text: "),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    texts = read_texts(path, "text", [])
    assert next(texts) == "a"
    with pytest.raises(InputError, match=re.escape(f"{path}: {message}")):
        next(texts)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst", "rows.json.zst", "rows.parquet"])
def test_a_damaged_file_is_an_error_wherever_it_is_cut(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    content = path.read_bytes()
    for size in (3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=re.escape(f"{path}: ")):
            list(read_rows(path, ["text"]))
    path.write_bytes(b"x" + content)
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read after ")):
        list(read_rows(path, ["text"]))


def test_a_file_cut_between_two_lines_is_an_error(tmp_path):
    """One Zstandard frame of incompressible blocks: what is left decompresses to whole lines."""
    path = tmp_path / "rows.jsonl.zst"
    line = json.dumps({"text": "x" * (2**17 - 13)}).encode() + b"\n"
    assert len(line) == 2**17
    content = zstandard.ZstdCompressor().compress(2 * line)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if size == 0:
            assert list(read_rows(path, ["text"])) == []
            continue
        with pytest.raises(InputError, match=r"cannot be read after line \d: the compressed file ends"):
            list(read_rows(path, ["text"]))


def test_missing_columns_and_files_of_other_kinds_are_errors(tmp_path):
    path = write(tmp_path / "rows.parquet", ROWS)
    with pytest.raises(InputError, match=re.escape(f"{path}: found no field 'body' among ['id', 'text']")):
        list(read_texts(path, "body", []))
    with pytest.raises(InputError, match=r"absent\.jsonl: found no such file or folder"):
        check_input(tmp_path / "absent.jsonl")
    (tmp_path / "rows.csv").write_text("a")
    with pytest.raises(
        InputError, match=r"rows\.csv: found a file of unknown kind, expected \.jsonl, \.jsonl\.gz"
    ):
        check_input(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="found a folder, expected a file"):
        list(read_rows(tmp_path, ["messages"]))


def test_a_folder_gives_its_text_files_by_relative_path(tmp_path):
    files = {
        "b.txt": "b\r\n",
        "a/z.txt": "é",
        "a/b/c.md": "",
        "a.txt": "a",
        "a/x.py": "no",
        "c.txt/d.txt": "d",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    check_input(tmp_path)
    assert list(read_texts(tmp_path, "text", [".txt", ".md"])) == ["a", "", "é", "b\r\n", "d"]
    assert list(read_texts(tmp_path, "text", [".txt"], skip=2)) == ["b\r\n", "d"]
    with pytest.raises(
        InputError, match=r"found no files ending in \.rst or \.tex \(suffixes names others\)"
    ):
        list(read_texts(tmp_path, "text", [".rst", ".tex"]))
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"b\.txt: expected UTF-8 text"):
        list(read_texts(tmp_path, "text", [".txt"]))


@pytest.mark.parametrize(
    ("name", "package"), [("rows.jsonl.zst", "zstandard"), ("rows.parquet", "pyarrow.parquet")]
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, name, package):
    path = write(tmp_path / name, ROWS)
    monkeypatch.setitem(sys.modules, package, None)
    expected = rf"{package.split('.')[0]}: not installed, needed for .*: pip install 'hybrid-jax\[data\]'"
    with pytest.raises(InputError, match=expected):
        list(read_rows(path, ["text"]))
