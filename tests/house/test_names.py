"""Every name looked up globally exists: linters must let jaxtyping's shapes pass, and with them slips of the pen."""

import builtins
import dis
import importlib
import types
from collections.abc import Iterator

import pytest

from tests.environment import ROOT
from tests.house.source import PACKAGES, python_files

FILES = python_files(*PACKAGES, "scripts")


def global_names(code: types.CodeType) -> Iterator[str]:
    """Names that ``code`` or code within it looks up in its module."""
    yield from (each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from global_names(constant)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_global_name_exists(path):
    inner = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(inner[:-1] if inner[-1] == "__init__" else inner))
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    missing = {
        name for name in global_names(code) if not hasattr(module, name) and not hasattr(builtins, name)
    }
    assert not missing
