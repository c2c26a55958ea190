"""Choosing elements of a model by name or regular expression."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import mujoco

from mpo_robot.errors import ConfigError
from sim.spec import actuator_names


def element_names(model: mujoco.MjModel, element: str) -> list[str]:
    """Names of all bodies, geoms, joints or actuators; nameless ones are called `KIND_INDEX`."""
    if element == "actuator":
        return actuator_names(model)
    count, get = {
        "body": (model.nbody, model.body),
        "geom": (model.ngeom, model.geom),
        "joint": (model.njnt, model.joint),
    }[element]
    return [get(index).name or f"{element}_{index}" for index in range(count)]


def select(patterns: Sequence[str], names: Sequence[str], where: str) -> list[int]:
    """Ascending indices of the names that equal a pattern, or match it as a regular expression in full.

    Args:
        patterns: Names or regular expressions.
        names: All names there are.
        where: What is being selected, for error texts.

    Raises:
        ConfigError: a pattern matches nothing (names the nearest), or is no regular expression.
    """
    chosen: set[int] = set()
    for pattern in patterns:
        if pattern in names:
            chosen.add(names.index(pattern))
            continue
        try:
            matches = {index for index, name in enumerate(names) if re.fullmatch(pattern, name)}
        except re.error as error:
            raise ConfigError(f"{where}: {pattern!r} is neither a name nor a regular expression: {error}") from error
        if not matches:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
            raise ConfigError(f"{where}: nothing is called {pattern!r}: {hint}")
        chosen |= matches
    return sorted(chosen)
