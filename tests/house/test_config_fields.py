"""Every configuration field is read by some code: a field that nothing reads is a promise not kept."""

import ast
import dataclasses
import importlib
import pkgutil

import pytest

import hybrid_jax
from tests.house.source import PACKAGES, parse, python_files


def config_classes() -> list[type]:
    """The frozen keyword-only dataclasses of hybrid_jax, which is how the house writes configuration."""
    found = []
    for info in pkgutil.walk_packages(hybrid_jax.__path__, "hybrid_jax."):
        module = importlib.import_module(info.name)
        found += [
            each
            for each in vars(module).values()
            if isinstance(each, type)
            and dataclasses.is_dataclass(each)
            and each.__module__ == module.__name__
            and each.__dataclass_params__.frozen
            and all(field.kw_only for field in dataclasses.fields(each))
        ]
    return found


def names_read(node: ast.AST) -> set[str]:
    """Attributes read in ``node``; a dataclass's private functions only validate, so they do not count."""
    if isinstance(node, ast.ClassDef) and is_dataclass_definition(node):
        inner = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"]
        return set().union(*map(names_read, inner))
    names = {node.attr} if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) else set()
    return names.union(*map(names_read, ast.iter_child_nodes(node)))


def is_dataclass_definition(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.fixture(scope="module")
def read_somewhere() -> set[str]:
    return set().union(*(names_read(parse(path)) for path in python_files(*PACKAGES, "scripts")))


@pytest.mark.parametrize("config_class", config_classes(), ids=lambda each: each.__name__)
def test_every_field_is_read(config_class, read_somewhere):
    unread = {field.name for field in dataclasses.fields(config_class)} - read_somewhere
    assert not unread, f"{config_class.__name__}: no code reads {sorted(unread)}"


def test_the_model_is_configured_this_way():
    assert hybrid_jax.ModelConfig in config_classes()
