"""`LeRobotRobot`: a robot of lerobot as one of ours. The other way round is in `deploy.lerobot_view`.

Written against lerobot's public `Robot` interface, by shape: lerobot is imported only by the robot's own class.
Shapes: O observation size, A action size.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from deploy.loading import load_name
from deploy.robot import FloatArray, Measurement, RobotError
from mpo_robot.config import build
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec


class LeRobotLike(Protocol):
    """What is used of lerobot's `Robot`."""

    @property
    def observation_features(self) -> Mapping[str, Any]:
        """Name of each observation to `float`, or to a shape for images; readable unconnected."""
        ...

    @property
    def action_features(self) -> Mapping[str, Any]:
        """The same of actions."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether it is connected."""
        ...

    @property
    def is_calibrated(self) -> bool:
        """Whether it is calibrated."""
        ...

    def connect(self, calibrate: bool = True) -> None:
        """Connect; with `calibrate` it may ask the user to calibrate it."""
        ...

    def get_observation(self) -> Mapping[str, Any]:
        """Present values by name."""
        ...

    def send_action(self, action: dict[str, Any]) -> Mapping[str, Any]:
        """Send goals by name; returns what was really sent."""
        ...

    def disconnect(self) -> None:
        """Disconnect; lerobot's arms switch their torque off with it."""
        ...


@dataclass(frozen=True)
class LeRobotConfig:
    """`robot.options` for a robot of lerobot.

    Attributes:
        robot: `package.module:Class` of the robot, `lerobot.robots.so_follower:SO101Follower` for example.
        config: Fields of its `config_class`.
        control_dt: Policy period, s.
        limits: Lowest and highest command of each action, by name, in the robot's own unit.
        home: Start and safe pose by action; what is not named stays where it was when the episode began.
        homing_s: Time of the way to the start pose.
        units: Unit by observation or action; `default` stands for all others. lerobot's robots do not tell theirs.
        observe: Observations for the policy, in order; empty: all that are numbers. Images are not passed on.
    """

    robot: str
    limits: dict[str, tuple[float, float]]
    config: dict[str, Any] = field(default_factory=dict)
    control_dt: float = 1 / 30
    home: dict[str, float] = field(default_factory=dict)
    homing_s: float = 3.0
    units: dict[str, str] = field(default_factory=lambda: {"default": "1"})
    observe: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.robot.count(":") != 1:
            raise ConfigError(f"robot.options.robot must look like package.module:Class, got {self.robot!r}")
        if self.control_dt <= 0 or self.homing_s < 0:
            raise ConfigError("control_dt must be positive and homing_s not negative")


_LOCK_S = 0.25


class _StoppedError(RuntimeError):
    """Nothing is sent any more: `stop` was called."""


