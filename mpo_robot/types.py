"""The environment contract that learner, evaluation and simulators share. No torch, no simulator.

Shapes: E environments, O observation size, A action size.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mpo_robot.specs import PolicySpec

FloatArray = npt.NDArray[np.float32]


class StepResult(NamedTuple):
    """What one environment step returns.

    Attributes:
        observation: [O] after the step. At the end of an episode it is the final observation: a step never resets.
        reward: Reward of this step.
        terminated: The task ended (the value after this state is zero).
        truncated: The episode was cut, by a time limit for example (the value after this state is not zero).
        info: Extra data; under domain randomisation `info["randomization"]` holds the drawn values.
    """

    observation: FloatArray
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Environment(Protocol):
    """One control task. One instance is used by one thread."""

    @property
    def spec(self) -> PolicySpec:
        """Interface of a policy for this task."""
        ...

    def reset(self, seed: int | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Start an episode and return its first observation [O] and info. A seed makes everything after it repeat."""
        ...

    def step(self, action: npt.ArrayLike) -> StepResult:
        """Apply an action [A] for `control_dt` seconds.

        The action is the policy's, before clipping; the environment clips it to [-1, 1] and scales it to commands.

        Raises:
            RuntimeError: the episode has ended and was not reset.
            ValueError: the action has a wrong shape or holds NaN.
        """
        ...

    def get_state(self) -> bytes:
        """Everything needed to continue from here exactly: physics, task, episode and random-generator state."""
        ...

    def set_state(self, state: bytes) -> None:
        """Continue from `get_state` of an environment made from the same configuration."""
        ...

    def close(self) -> None:
        """Release the simulator. May be called twice."""
        ...


class VectorStep(NamedTuple):
    """What one step of several environments returns.

    Attributes:
        observation: float32 [E, O] after the step; where an episode ended, its final observation.
        reward: float64 [E].
        terminated: bool [E], the task ended.
        truncated: bool [E], the episode was cut.
        info: Extra data of each environment, E dictionaries.
    """

    observation: FloatArray
    reward: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    info: tuple[dict[str, Any], ...]

    @property
    def ended(self) -> npt.NDArray[np.bool_]:
        """bool [E], environments to be reset before the next step."""
        return self.terminated | self.truncated


class EnvironmentVector(Protocol):
    """Several environments of one task, stepped together (`sim.vector.VectorEnvironment`). Nothing resets by itself."""

    @property
    def spec(self) -> PolicySpec:
        """Interface of a policy for the task; the same for all."""
        ...

    def __len__(self) -> int: ...

    def reset_at(self, index: int, seed: int | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Start an episode in one environment; its first observation [O] and info. A seed is varied by the index."""
        ...

    def step(self, actions: npt.ArrayLike) -> VectorStep:
        """Apply actions [E, A] for one control period each."""
        ...

    def get_state(self) -> bytes:
        """Everything needed to continue all environments exactly."""
        ...

    def set_state(self, state: bytes) -> None:
        """Continue from `get_state` of as many environments of the same configuration."""
        ...

    def close(self) -> None:
        """Release the simulators. May be called twice."""
        ...
