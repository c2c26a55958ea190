"""`SimEnvironment`: a simulated task behind the contract of `mpo_robot.types.Environment`.

Shapes: O observation size, A action size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import MpoRobotError
from mpo_robot.specs import PolicySpec
from mpo_robot.types import FloatArray, StepResult
from sim.actuation import Actuation
from sim.backend import BAD_STATE, Backend, PeriodResult
from sim.config import EnvironmentConfig
from sim.randomization_config import RandomizationConfig
from sim.randomizer import Randomizer
from sim.spec import build_spec
from sim.state import ModelFields, capture_data, fixed_size_names, pack, restore_arrays, restore_integration, unpack


class SimEnvironment:
    """A task of either backend, optionally randomised. Made by `sim.make.make_environment`.

    Args:
        backend: The task.
        config: With its randomisation resolved.
        stepwise: Prepare for being advanced by parts of a control period (see `sim.partial`).
    """

    def __init__(self, backend: Backend, config: EnvironmentConfig, stepwise: bool = False):
        self._backend, self._config = backend, config
        self._period_dt = backend.physics_steps * backend.physics_dt
        self._spec = build_spec(backend.model, backend.observation_terms, self._period_dt * config.action_repeat)
        self._period_limit = self._limit()
        self._prepare_scaling()
        self._further_periods = range(config.action_repeat - 1)
        self._fields = ModelFields(backend.model)
        self._warnings = backend.data.warning.number[BAD_STATE]
        randomization = config.randomization or RandomizationConfig()
        assert isinstance(randomization, RandomizationConfig)
        self._randomizer: Randomizer | None = None
        if randomization.terms or stepwise:
            self._randomizer = Randomizer(backend, self._fields, randomization, config.startup_seed, stepwise)
        self._timed = self._randomizer if self._randomizer is not None and self._randomizer.has_timed_terms else None
        self._periods = 0
        self._ended = True
        self._last_observation = np.zeros(self._spec.observation_size, np.float32)

    def _limit(self) -> float:
        if self._config.time_limit_s is not None:
            return max(1, math.ceil(self._config.time_limit_s / self._period_dt - 1e-9))
        return math.inf if self._backend.episode_periods is None else self._backend.episode_periods

    def _prepare_scaling(self) -> None:
        """What `step` needs to do `PolicySpec.to_command` in the fewest NumPy calls: they cost as much as physics.

        Rounding keeps order: if the ends of [-1, 1] become commands within the bounds, so does all between them.
        """
        spec = self._spec
        self._low, self._high = spec.command_low, spec.command_high
        self._center, self._half = spec.command_center, spec.command_half_range
        self._shape = (spec.action_size,)
        self._one = np.ones(self._shape, np.float32)
        self._minus_one = -self._one
        self._unscaled = bool(np.all(self._center == 0) and np.all(self._half == 1))
        ends = self._center - self._half, self._center + self._half
        self._within = bool(np.all(ends[0] >= self._low) and np.all(ends[1] <= self._high))

    @property
    def spec(self) -> PolicySpec:
        """Interface of a policy for this task."""
        return self._spec

    @property
    def backend(self) -> Backend:
        """The simulator behind this environment."""
        return self._backend

    @property
    def config(self) -> EnvironmentConfig:
        """What the environment was made from."""
        return self._config

    @property
    def ended(self) -> bool:
        """No episode is under way."""
        return self._ended

    @property
    def actuation(self) -> Actuation:
        """Stepping by parts of a period, of an environment made `stepwise`."""
        return self._stepwise.actuation

    @property
    def _stepwise(self) -> Randomizer:
        if self._randomizer is None:
            raise RuntimeError("this environment was not made with stepwise=True")
        return self._randomizer

    def begin_period(self) -> None:
        """Due draws and pushes; for stepping by parts of a period."""
        self._stepwise.before_period()

    def reading(self) -> tuple[FloatArray, dict[str, Any]]:
        """What the sensors show at this moment within a period [O], and info."""
        return self._stepwise.reading(), {"randomization": self._stepwise.values}

    def reset(self, seed: int | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Start an episode; its first observation [O] and info. A seed makes everything after it repeat."""
        if seed is not None:
            self._backend.seed(seed)
        randomizer = self._randomizer
        if randomizer is None:
            observation, info = self._backend.reset()
        else:
            if seed is not None:
                randomizer.seed(seed)
            randomizer.before_reset()
            observation, info = self._backend.reset()
            observation = randomizer.start_episode(observation)
            info = {**info, "randomization": randomizer.values}
        self._periods, self._ended = 0, False
        self._last_observation = observation
        return observation, info

    def step(self, action: npt.ArrayLike) -> StepResult:
        """Apply an action [A], clipped to [-1, 1] and scaled to commands, for `spec.control_dt` seconds.

        If the physics diverges (MuJoCo meets NaN or huge numbers) the episode is truncated with reward 0 and the last
        good observation, and `info["diverged"]` is True.

        Raises:
            RuntimeError: the episode has ended and was not reset.
            ValueError: the action has a wrong shape or holds NaN.
        """
        action = np.asarray(action, np.float32)
        if action.shape != self._shape:
            raise ValueError(f"action must have shape {self._shape}, got {action.shape}")
        command = np.minimum(np.maximum(action, self._minus_one), self._one)  # NaN survives both
        if not self._unscaled:
            command = self._center + self._half * command
            if not self._within:
                command = np.minimum(np.maximum(command, self._low), self._high)
        return self.step_command(command)

    def step_command(self, command: FloatArray) -> StepResult:
        """`step` with a physical command: float32 [A] within the bounds of the spec.

        Raises:
            RuntimeError: the episode has ended and was not reset.
            ValueError: the command holds NaN.
        """
        if self._ended:
            raise RuntimeError("the episode has ended (or none was started): call reset first")
        if math.isnan(command.dot(command)):
            raise ValueError(f"the action holds NaN: command {command}")
        timed = self._timed
        if timed is not None:
            timed.before_period()
        result = self.finish_period(self._backend.step(command))
        for _ in self._further_periods:
            if self._ended:
                break
            if timed is not None:
                timed.before_period()
            earlier = result.reward
            result = self.finish_period(self._backend.step(command))
            result = result._replace(reward=earlier + result.reward)
        return result

    def finish_period(self, result: PeriodResult) -> StepResult:
        """Count a control period, look for divergence and the time limit, and turn the state into a reading."""
        observation, reward, terminated, truncated, info = result
        self._periods += 1
        if np.count_nonzero(self._warnings):
            self._ended = True
            return StepResult(self._last_observation, 0.0, False, True, {**info, "diverged": True})
        randomizer = self._randomizer
        if randomizer is not None:
            observation = randomizer.after_period(observation)
            info["randomization"] = randomizer.values
        self._last_observation = observation
        truncated = truncated or self._periods >= self._period_limit
        self._ended = terminated or truncated
        return StepResult(observation, reward, terminated, truncated, info)

    def get_state(self) -> bytes:
        """Everything needed to continue from here bit by bit."""
        backend = self._backend
        names = fixed_size_names(backend.model)
        data, flags = capture_data(backend.model, backend.data, names)
        values, task_arrays = backend.task_state()
        arrays = {f"data/{name}": array for name, array in data.items()}
        arrays |= {f"model/{name}": array for name, array in self._fields.changed().items()}
        arrays |= {f"task/{name}": array for name, array in task_arrays.items()}
        arrays["last_observation"] = self._last_observation
        randomizer = None
        if self._randomizer is not None:
            randomizer, own = self._randomizer.state()
            arrays |= {f"randomizer/{name}": array for name, array in own.items()}
        episode = {"periods": self._periods, "ended": self._ended}
        header = {"task": self._config.task, "spec_hash": self._spec.spec_hash}
        return pack(arrays, {**header, "flags": flags, "values": values, "episode": episode, "randomizer": randomizer})

    def set_state(self, state: bytes) -> None:
        """Continue from `get_state` of an environment made from the same configuration.

        Raises:
            MpoRobotError: the state is of another task, or no state at all.
        """
        arrays, values = unpack(state)
        if values["spec_hash"] != self._spec.spec_hash:
            raise MpoRobotError(f"the state is of task {values['task']}, this environment is {self._config.task}")
        if (values["randomizer"] is None) != (self._randomizer is None):
            raise MpoRobotError("the state and this environment differ in their randomisation")
        parts: dict[str, dict[str, npt.NDArray[Any]]] = {"data": {}, "model": {}, "task": {}, "randomizer": {}}
        for name, array in arrays.items():
            part, _, key = name.partition("/")
            if key:
                parts[part][key] = array
        backend = self._backend
        self._fields.restore(parts["model"])
        restore_integration(backend.model, backend.data, parts["data"])
        backend.restore_derived()
        restore_arrays(backend.data, parts["data"], values["flags"])
        backend.set_task_state(values["values"], parts["task"])
        if self._randomizer is not None:
            self._randomizer.set_state(values["randomizer"], parts["randomizer"])
        self._periods, self._ended = int(values["episode"]["periods"]), bool(values["episode"]["ended"])
        self._last_observation = arrays["last_observation"]

    def close(self) -> None:
        """Release the simulator. May be called twice."""
        self._backend.close()