class LeRobotRobot:
    """A robot of lerobot behind the members of `deploy.robot.Robot`.

    Its interface has no stop: `stop` disconnects it, and the next episode connects it again. Rewards are NaN.
    """

    def __init__(
        self, config: LeRobotConfig, robot: LeRobotLike | None = None, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """Make the robot of `config`, or use the one given; nothing is connected yet.

        Raises:
            RobotError: the class cannot be imported, or refuses its configuration.
            ConfigError: limits, home or observations that the robot does not have.
        """
        self._config, self._clock = config, clock
        self._robot = load_robot(config) if robot is None else robot
        self._actions = list(self._robot.action_features)
        self._observed = self._choose_observations()
        for name in (*config.limits, *config.home):
            if name not in self._actions:
                raise ConfigError(f"the robot has no action {name!r}; it has {', '.join(self._actions)}")
        if missing := [name for name in self._actions if name not in config.limits]:
            raise ConfigError(f"limits lack {', '.join(missing)}: a policy needs bounds for every action")
        observed = tuple(TermSpec(name, 1, self._unit(name)) for name in self._observed)
        commands = []
        for name in self._actions:
            low, high = config.limits[name]
            commands.append(TermSpec(name, 1, self._unit(name), (low,), (high,)))
        self._spec = PolicySpec(observed, tuple(commands), config.control_dt)
        self._stopped = True
        self._lock = threading.Lock()  # of calls that can switch motors on or move them, against `stop`
        self._home = self._spec.command_center

    @property
    def spec(self) -> PolicySpec:
        """Interface of a policy: one term per number, named as lerobot names it."""
        return self._spec

    def connect(self) -> None:
        """Connect.

        Raises:
            RobotError: it is not calibrated; lerobot's own command does that.
        """
        self._robot.connect(calibrate=False)
        if not self._robot.is_calibrated:
            raise RobotError("the robot is not calibrated: run lerobot-calibrate for it first")

    def start_episode(self, seed: int | None = None) -> Measurement:
        """Lead the robot to its home pose; blocks for `homing_s`. `seed` changes nothing.

        Raises:
            RobotError: it is not calibrated.
            RuntimeError: `stop` was called meanwhile.
        """
        self._stopped = False  # first, so that a stop meanwhile stays
        with self._unless_stopped():
            if not self._robot.is_connected:
                self.connect()
        present = self._robot.get_observation()
        start = np.array([self._present(name, present) for name in self._actions])
        home = [self._config.home.get(name, float(value)) for name, value in zip(self._actions, start)]
        self._home = np.clip(home, self._spec.command_low, self._spec.command_high).astype(np.float32)
        steps = max(1, math.ceil(self._config.homing_s / self._config.control_dt))
        for step in range(1, steps + 1):
            self._send(start + (self._home - start) * (step / steps))
            time.sleep(self._config.control_dt)
        return self.read()._replace(reward=0.0)

    def send_command(self, command: FloatArray) -> FloatArray:
        """Send goals [A], within the limits; what the robot says was really sent [A]. Nothing is sent after `stop`."""
        if not np.isfinite(command).all():
            raise ValueError(f"the command is not finite: {command}")
        try:
            return self._send(np.clip(command, self._spec.command_low, self._spec.command_high))
        except _StoppedError:
            return self.safe_pose_command()

    def read(self) -> Measurement:
        """One reading; a value that is missing is NaN. It takes as long as the robot's cameras, if it has any."""
        time_ns = self._clock()
        values = self._robot.get_observation()
        observation = np.array([float(values.get(name, math.nan)) for name in self._observed], np.float32)
        return Measurement(observation, time_ns, math.nan, False, False, {})

    def safe_pose_command(self) -> FloatArray:
        """The home pose [A]."""
        return self._home.copy()

    def stop(self) -> None:
        """Disconnect, which is lerobot's only way to switch motors off."""
        self._stopped = True
        locked = self._lock.acquire(timeout=_LOCK_S)  # a call that hangs does not keep it from being tried
        try:
            if self._robot.is_connected:
                self._robot.disconnect()
        finally:
            if locked:
                self._lock.release()

    def disconnect(self) -> None:
        """The same."""
        self.stop()

    @contextlib.contextmanager
    def _unless_stopped(self) -> Iterator[None]:
        """Keep `stop` out, unless it was called before."""
        with self._lock:
            if self._stopped:
                raise _StoppedError("the robot was stopped")
            yield

    def _send(self, command: Any) -> FloatArray:
        with self._unless_stopped():
            sent = self._robot.send_action(dict(zip(self._actions, np.asarray(command, np.float64).tolist())))
        if missing := [name for name in self._actions if name not in sent]:
            raise RuntimeError(f"send_action does not say what it sent for {', '.join(missing)}")
        return np.array([sent[name] for name in self._actions], np.float32)

    def _present(self, name: str, present: Mapping[str, Any]) -> float:
        """Where an action stands now; lerobot's robots observe positions under the names of their goals."""
        if name not in present and name not in self._config.home:
            raise RobotError(f"where {name!r} stands is not observed: give it a value in home")
        return float(present.get(name, self._config.home.get(name)))

    def _choose_observations(self) -> list[str]:
        features = self._robot.observation_features
        numbers = [name for name, feature in features.items() if feature in (float, int)]
        for name in self._config.observe:
            if name not in numbers:
                raise ConfigError(f"observe: {name!r} is no number of the robot; it has {', '.join(numbers)}")
        chosen = list(self._config.observe) or numbers
        if not chosen:
            raise ConfigError("the robot has no observation that is a number")
        return chosen

    def _unit(self, name: str) -> str:
        return self._config.units.get(name, self._config.units.get("default", "1"))


def load_robot(config: LeRobotConfig) -> LeRobotLike:
    """The robot of `package.module:Class`, made from its own configuration class.

    Raises:
        RobotError: it cannot be imported, or refuses its configuration.
    """
    robot_class = load_name(config.robot, "robot.options.robot")
    try:
        return robot_class(robot_class.config_class(**config.config))
    except (TypeError, ValueError) as error:
        raise RobotError(f"{config.robot} does not take robot.options.config: {error}") from error


def make_robot(**options: Any) -> LeRobotRobot:
    """Factory for robot files (`module: "deploy.lerobot_adapter:make_robot"`); options as in `LeRobotConfig`."""
    return LeRobotRobot(build(LeRobotConfig, options, "robot.options."))
