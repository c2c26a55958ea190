"""The HTML page: one file, no external resource, light and dark, readable on a phone. All text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import NamedTuple

from mpo_robot.report.run_figures import Figure

_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<div class="muted">$subtitle</div>
$body
</main>
</body>
</html>
"""
)


class Number(NamedTuple):
    """A headline number: what it is, its value as text, and a remark."""

    label: str
    value: str
    remark: str = ""


class TextTable(NamedTuple):
    """A table of plain text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A heading with figures and tables under it."""

    title: str
    figures: Sequence[Figure] = ()
    tables: Sequence[TextTable] = ()


class Detail(NamedTuple):
    """A block of plain text that is folded away at first."""

    title: str
    text: str


def render(
    title: str, subtitle: str, numbers: Sequence[Number], sections: Sequence[Section], details: Sequence[Detail]
) -> str:
    """The page. Empty sections are left out."""
    parts = [_numbers(numbers)] if numbers else []
    parts += [_section(section) for section in sections if section.figures or section.tables]
    parts += [
        f"<details><summary>{escape(item.title)}</summary><pre>{escape(item.text)}</pre></details>" for item in details
    ]
    style = resources.files("mpo_robot.report").joinpath("style.css").read_text(encoding="utf-8")
    return _PAGE.substitute(title=escape(title), subtitle=escape(subtitle), style=style, body="\n".join(parts))


def _numbers(numbers: Sequence[Number]) -> str:
    cards = "\n".join(
        f'<div class="card"><span>{escape(item.label)}</span><b>{escape(item.value)}</b>'
        f"<span>{escape(item.remark)}</span></div>"
        for item in numbers
    )
    return f'<div class="numbers">\n{cards}\n</div>'


def _section(section: Section) -> str:
    figures = "\n".join(
        f'<figure role="group" aria-label="{escape(figure.title)}"><h3>{escape(figure.title)}</h3>{figure.svg}'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
        for figure in section.figures
    )
    blocks = [f'<div class="figures">\n{figures}\n</div>'] if figures else []
    blocks += [_table(table) for table in section.tables]
    return f"<section><h2>{escape(section.title)}</h2>\n" + "\n".join(blocks) + "\n</section>"


def _table(table: TextTable) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    opened = " open" if len(table.rows) <= 12 else ""
    return (
        f'<details{opened}><summary>{escape(table.title)}</summary><div class="scroll">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div></details>"
    )
