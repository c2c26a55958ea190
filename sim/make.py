"""`make_environment`: the one way from a configuration to a simulated task."""

from __future__ import annotations

from sim.config import EnvironmentConfig
from sim.discrete.environment import DiscreteEnvironment
from sim.discrete.tasks import make_game
from sim.environment import SimEnvironment
from sim.tasks import make_backend


def make_environment(config: EnvironmentConfig) -> SimEnvironment | DiscreteEnvironment:
    """A ready environment (`mpo_robot.types.Environment`); `reset` starts its first episode.

    Raises:
        ConfigError: unknown task, or randomisation of something the task's model does not have.
    """
    game = make_game(config)
    if game is not None:
        return DiscreteEnvironment(game, config)
    return SimEnvironment(make_backend(config.task), config.resolved())
