"""Names of the tasks with discrete actions. Only the library of the wanted task is imported."""

from __future__ import annotations

import re

from sim.config import AtariConfig, EnvironmentConfig
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
    if prefix == "ale":
        from sim.discrete.atari import AtariGame, rom_names

        underscored = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)  # MsPacman, as in papers
        return AtariGame(find(underscored, rom_names(), "ale:"), config.atari or AtariConfig())
    return None
