"""The project's own source files as syntax trees, for tests that read the code instead of running it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.environment import ROOT

PACKAGES = ("hybrid_jax", "pallas_kernels")


def python_files(*folders: str) -> list[Path]:
    """Every Python file below the named folders of the repository, sorted."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported anywhere in ``tree``, also inside functions.

    ``from a.b import c`` yields ``a.b.c``: whether ``c`` is a module or a name in one makes no difference to
    which part of the project is reached. Relative imports raise ValueError, as the house has none.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: relative import; write the whole name")
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
