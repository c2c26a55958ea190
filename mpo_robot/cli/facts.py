"""Nested facts as aligned text or JSON. A fact is a scalar, a mapping of facts, or a list of mappings (a table)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_INDENT = "  "


def render(facts: Mapping[str, Any], indent: str = _INDENT) -> str:
    """Text lines of nested facts: scalars as `name  value`, mappings and tables indented under their name."""
    width = max((len(key) for key, value in facts.items() if not _is_block(value)), default=0)
    lines = []
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}", render(value, indent + _INDENT)]
        elif isinstance(value, (list, tuple)) and _is_block(value):
            lines += [f"{indent}{key}", *_table(value, indent + _INDENT)]
        else:
            lines.append(f"{indent}{key:<{width}}  {format_value(value)}".rstrip())
    return "\n".join(lines)


def format_value(value: Any) -> str:
    """A scalar or a flat list as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) for item in value) or "-"
    return str(value)


def jsonable(value: Any) -> Any:
    """The same facts with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_block(value: Any) -> bool:
    """Whether a value gets lines of its own."""
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _table(rows: Sequence[Mapping[str, Any]], indent: str) -> list[str]:
    header = list(dict.fromkeys(key for row in rows for key in row))
    cells = [header] + [[format_value(row[key]) if key in row else "" for key in header] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    return [indent + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in cells]
