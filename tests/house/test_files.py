"""Small rules every file keeps."""

import ast

import pytest

from tests.environment import ROOT
from tests.house.source import PACKAGES, parse, python_files

MAX_LINES = 600
FILES = python_files(*PACKAGES, "scripts", "tests")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_the_house_rules(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, "one file is one idea: split it"
    assert path.stem not in ("utils", "util", "helpers", "common", "misc"), "name the file after what it does"
    postponed = [
        node
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    assert not postponed, "postponed annotations hide shapes from the run-time checks"
