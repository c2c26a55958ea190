"""What `DiscreteEnvironment` asks of a game. Shapes: O observation size, K actions."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from mpo_robot.specs import TermSpec
from mpo_robot.types import FloatArray, StepResult


class Game(abc.ABC):
    """One task with discrete actions.

    Attributes:
        observation_terms: Named parts of the observation, in order. Terms of a square size are the channels of an
            image for convolutional networks.
        num_actions: K.
        control_dt: Seconds per step; 1 where the task knows no seconds.
        episode_steps: The task's own time limit in steps; None if it has none.
    """

    observation_terms: tuple[TermSpec, ...]
    num_actions: int
    control_dt: float
    episode_steps: int | None

    @abc.abstractmethod
    def seed(self, seed: int) -> None:
        """Make the next reset and all after it repeatable."""

    @abc.abstractmethod
    def reset(self) -> tuple[FloatArray, dict[str, Any]]:
        """Start an episode; a new observation [O] and info."""

    @abc.abstractmethod
    def step(self, action: int) -> StepResult:
        """Play action 0 to K - 1 for one step; the observation is a new array."""

    @abc.abstractmethod
    def get_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Everything needed to continue exactly: JSON-able values (with the random generator) and arrays."""

    @abc.abstractmethod
    def set_state(self, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `get_state`."""

    def close(self) -> None:
        """Release the game. May be called twice."""
        return
