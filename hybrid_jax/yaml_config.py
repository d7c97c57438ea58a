"""YAML file -> frozen dataclasses, strictly, then command-line overrides; and back to YAML.

Nothing is guessed: an unknown or doubled key and a value of the wrong type are errors that name the file, the
dotted field, what was found and what was expected. One exception serves people: an int is taken where a float is
expected. A dataclass with a classmethod ``preset(name, **overrides)`` may be written as ``preset: NAME`` plus the
fields to override.
"""

import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Union

import tyro
import yaml

from hybrid_jax.errors import InputError

C = TypeVar("C")
_TAG = "tag:yaml.org,2002:"


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2 scalars (``1e-3`` is a float, ``no`` a string), string keys only, none of them twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML declares it so, on its own class

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first_lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if key_node.tag != _TAG + "str":
                problem = f"key {key_node.value!r} is not a string"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key_node.start_mark)
            if key_node.value in first_lines:
                problem = f"key {key_node.value!r} appears twice, first on line {first_lines[key_node.value]}"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key_node.start_mark)
            first_lines[key_node.value] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


for _kind, _pattern, _first_characters in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _StrictLoader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), _first_characters)


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's top-level mapping, as plain Python values.

    Raises InputError for a missing file, bad YAML, a doubled key or a top level that is no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: found {_describe(content)} at the top level, expected a mapping of fields")
    return content


def from_mapping(cls: type[C], content: Mapping[str, Any], source: str) -> C:
    """Build the dataclass ``cls`` from plain values; ``source`` (a file name) opens every error message.

    Raises InputError for unknown or missing fields, wrong types, and what the dataclasses themselves refuse.
    """
    return _build_dataclass(cls, content, source, "")


def load(cls: type[C], path: Path) -> C:
    """Build the dataclass ``cls`` from a YAML file. Raises InputError as ``from_mapping`` does."""
    return from_mapping(cls, read_yaml(path), str(path))


def from_command_line(cls: type[C], arguments: Sequence[str] | None = None) -> C:
    """Build ``cls`` from ``FILE.yaml --any.field value ...`` (default: this process's own arguments).

    An override means what the same line in the file would mean. ``FILE.yaml --help`` lists every field with its
    configured value. A flag that is unknown or of the wrong type ends the process with tyro's explanation on
    stderr. Raises InputError for a bad file or a result that contradicts itself.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    program = Path(sys.argv[0]).name
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"expected a YAML file first: {program} FILE.yaml [--any.field value ...] [--help]")
    path = Path(arguments[0])
    content = read_yaml(path)
    configured = from_mapping(cls, content, str(path))
    if len(arguments) == 1:
        return configured
    overrides = tyro.cli(
        _overrides_type(cls, configured),
        args=arguments[1:],
        prog=f"{program} {path}",
        description=(cls.__doc__ or "").partition("\n")[0],
        config=(tyro.conf.FlagConversionOff,),
    )
    return from_mapping(cls, _merge(content, overrides), f"{path} with command-line overrides")


def to_mapping(config: Any) -> dict[str, Any]:
    """The dataclass as plain YAML and JSON values: tuples become lists. ``from_mapping`` inverts it."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def to_yaml(config: Any) -> str:
    """The dataclass, or its plain values, as YAML text in field order; ``load`` gives an equal object back."""
    return yaml.safe_dump(_plain(config), sort_keys=False, width=110)


def _overrides_type(cls: type, configured: Any) -> Any:
    """A TypedDict of ``cls``'s fields, all optional: tyro then reports only what the command line gave.

    In a mapping of dataclasses, those that are configured have flags under their names; a list of them has none.
    """
    flags: dict[str, Any] = {"preset": str} if hasattr(cls, "preset") else {}
    for name, hint in typing.get_type_hints(cls).items():
        value = getattr(configured, name, None)
        members = [each for each in typing.get_args(hint) or (hint,) if each is not type(None)]
        sections = [each for each in members if dataclasses.is_dataclass(each)]
        if not sections:
            flags[name] = Annotated[hint, tyro.conf.arg(help_behavior_hint=f"(configured: {_plain(value)})")]
        elif typing.get_origin(hint) in (dict, Mapping):
            inner = typing.cast(type, members[1])
            flags[name] = _typed_dict(
                name, {key: _overrides_type(inner, each) for key, each in (value or {}).items()}
            )
        elif len(sections) == len(members):
            # Of several kinds of section, the configured one.
            kind = members[0] if value is None else type(value)
            flags[name] = _overrides_type(typing.cast(type, kind), value)
    overrides_type = _typed_dict(cls.__name__, flags)
    overrides_type.__doc__ = cls.__doc__
    return overrides_type


