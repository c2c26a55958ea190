"""Strict YAML to frozen dataclasses: unknown keys, wrong types and bad overrides are errors that name the fix."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import yaml

from mpo_robot.errors import ConfigError

T = TypeVar("T")
_LONGEST_S = 1e9


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key instead of silently keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused by the base class
            key = (key_node.tag, str(key_node.value))
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"{node.start_mark.name}, line {line}: key {key[1]!r} repeats")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as stream:
            data: Any = yaml.load(stream, Loader=_UniqueKeyLoader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not _is_mapping(data):
        raise ConfigError(f"{path} must hold a mapping at its top level, found {type(data).__name__}")
    return dict(data)


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Copy of `data` with `a.b=value` overrides applied; values are read as YAML.

    Raises:
        ConfigError: an override has no `=`, or steps into something that is not a mapping.
    """
    result = _copy(data)
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not separator or not all(keys):
            raise ConfigError(f"override {override!r} must look like key=value or section.key=value")
        try:
            value = parse_scalar(text)
        except ConfigError as error:
            raise ConfigError(f"override {override!r}: {error}") from error
        target = result
        for key in keys[:-1]:
            section: Any = target.get(key)
            if section is None:
                section = target[key] = {}
            if not isinstance(section, dict):
                raise ConfigError(f"override {override!r}: {key!r} is a value, not a section")
            target = typing.cast("dict[str, Any]", section)
        target[keys[-1]] = value
    return result


def parse_scalar(text: str) -> Any:
    """A YAML value; `1e-3` counts as a number, as every user expects (YAML 1.1 would read a string).

    Raises:
        ConfigError: not valid YAML.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is not valid YAML") from error
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def load_config(cls: type[T], source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> T:
    """Build dataclass `cls` from a YAML file or mapping plus overrides.

    Raises:
        ConfigError: unknown key (with the nearest known one), wrong type, missing value, or a value the dataclass's
            own `__post_init__` refuses.
    """
    data = source if isinstance(source, Mapping) else read_yaml(source)
    return build(cls, apply_overrides(data, overrides))


def build(cls: type[T], data: Mapping[str, Any], path: str = "") -> T:
    """Strict conversion of nested mappings to dataclass `cls`; `path` prefixes error texts."""
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in fields:
            raise ConfigError(_unknown_key(str(key), cls, path))
        values[key] = _convert(hints[key], value, f"{path}{key}")
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{path}{name} is required: {cls.__name__} has no default for it")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{path.rstrip('.') or cls.__name__}: {error}") from error


def to_dict(config: Any) -> Any:
    """Plain mappings, lists and scalars of a config; `build` of the result gives an equal config."""
    if dataclasses.is_dataclass(config):
        return {item.name: to_dict(getattr(config, item.name)) for item in dataclasses.fields(config)}
    if _is_list(config):
        return [to_dict(item) for item in config]
    if _is_mapping(config):
        return {key: to_dict(value) for key, value in config.items()}
    return str(config) if isinstance(config, Path) else config


def dump_yaml(config: Any) -> str:
    """YAML text of a config, keys in field order."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def differences(before: Any, after: Any, path: str = "") -> dict[str, list[Any]]:
    """What differs between two configs of a kind: `section.key` -> [value before, value after], as in YAML."""
    left, right = to_dict(before), to_dict(after)
    if not (_is_mapping(left) and _is_mapping(right)):
        return {} if left == right else {path: [left, right]}
    result: dict[str, list[Any]] = {}
    for key in dict.fromkeys((*left, *right)):
        result |= differences(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
    return result


def _unknown_key(key: str, cls: type, path: str) -> str:
    known = [item.name for item in dataclasses.fields(cls) if item.init]  # type: ignore[arg-type]
    deeper = [name for name in _nested_keys(cls, path) if name.rpartition(".")[2] == key]
    near = deeper or [path + name for name in difflib.get_close_matches(key, known, n=1, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {path}{key}: {hint}"


def _nested_keys(cls: type, path: str) -> list[str]:
    """Full keys of the settings in the sections of `cls`, at any depth."""
    keys: list[str] = []
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            section = typing.cast(type, hint)
            keys += [f"{path}{name}.{item.name}" for item in dataclasses.fields(section) if item.init]
            keys += _nested_keys(section, f"{path}{name}.")
    return keys


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if _is_mapping(value) else value for key, value in data.items()}


def _is_mapping(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple))


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is typing.Literal:
        if isinstance(value, bool) and value not in arguments:
            value = "on" if value else "off"  # YAML 1.1 reads the words on and off as booleans
        if value not in arguments:
            raise ConfigError(f"{path} must be one of {', '.join(map(str, arguments))}; got {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        if not _is_mapping(value):
            raise ConfigError(f"{path} must be a section (a mapping), got {value!r}")
        return build(hint, value, f"{path}.")  # type: ignore[arg-type]
    if origin is tuple:
        return _convert_tuple(arguments, value, path)
    if origin in (dict, Mapping) or hint is dict:
        if not _is_mapping(value):
            raise ConfigError(f"{path} must be a mapping, got {value!r}")
        item_hint = arguments[1] if arguments else Any
        return {str(key): _convert(item_hint, item, f"{path}.{key}") for key, item in value.items()}
    return _convert_scalar(hint, value, path)


def _convert_union(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    errors: list[str] = []
    for option in arguments:
        if option is type(None):
            continue
        try:
            return _convert(option, value, path)
        except ConfigError as error:
            errors.append(str(error))
    if len(errors) > 1:
        raise ConfigError(f"{path}: no allowed type fits {value!r} ({'; '.join(errors)})")
    raise ConfigError(errors[0] + (" (null is allowed too)" if type(None) in arguments else ""))


def _convert_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not _is_list(value):
        raise ConfigError(f"{path} must be a list, got {value!r}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if len(arguments) != len(value):
        raise ConfigError(f"{path} must have {len(arguments)} entries, got {len(value)}")
    return tuple(_convert(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(arguments, value)))


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    if isinstance(value, str) and hint in (float, int):
        with contextlib.suppress(ConfigError):  # then it is refused below, with its name
            value = parse_scalar(value)  # YAML 1.1 reads 1e-3 as text
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _finite(value, path)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{path} must be {getattr(hint, '__name__', hint)}, got {value!r}")


def _finite(value: float, path: str) -> float:
    """The number. No setting means anything by NaN, infinity, or a time (names end in `_s`) that no clock can hold."""
    try:
        number = float(value)
    except OverflowError:  # a very long integer
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{path} must be a finite number, got {number}")
    if path.endswith("_s") and abs(number) > _LONGEST_S:
        raise ConfigError(f"{path} must be at most {_LONGEST_S:.0e} seconds, got {number}")
    return number
