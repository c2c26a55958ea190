"""Names of the tasks with discrete actions. Only the library of the wanted task is imported."""

from __future__ import annotations

from sim.config import EnvironmentConfig
from sim.discrete.game import Game
from sim.tasks import find


def make_game(config: EnvironmentConfig) -> Game | None:
    """The game that `config.task` names, or None if the name is no discrete task's.

    Raises:
        ConfigError: the library is not installed, or has no such task; the text names the nearest.
    """
    prefix, _, name = config.task.partition(":")
    if prefix == "gymnasium":
        from sim import gymnasium_backend
        from sim.discrete.classic_control import TASKS, ClassicControl

        known = gymnasium_backend.known_tasks() | {task: task for task in TASKS}
        task: str = find(name, known, "gymnasium:")
        return ClassicControl(task) if task in TASKS else None
    return None


def game_names() -> list[str]:
    """Every discrete task that can be made here, in canonical spelling."""
    from sim.discrete.classic_control import TASKS

    return [f"gymnasium:{task}" for task in TASKS]
