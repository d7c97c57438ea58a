"""Who may import whom, read from the code's own imports."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from tests.environment import ROOT
from tests.house.source import PACKAGES, imported_modules, parse, python_files

EVERYWHERE = {"errors", "cli", "atomic", "yaml_config", "differences", "claim", "orbax_failures", "processes"}
# A part of the project -> the parts it may import besides itself and those in EVERYWHERE.
ALLOWED = {
    "pallas_kernels": set(),
    "errors": set(),
    "cli": set(),
    "atomic": set(),
    "yaml_config": set(),
    "differences": set(),
    "claim": set(),
    "orbax_failures": set(),
    "processes": set(),
    "gpus": set(),
    "config": set(),
    "sharding": {"config"},
    "models": {"pallas_kernels", "sharding", "config"},
    "checkpoints": {"models", "sharding", "config"},
    "generation": {"models", "sharding", "config"},
    "data": {"config"},
    "scaling": {"config"},
    "training": {"checkpoints", "models", "sharding", "config", "gpus", "data"},
    "planning": {"training", "models", "sharding", "config", "gpus", "data"},
    "expressivity": {"training", "models", "config"},
    "evaluation": {"generation", "models", "sharding", "config", "data"},
    "ladder": {"scaling", "training", "evaluation", "checkpoints", "models", "sharding", "config", "data"},
    "long_context": {"evaluation", "training", "models", "config", "data"},
    "face": {"checkpoints", "generation", "config"},
}
SOURCES = python_files(*PACKAGES)


def part_of_file(path: Path) -> str:
    package, *inner = path.relative_to(ROOT).with_suffix("").parts
    if package == "pallas_kernels":
        return package
    return "face" if inner == ["__init__"] else inner[0]


def part_of_module(name: str) -> str | None:
    """The part a dotted name belongs to; None when it is not ours."""
    package, *inner = name.split(".")
    if package == "hybrid_jax":
        return inner[0] if inner and inner[0] in ALLOWED else "face"
    return package if package in ("pallas_kernels", "scripts", "tests") else None


def forbidden_imports(path: Path) -> list[str]:
    part = part_of_file(path)
    may = ALLOWED[part] | {part} | (EVERYWHERE if part != "pallas_kernels" else set())
    return [
        f"{path.relative_to(ROOT)}:{line}: {part} must not import {name}"
        for line, name in imported_modules(parse(path))
        if part_of_module(name) not in {None, *may}
    ]


def test_every_part_has_a_rule_and_every_rule_a_part():
    assert {part_of_file(path) for path in SOURCES} == set(ALLOWED)


def test_imports_point_downwards():
    assert [fault for path in SOURCES for fault in forbidden_imports(path)] == []


def test_nothing_imports_scripts():
    """But a script may be made of modules in a folder, which only scripts import."""
    folders = tuple(f"scripts.{path.name}." for path in (ROOT / "scripts").iterdir() if path.is_dir())
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in python_files(*PACKAGES, "scripts")
        for line, name in imported_modules(parse(path))
        if part_of_module(name) in ("scripts", "tests")
        and not (path.is_relative_to(ROOT / "scripts") and name.startswith(folders))
    ]
    assert faults == []


def test_kernels_depend_on_jax_and_jaxtyping_alone():
    roots = {
        name.split(".")[0]
        for path in python_files("pallas_kernels")
        for _, name in imported_modules(parse(path))
    }
    assert roots - sys.stdlib_module_names <= {"jax", "jaxtyping", "pallas_kernels"}


def declared(project: dict, *, extras: bool) -> set[str]:
    requirements = list(project["dependencies"])
    if extras:
        requirements += [entry for extra in project["optional-dependencies"].values() for entry in extra]
    return {re.split(r"[^\w.-]", entry)[0].lower().replace("_", "-") for entry in requirements}


def third_party(tree: ast.Module, distributions: dict[str, list[str]]) -> set[str]:
    roots = {name.split(".")[0] for _, name in imported_modules(tree)}
    roots -= sys.stdlib_module_names | {*PACKAGES, "scripts", "tests"}
    return {distributions.get(root, [root])[0].lower().replace("_", "-") for root in roots}


def undeclared(project: dict, *, extras: bool) -> set[str]:
    """What is imported but not declared: at the top of package files, or anywhere where ``extras`` count."""
    distributions = importlib.metadata.packages_distributions()
    imported = set()
    for path in python_files(*PACKAGES, *(["scripts"] if extras else [])):
        tree = parse(path)
        if not extras:
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        imported |= third_party(tree, distributions)
    return imported - declared(project, extras=extras)


def test_what_is_imported_is_declared():
    """Only imports inside a function, and scripts, may rely on an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert undeclared(project, extras=False) == set()
    assert undeclared(project, extras=True) == set()
