"""`VectorEnvironment`: several environments of one configuration, stepped together.

Axes: E environments, O observation size, A action size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import MpoRobotError
from mpo_robot.specs import PolicySpec
from mpo_robot.types import FloatArray, StepResult, VectorStep
from sim.config import EnvironmentConfig
from sim.make import make_environment
from sim.state import pack, unpack


class VectorEnvironment:
    """E environments with seeds of their own, in one process. One thread may use it.

    Nothing resets by itself: after a step, reset those that ended with `reset_at`. So no final observation is lost, and
    the caller decides when.

    Args:
        config: Of every environment, except that environment i has `startup_seed + i`: with randomisation of mode
            `startup` each has a body of its own.
        count: E.
        threads: Threads that share the stepping. Results do not depend on it. MuJoCo's physics runs in parallel,
            Python's part does not: more than 1 pays for heavy models only (`benchmarks/sim_rate.py`).

    Raises:
        ConfigError: as `make_environment`.
        ValueError: `count` or `threads` is below 1.
    """

    def __init__(self, config: EnvironmentConfig, count: int, threads: int = 1):
        if count < 1 or threads < 1:
            raise ValueError(f"count and threads must be at least 1, got {count} and {threads}")
        config = config.resolved()
        self.environments = tuple(
            make_environment(replace(config, startup_seed=config.startup_seed + index)) for index in range(count)
        )
        self._action_shape = (count, self.spec.action_size)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        bounds = np.linspace(0, count, min(threads, count) + 1).astype(int)
        self._shares = [range(first, last) for first, last in itertools.pairwise(bounds)]

    @property
    def spec(self) -> PolicySpec:
        """Interface of a policy for the task; the same for all."""
        return self.environments[0].spec

    def __len__(self) -> int:
        return len(self.environments)

    @property
    def ended(self) -> npt.NDArray[np.bool_]:
        """bool [E], environments with no episode under way."""
        return np.array([environment.ended for environment in self.environments])

    def reset(self, seed: int | None = None) -> tuple[FloatArray, tuple[dict[str, Any], ...]]:
        """Start an episode in every environment; first observations [E, O] and infos. A seed makes all repeat."""
        starts = [self.reset_at(index, seed) for index in range(len(self))]
        return np.stack([observation for observation, _ in starts]), tuple(info for _, info in starts)

    def reset_at(self, index: int, seed: int | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Start an episode in one environment; its first observation [O] and info.

        A seed is turned into another for each index, unrelated to those of neighboring seeds and indices.
        """
        own = None if seed is None else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        return self.environments[index].reset(own)

    def step(self, actions: npt.ArrayLike) -> VectorStep:
        """Apply actions [E, A] for one control period each.

        Raises:
            RuntimeError: an episode has ended and was not reset.
            ValueError: the actions have a wrong shape or hold NaN. In both cases no environment has moved.
        """
        actions = np.asarray(actions, np.float32)
        if actions.shape != self._action_shape:
            raise ValueError(f"actions must have shape {self._action_shape}, got {actions.shape}")
        if np.isnan(actions).any():
            raise ValueError(f"the actions of environments {np.unique(np.nonzero(np.isnan(actions))[0])} hold NaN")
        if any(environment.ended for environment in self.environments):
            raise RuntimeError(f"reset environments {np.flatnonzero(self.ended)} first: their episodes have ended")
        if self._pool is None:
            results = self._run(actions, range(len(self)))
        else:
            shares = self._pool.map(self._run, [actions] * len(self._shares), self._shares)
            results = [result for share in shares for result in share]
        observation, reward, terminated, truncated, info = zip(*results)
        return VectorStep(np.stack(observation), np.array(reward), np.array(terminated), np.array(truncated), info)

    def _run(self, actions: FloatArray, indices: Sequence[int]) -> list[StepResult]:
        return [self.environments[index].step(actions[index]) for index in indices]

    def get_state(self) -> bytes:
        """Everything needed to continue all environments bit by bit."""
        states = [np.frombuffer(environment.get_state(), np.uint8) for environment in self.environments]
        return pack({f"environment_{index}": state for index, state in enumerate(states)}, {"count": len(self)})

    def set_state(self, state: bytes) -> None:
        """Continue from `get_state` of a vector made from the same configuration; the threads may differ.

        Raises:
            MpoRobotError: the state is of another task or number of environments, or no state at all.
        """
        arrays, values = unpack(state)
        if values.get("count") != len(self):
            raise MpoRobotError(f"the state is of {values.get('count')} environments, here are {len(self)}")
        for index, environment in enumerate(self.environments):
            environment.set_state(arrays[f"environment_{index}"].tobytes())

    def close(self) -> None:
        """Release simulators and threads. May be called twice."""
        for environment in self.environments:
            environment.close()
        if self._pool is not None:
            self._pool.shutdown()
