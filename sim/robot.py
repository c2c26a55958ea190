"""`SimulatedRobot`: a simulated task behind the members that a robot driver has, so that nothing else must know.

It satisfies deploy's `Robot` protocol by shape alone. With `mismatch` its body differs from the model a policy was
trained on, always in the same way. Shapes: O observation size, A command size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec
from mpo_robot.types import FloatArray
from sim.config import EnvironmentConfig
from sim.environment import SimEnvironment
from sim.pace import FastPace, Measurement, RealTimePace, SubstepPace
from sim.randomization_config import RandomizationConfig
from sim.spec import rest_control
from sim.tasks import make_backend


@dataclass(frozen=True)
class SimulatedRobotConfig:
    """A simulated robot.

    Attributes:
        task: As in `EnvironmentConfig`.
        mismatch: How its dynamics differ from the nominal model, inline or as a YAML file. What such a file redraws
            at every reset is here drawn once: a robot has one body.
        real_time: Follow the clock as a real robot does, instead of advancing one control period per reading.
        seed: Fixes the mismatch, and the start states of episodes that are given no seed.
        time_limit_s: Simulated seconds per episode; null keeps the task's limit.
        action_repeat: As in `EnvironmentConfig`; must be what the policy was trained with.
        commands_per_period: Motor commands per policy period, each of which acts for its share of the physics steps.
            Not in real time: there a command acts from the moment it is sent.
    """

    task: str
    mismatch: RandomizationConfig | str | None = None
    real_time: bool = False
    seed: int = 0
    time_limit_s: float | None = None
    action_repeat: int = 1
    commands_per_period: int = 1

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")
        if self.commands_per_period < 1:
            raise ConfigError(f"commands_per_period must be at least 1, got {self.commands_per_period}")

    def environment(self) -> EnvironmentConfig:
        """The environment behind this robot, with the mismatch resolved.

        Raises:
            ConfigError: the mismatch file cannot be read or is malformed.
        """
        config = EnvironmentConfig(
            self.task, self.mismatch, self.time_limit_s, self.action_repeat, startup_seed=self.seed
        ).resolved()
        if isinstance(config.randomization, RandomizationConfig):
            return replace(config, randomization=fixed(config.randomization))
        return config


def fixed(randomization: RandomizationConfig) -> RandomizationConfig:
    """The same terms, drawn once instead of at every reset, where that makes sense (a start pose stays random)."""
    return RandomizationConfig(
        tuple(
            replace(term, mode="startup") if term.resolved_mode == "reset" and "startup" in term.info.modes else term
            for term in randomization.terms
        )
    )


class SimulatedRobot:
    """A robot made of a simulator. One thread drives it; `stop` may come from any thread.

    Fast mode: a reading after a command (or after `commands_per_period` of them, each with its share of the physics
    steps) advances the simulation by one control period. Without a new command the last reading is returned again,
    with its old time.

    Real-time mode: commands and readings first advance the physics to the present, by whole physics steps, holding
    the last command. A reading carries the rewards of the control periods completed since the one before.
    """

    def __init__(self, config: SimulatedRobotConfig, clock: Callable[[], int] = time.monotonic_ns):
        """Load the task.

        Args:
            config: Task and mismatch.
            clock: Monotonic time in ns, for real-time mode.

        Raises:
            ConfigError: unknown task, a mismatch that does not fit it, or more commands than physics steps in a period.
        """
        self._config = config
        backend = make_backend(config.task)
        count, steps = config.commands_per_period, backend.physics_steps * config.action_repeat
        if count > steps and not config.real_time:
            raise ConfigError(
                f"{config.task} has {steps} physics step(s) of {backend.physics_dt:g} s per control period, "
                f"too few for {count} motor commands: lower loop.command_rate"
            )
        self._environment = SimEnvironment(backend, config.environment(), stepwise=config.real_time or count > 1)
        self._pace: FastPace | SubstepPace | RealTimePace = FastPace(self._environment)
        if config.real_time:
            self._pace = RealTimePace(self._environment, clock)
        elif count > 1:
            self._pace = SubstepPace(self._environment, count)
        self._connected = self._stopped = self._seeded = False
        self._last: Measurement | None = None
        self._rest = self._command = rest_control(backend.model, backend.data)

    @property
    def spec(self) -> PolicySpec:
        """Interface of a policy; the same as that of the nominal task."""
        return self._environment.spec

    def connect(self) -> None:
        """Make ready for `start_episode`."""
        self._connected = True

    def start_episode(self, seed: int | None = None) -> Measurement:
        """Put the task in a start state; its first reading. After a `stop` meanwhile the motors are off.

        Raises:
            RuntimeError: not connected.
        """
        if not self._connected:
            raise RuntimeError("connect the simulated robot before starting an episode")
        self._stopped = False  # first, so that a stop meanwhile stays
        if seed is None and not self._seeded:
            seed = self._config.seed
        self._seeded = True
        observation, info = self._environment.reset(seed)
        self._rest = self._command = rest_control(self._environment.backend.model, self._environment.backend.data)
        self._last = Measurement(observation, self._pace.start(), 0.0, False, False, plain(info))
        return self._last

    def send_command(self, command: npt.ArrayLike) -> FloatArray:
        """Hold a physical command [A] from now on; returns it clipped to the bounds, as the motors get it.

        After `stop` the motors stay off, and their resting command is returned.

        Raises:
            RuntimeError: no episode was started.
            ValueError: wrong shape or NaN; the command before stays in force.
        """
        self._require_episode()
        wanted, spec = np.asarray(command, np.float32), self.spec
        if wanted.shape != (spec.action_size,):
            raise ValueError(f"the command must have shape ({spec.action_size},), got {wanted.shape}")
        if np.isnan(wanted).any():
            raise ValueError(f"the command holds NaN: {wanted}")
        if self._stopped:
            return self._rest.copy()
        self._pace.command(self._command)
        self._command = np.clip(wanted, spec.command_low, spec.command_high)
        return self._command.copy()

    def read(self) -> Measurement:
        """The newest reading; after the end of an episode its last. Read again, it has its old time and no reward.

        Raises:
            RuntimeError: no episode was started.
        """
        last = self._require_episode()
        newest = None
        if not (last.terminated or last.truncated):
            newest = self._pace.read(self._rest if self._stopped else self._command)
        self._last = newest or last._replace(reward=0.0)
        return self._last

    def safe_pose_command(self) -> FloatArray:
        """No torque, or for position servos the start pose; within the bounds, [A]."""
        return self._rest.copy()

    def stop(self) -> None:
        """Motors off until the next episode. Callable at any time, from any thread."""
        self._stopped = True

    def disconnect(self) -> None:
        """Stop. The simulator stays loaded, so that `connect` may follow."""
        self.stop()
        self._connected = False
        self._last = None

    def _require_episode(self) -> Measurement:
        if self._last is None:
            raise RuntimeError("start an episode of the simulated robot first")
        return self._last


def plain(value: Any) -> Any:
    """The same data with NumPy's numbers and arrays turned into Python's, ready for JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return value
