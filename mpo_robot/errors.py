"""Errors a user can cause and fix. The CLI prints their text and exits with code 2."""

from __future__ import annotations


class MpoRobotError(Exception):
    """Base of all errors that tell the user what is wrong and how to fix it."""


class ConfigError(MpoRobotError):
    """A configuration file or override is malformed, has an unknown key or an impossible value."""


class SpecMismatchError(MpoRobotError):
    """Two sides of a hand-over disagree on the `PolicySpec`; the text names the first differing field."""


class EpisodeError(MpoRobotError):
    """An episode log breaks the step schema (order, gaps, shapes, NaN, spec hash)."""


class ProtocolError(MpoRobotError):
    """A wire message cannot be decoded or breaks the protocol."""


class DivergenceError(MpoRobotError, FloatingPointError):
    """A loss is not finite any more; the parameters are still those from before."""


class ExportError(MpoRobotError):
    """A policy cannot be exported, or the exported file fails its parity gate."""


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type if it has none: for a sentence that quotes another library."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
