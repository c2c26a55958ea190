"""`--settings`: every setting of a command with its default and explanation, read off the configuration classes."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from mpo_robot.config import to_dict

WIDTH = 110
_ENTRY = re.compile(r"^    (\w+): (.*)$")


class Setting(NamedTuple):
    """One setting.

    Attributes:
        key: As in an override, `section.key`.
        default: YAML text; None if the setting must be given.
        choices: Allowed words, if only some are.
        explanation: From the docstring of its class.
    """

    key: str
    default: str | None
    choices: tuple[str, ...]
    explanation: str


def list_settings(cls: type, path: str = "") -> Iterator[Setting]:
    """Settings of a configuration dataclass in the order of its fields, those of its sections included."""
    hints = typing.get_type_hints(cls)
    explanations = attribute_texts(cls)
    for item in dataclasses.fields(cls):
        if not item.init:
            continue
        key, hint = f"{path}{item.name}", hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from list_settings(typing.cast(type, hint), f"{key}.")
            continue
        yield Setting(key, _default(item), _choices(hint), explanations.get(item.name, ""))
        for entry in _entry_classes(hint):
            yield from (setting._replace(default=None) for setting in list_settings(entry, f"{key}[]."))


def attribute_texts(cls: type) -> dict[str, str]:
    """The `Attributes:` section of a docstring, name -> text on one line; without one, the whole text for each."""
    text, found, section = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    if not found:
        return {item.name: " ".join(text.split()) for item in dataclasses.fields(cls)}
    texts: dict[str, str] = {}
    name = None
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if match := _ENTRY.match(line):
            name = match[1]
            texts[name] = match[2].strip()
        elif name is not None and line.strip():
            texts[name] += f" {line.strip()}"
    return texts


def render_settings(settings: Sequence[Setting] | Iterator[Setting]) -> str:
    """Text of a list of settings: `key=default`, then the explanation, indented."""
    blocks = []
    for item in settings:
        head = f"{item.key}={item.default}" if item.default is not None else item.key
        notes = " | ".join(item.choices)
        if item.default is None and "[]" not in item.key:
            notes = f"{notes}; required" if notes else "required"
        body = textwrap.wrap(item.explanation, WIDTH, initial_indent="    ", subsequent_indent="    ")
        blocks.append("\n".join([head + (f"    ({notes})" if notes else ""), *body]))
    return "\n".join(blocks)


def add_settings_option(parser: argparse.ArgumentParser, load: Callable[[], Mapping[str, type]]) -> None:
    """Add `--settings`, which prints them all and exits, whatever else is missing on the command line.

    Args:
        load: Gives the configuration classes by the section they belong to, `` for the top.
    """

    class _Show(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            for section, cls in load().items():
                print(render_settings(list_settings(cls, section)))
            parser.exit()

    parser.add_argument(
        "--settings", action=_Show, nargs=0, help="list all settings with defaults and explanations, and exit"
    )


def _default(item: dataclasses.Field[Any]) -> str | None:
    if item.default is not dataclasses.MISSING:
        value = item.default
    elif item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    else:
        return None
    text = yaml.safe_dump(to_dict(value), default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _choices(hint: Any) -> tuple[str, ...]:
    return tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else ()


def _entry_classes(hint: Any) -> Iterator[type]:
    """Configuration classes of the entries of a list or mapping of sections."""
    if typing.get_origin(hint) in (tuple, dict, Mapping):
        for argument in typing.get_args(hint):
            if dataclasses.is_dataclass(argument) and not isinstance(argument, types.GenericAlias):
                yield typing.cast(type, argument)
