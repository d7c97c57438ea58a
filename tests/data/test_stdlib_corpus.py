import pytest

from hybrid_jax.data.stdlib_corpus import TextFile, is_held_out, read_stdlib, split_corpus
from hybrid_jax.errors import InputError


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_reads_sources_in_path_order_and_nothing_else(tmp_path):
    write(
        tmp_path,
        {
            "b.py": b"b = 1\r\n",
            "a/z.py": "é = 2".encode(),
            "a/__init__.py": b"",
            "a/latin.py": b"# \xe9",
            "a/notes.txt": b"text",
            "a/tests/test_z.py": b"assert True",
            "encodings/cp037.py": b"table = 1",
            "site-packages/other.py": b"other = 1",
            "_sysconfigdata__linux.py": b"prefix = '/home/someone'",
            "config-3.11-x86_64/python-config.py": b"prefix = '/home/someone'",
        },
    )
    assert read_stdlib(tmp_path) == [
        TextFile(path="a/z.py", text="é = 2"),
        TextFile(path="b.py", text="b = 1\r\n"),
    ]


def test_the_interpreters_own_library_gives_a_corpus_worth_training_on():
    files = read_stdlib()
    paths = [file.path for file in files]
    assert {"ast.py", "json/decoder.py"} <= set(paths)
    assert paths == sorted(paths)
    train, held_out = split_corpus(files)
    assert sorted(train + held_out, key=lambda file: file.path) == files
    assert sum(len(file.text) for file in train) > 5_000_000
    assert 0.02 < sum(len(file.text) for file in held_out) / sum(len(file.text) for file in files) < 0.06


def test_the_split_of_a_path_never_changes():
    assert [
        path for path in ("ast.py", "fnmatch.py", "operator.py", "json/decoder.py") if is_held_out(path)
    ] == [
        "fnmatch.py",
        "operator.py",
    ]


def test_a_folder_without_sources_is_an_error(tmp_path):
    with pytest.raises(
        InputError, match=r"found no Python source files, expected the standard library's"
    ) as error:
        read_stdlib(tmp_path)
    assert str(tmp_path) in str(error.value)
