"""Task names: `dm_control:DOMAIN-TASK`, `gymnasium:ID`, `parkour:walker-KIND`, `servo:ant-walk`. Only what the wanted
task needs is imported."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from mpo_robot.errors import ConfigError
from sim.backend import Backend
from sim.tasks.terrain import COURSES

PARKOUR = {f"walker-{kind}": kind for kind in COURSES}
SERVO = {"ant-walk": "ant-walk"}

Entry = TypeVar("Entry")


def make_backend(task: str) -> Backend:
    """Load a task by name.

    Raises:
        ConfigError: no such backend or task; the text names the nearest.
    """
    prefix, separator, name = task.partition(":")
    if prefix == "dm_control" and separator:
        from sim import dm_control_backend

        domain_and_task: tuple[str, str] = find(name, dm_control_backend.known_tasks(), "dm_control:")
        return dm_control_backend.make_suite_task(*domain_and_task)
    if prefix == "gymnasium" and separator:
        from sim import gymnasium_backend

        identifier: str = find(name, gymnasium_backend.known_tasks(), "gymnasium:")
        return gymnasium_backend.GymnasiumBackend(identifier)
    if prefix == "parkour" and separator:
        kind = find(name, PARKOUR, "parkour:")
        from sim.tasks.parkour import make_parkour

        return make_parkour(kind)
    if prefix == "servo" and separator:
        find(name, SERVO, "servo:")
        from sim.tasks.servo_ant import make_servo_ant

        return make_servo_ant()
    hint = suggestions(task, task_names()) or "dm_control:cartpole-swingup, gymnasium:HalfCheetah-v4"
    raise ConfigError(
        f"task {task!r} must start with dm_control:, gymnasium:, parkour:, servo: or ale:, for example {hint}"
    )


def task_names() -> list[str]:
    """Every task with continuous actions, in canonical spelling."""
    from sim import dm_control_backend, gymnasium_backend

    known = {
        "dm_control": dm_control_backend.known_tasks(),
        "gymnasium": gymnasium_backend.known_tasks(),
        "parkour": PARKOUR,
        "servo": SERVO,
    }
    return [f"{prefix}:{name}" for prefix, names in known.items() for name in names]


def find(name: str, known: Mapping[str, Entry], prefix: str) -> Entry:
    """Entry of `known` for `name`, whatever its case, dashes or underscores.

    Raises:
        ConfigError: no entry; names the nearest ones.
    """
    wanted = fold(name)
    for candidate, entry in known.items():
        if fold(candidate) == wanted:
            return entry
    hint = suggestions(name, known)
    text = f"did you mean {', '.join(prefix + near for near in hint.split(', '))}?" if hint else "no name is similar"
    raise ConfigError(f"unknown task {prefix}{name}: {text}")


def suggestions(name: str, known: Iterable[str]) -> str:
    """Up to three of the nearest known names, comma-separated; empty if none is near."""
    folded = {fold(candidate): candidate for candidate in known}
    near = difflib.get_close_matches(fold(name), folded, n=3, cutoff=0.5)
    return ", ".join(folded[key] for key in near)


def fold(name: str) -> str:
    """Spelling in which names are compared."""
    return name.lower().replace("-", "_")
