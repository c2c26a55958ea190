"""`DiscreteEnvironment`: a game behind `mpo_robot.types.Environment`. Actions are indices, as floats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import ConfigError, MpoRobotError
from mpo_robot.specs import PolicySpec, TermSpec
from mpo_robot.types import FloatArray, StepResult
from sim.config import EnvironmentConfig
from sim.discrete.game import Game
from sim.state import pack, unpack


class DiscreteEnvironment:
    """One game with a time limit and repeated actions. Made by `sim.make.make_environment`.

    Raises:
        ConfigError: the configuration asks for domain randomisation, which needs a MuJoCo model.
    """

    def __init__(self, game: Game, config: EnvironmentConfig):
        if config.randomization is not None:
            raise ConfigError(
                f"{config.task} cannot be randomised: domain randomisation works on MuJoCo models. "
                "Leave environment.randomization out."
            )
        self._game, self._config = game, config
        self._spec = PolicySpec(
            game.observation_terms,
            (TermSpec.discrete("action", game.num_actions),),
            game.control_dt * config.action_repeat,
        )
        self._limit: float = math.inf if game.episode_steps is None else game.episode_steps
        if config.time_limit_s is not None:
            self._limit = max(1, math.ceil(config.time_limit_s / game.control_dt - 1e-9))
        self._steps = 0
        self._ended = True

    @property
    def spec(self) -> PolicySpec:
        """Interface of a policy for this task."""
        return self._spec

    @property
    def game(self) -> Game:
        """The game behind this environment."""
        return self._game

    @property
    def ended(self) -> bool:
        """Whether no episode is under way: `reset` comes next."""
        return self._ended

    def reset(self, seed: int | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Start an episode; its first observation [O] and info. A seed makes everything after it repeat."""
        if seed is not None:
            self._game.seed(seed)
        self._steps, self._ended = 0, False
        return self._game.reset()

    def step(self, action: npt.ArrayLike) -> StepResult:
        """Play an action, an index as float [1], for `control_dt` seconds.

        Raises:
            RuntimeError: the episode has ended and was not reset.
            ValueError: the action has a wrong shape or is not one of the indices.
        """
        index = self._index(action)
        if self._ended:
            raise RuntimeError("the episode has ended (or none was started): call reset first")
        total = 0.0
        for _ in range(self._config.action_repeat):
            result = self._game.step(index)
            total += result.reward
            self._steps += 1
            self._ended = result.terminated or result.truncated or self._steps >= self._limit
            if self._ended:
                break
        truncated = self._ended and not result.terminated
        return result._replace(reward=total, truncated=truncated)

    def _index(self, action: npt.ArrayLike) -> int:
        array = np.asarray(action, np.float32)
        if array.shape != (1,):
            raise ValueError(f"action must have shape (1,), got {array.shape}")
        value = float(array[0])
        if math.isnan(value):
            raise ValueError("the action is NaN")
        if not (value.is_integer() and 0 <= value < self._game.num_actions):
            raise ValueError(f"the action must be an index from 0 to {self._game.num_actions - 1}, got {value}")
        return int(value)

    def get_state(self) -> bytes:
        """Everything needed to continue from here bit by bit."""
        values, arrays = self._game.get_state()
        header = {"task": self._config.task, "spec_hash": self._spec.spec_hash}
        return pack(arrays, {**header, "steps": self._steps, "ended": self._ended, "game": values})

    def set_state(self, state: bytes) -> None:
        """Continue from `get_state` of an environment made from the same configuration.

        Raises:
            MpoRobotError: the state is of another task, or no state at all.
        """
        arrays, values = unpack(state)
        if (values["task"], values["spec_hash"]) != (self._config.task, self._spec.spec_hash):
            raise MpoRobotError(f"the state is of task {values['task']}, this environment is {self._config.task}")
        self._game.set_state(values["game"], arrays)
        self._steps, self._ended = int(values["steps"]), bool(values["ended"])

    def close(self) -> None:
        """Release the game. May be called twice."""
        self._game.close()