def _typed_dict(name: str, fields: dict[str, Any]) -> Any:
    made: Any = TypedDict(name, fields, total=False)  # type: ignore[misc]  # made at run time
    return made


def _merge(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            value = _merge(merged.get(name) or {}, value)
            if not value:  # tyro reports a section without flags as an empty mapping
                continue
        merged[name] = value
    return merged


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _build_dataclass(cls: type[C], content: Any, source: str, field: str) -> C:
    prefix = f"{source}: {field}: " if field else f"{source}: "
    if not isinstance(content, Mapping):
        raise InputError(f"{prefix}found {_describe(content)}, expected a mapping of {cls.__name__} fields")
    values = dict(content)
    make: Callable[..., C] = cls
    preset = getattr(cls, "preset", None)
    if preset is not None and "preset" in values:
        make = partial(preset, _convert(str, values.pop("preset"), source, _join(field, "preset")))
    hints = typing.get_type_hints(cls)
    fields = _fields(cls)
    for name in values:
        if name not in fields:
            raise InputError(f"{source}: unknown field {_join(field, name)!r}{_suggestion(name, fields)}")
    missing = [
        name
        for name, each in fields.items()
        if name not in values
        and each.default is dataclasses.MISSING
        and each.default_factory is dataclasses.MISSING
    ]
    if missing and make is cls:
        raise InputError(f"{prefix}missing fields: {', '.join(missing)}")
    converted = {
        name: _convert(hints[name], value, source, _join(field, name)) for name, value in values.items()
    }
    try:
        return make(**converted)
    except InputError as error:
        message = str(error).removeprefix(f"{field}.")
        raise InputError(f"{source}: {_join(field, message)}") from None


def _convert(hint: Any, value: Any, source: str, field: str) -> Any:
    """``value`` as the type ``hint`` asks, or InputError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, source, field)
    if dataclasses.is_dataclass(hint):
        return _build_dataclass(typing.cast(type, hint), value, source, field)
    if origin is tuple and isinstance(value, (list, tuple)):
        return _convert_tuple(hint, value, source, field)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _convert(arguments[1], item, source, _join(field, key)) for key, item in value.items()}
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _wrong_type(hint, value, source, field, _suggestion(value, arguments))
    if hint is Any or (hint in (bool, str, int, float) and type(value) is hint):
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint in (None, type(None)) and value is None:
        return None
    raise _wrong_type(hint, value, source, field)


def _convert_union(members: tuple[Any, ...], value: Any, source: str, field: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = tuple(member for member in members if member is not type(None))
    if isinstance(value, Mapping) and all(dataclasses.is_dataclass(member) for member in members):
        # The kind of section with most of the fields, so that what is wrong is told of that one.
        return _convert(
            max(members, key=lambda each: len(_fields(each).keys() & value.keys())), value, source, field
        )
    # The exact type wins, so that 3 stays an int in ``int | float``.
    for member in sorted(members, key=lambda each: each is not type(value)):
        try:
            return _convert(member, value, source, field)
        except InputError:
            if len(members) == 1:
                raise
    raise _wrong_type(Union[members], value, source, field)  # noqa: UP007  members are known at run time


def _fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    """By name, those that are given to make one."""
    return {each.name: each for each in dataclasses.fields(cls) if each.init}


def _convert_tuple(hint: Any, value: Sequence[Any], source: str, field: str) -> tuple[Any, ...]:
    members = typing.get_args(hint)
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise _wrong_type(hint, list(value), source, field)
    return tuple(
        _convert(member, item, source, f"{field}[{index}]")
        for index, (member, item) in enumerate(zip(members, value, strict=True))
    )


def _wrong_type(hint: Any, value: Any, source: str, field: str, suggestion: str = "") -> InputError:
    return InputError(f"{source}: {field}: found {_describe(value)}, expected {_name(hint)}{suggestion}")


def _name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (None, type(None)):
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(member) for member in arguments)
    if origin is tuple:
        inner = ", ".join("..." if member is Ellipsis else _name(member) for member in arguments)
        return f"a list [{inner}]"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a mapping"
    return "a path (str)" if hint is Path else getattr(hint, "__name__", str(hint))


def _describe(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    return f"{value!r} ({type(value).__name__})"


def _suggestion(name: Any, choices: Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
