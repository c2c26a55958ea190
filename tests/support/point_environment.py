"""An environment without a simulator: a point in the plane pulled to the origin, pushed by the action."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.specs import PolicySpec, TermSpec
from mpo_robot.types import FloatArray, StepResult

SPEC = PolicySpec(
    (TermSpec("position", 2, "m"), TermSpec("time", 1, "s")),
    (TermSpec("force", 2, "N", (-1.0, -1.0), (1.0, 1.0)),),
    0.1,
)


class PointEnvironment:
    """x' = 0.8 x + 0.2 clip(action) + noise, reward 1 - |x|. Odd episodes terminate, even ones are truncated."""

    def __init__(self, length: int = 7) -> None:
        self.length = length
        self.episode, self.time = 0, length
        self.position = np.zeros(2)
        self.rng = np.random.default_rng(0)
        self.actions: list[FloatArray] = []

    @property
    def spec(self) -> PolicySpec:
        return SPEC

    @property
    def ended(self) -> bool:
        return self.time >= self.length

    def _observation(self) -> FloatArray:
        return np.append(self.position, 0.1 * self.time).astype(np.float32)

    def reset(self, seed: int | None = None) -> tuple[FloatArray, dict[str, Any]]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.episode, self.time = self.episode + 1, 0
        self.position = self.rng.uniform(-1.0, 1.0, 2)
        return self._observation(), {}

    def step(self, action: npt.ArrayLike) -> StepResult:
        if self.time >= self.length:
            raise RuntimeError("reset first")
        array = np.asarray(action, np.float32)
        self.actions.append(array)
        self.time += 1
        self.position = 0.8 * self.position + 0.2 * np.clip(array, -1.0, 1.0) + 0.02 * self.rng.standard_normal(2)
        ended = self.time == self.length
        odd = self.episode % 2 == 1
        reward = 1.0 - float(np.linalg.norm(self.position))
        return StepResult(self._observation(), reward, ended and odd, ended and not odd, {})

    def get_state(self) -> bytes:
        state = [self.episode, self.time, self.position.tolist(), self.rng.bit_generator.state]
        return json.dumps(state).encode()

    def set_state(self, state: bytes) -> None:
        self.episode, self.time, position, self.rng.bit_generator.state = json.loads(state)
        self.position = np.array(position)

    def close(self) -> None:
        pass
