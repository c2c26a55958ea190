"""`DynamixelConfig`: what `robot.options` of a robot file says about a robot of Dynamixel servos."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.dynamixel.control_table import MAX_WATCHDOG, MODELS, WATCHDOG_SCALE, Model
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec

Observed = Literal["joint_position", "joint_velocity", "joint_effort"]


@dataclass(frozen=True)
class JointConfig:
    """One joint and its servo. Joint angle = direction * (servo angle - offset); the servo's angle is 0 at its center.

    Attributes:
        name: Of the joint; also of its command term.
        id: Of the servo on the bus.
        low: Smallest joint angle that may be commanded, rad.
        high: Largest joint angle that may be commanded, rad.
        home: Joint angle of the start and safe pose, rad.
        direction: 1, or -1 if the servo turns the other way than the joint.
        offset: Servo angle in rad at joint angle 0.
    """

    name: str
    id: int
    low: float
    high: float
    home: float = 0.0
    direction: int = 1
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.id <= 252:
            raise ConfigError(f"joint {self.name!r}: id must be 0 to 252, got {self.id}")
        if self.direction not in (-1, 1):
            raise ConfigError(f"joint {self.name!r}: direction must be 1 or -1, got {self.direction}")
        if not self.low < self.high or not self.low <= self.home <= self.high:
            raise ConfigError(f"joint {self.name!r}: low must be below high, and home between them")
        if any(abs(self.direction * angle + self.offset) >= math.pi for angle in (self.low, self.high)):
            raise ConfigError(f"joint {self.name!r}: with its offset, low or high is beyond the servo's +-pi rad")


@dataclass(frozen=True)
class BodyConfig:
    """Where the state of the body comes from, which no servo measures.

    Attributes:
        module: `package.module:Factory`; called with `options`, it returns a `deploy.dynamixel.body.BodySource`.
        options: Keyword arguments of the factory.
    """

    module: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.module.count(":") != 1:
            raise ConfigError(f"body.module must look like package.module:Factory, got {self.module!r}")


@dataclass(frozen=True)
class DynamixelConfig:
    """A robot of Dynamixel servos in position mode.

    Attributes:
        port: Serial port, /dev/ttyUSB0 for example.
        joints: In the order of observation and command.
        model: Of all servos; one of `deploy.dynamixel.control_table.MODELS`.
        baud_rate: Of the bus.
        control_dt: Policy period, s.
        observe: What of the joints a policy sees, in this order. Temperatures and voltages are in `info` instead.
        body: Source of the body's state; its terms follow those of the joints. Null: none.
        read_timeout_s: Longest wait for the servos' answers; 0 stands for 0.4 of the period.
        max_age_s: A servo that has not answered for longer reads NaN; until then its last values stand. 0 stands for
            2.5 periods: one answer may fail, or two.
        fast_sync_read: Ask all servos for one common answer; needs firmware that can do it.
        bus_watchdog_s: The servos stop by themselves when they hear nothing for this long; 0 turns that off.
        profile_velocity: Largest joint velocity while a policy acts, kept by the servos, rad/s; 0: none.
        homing_velocity: The same on the way to the start pose, rad/s.
        homing_tolerance: How near the start pose each joint must come, rad.
        homing_timeout_s: How long it may take.
        reboot_attempts: How often a servo with a hardware error is rebooted before an episode; never during one.
        reboot_wait_s: How long a servo may take to come back.
    """

    port: str
    joints: tuple[JointConfig, ...]
    model: str = "xl430-w250"
    baud_rate: int = 1_000_000
    control_dt: float = 0.02
    observe: tuple[Observed, ...] = ("joint_position", "joint_velocity")
    body: BodyConfig | None = None
    read_timeout_s: float = 0.0
    max_age_s: float = 0.0
    fast_sync_read: bool = False
    bus_watchdog_s: float = 0.2
    profile_velocity: float = 0.0
    homing_velocity: float = 1.0
    homing_tolerance: float = 0.1
    homing_timeout_s: float = 5.0
    reboot_attempts: int = 2
    reboot_wait_s: float = 2.0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ConfigError(f"unknown servo model {self.model!r}; known are {', '.join(MODELS)}")
        if not self.joints or not self.observe or len(set(self.observe)) != len(self.observe):
            raise ConfigError("a robot needs joints, and something to observe of them, each once")
        for what in ("id", "name"):
            values = [getattr(joint, what) for joint in self.joints]
            if len(set(values)) != len(values):
                raise ConfigError(f"each joint needs a {what} of its own, got {values}")
        if self.control_dt <= 0 or not 0 <= self.read_timeout_s <= 0.5 * self.control_dt:
            raise ConfigError("control_dt must be positive, and read_timeout_s at most half of it")
        if not 0 <= self.bus_watchdog_s <= MAX_WATCHDOG * WATCHDOG_SCALE or 0 < self.bus_watchdog_s < self.control_dt:
            raise ConfigError("bus_watchdog_s must be 0, or longer than control_dt and at most 2.54 s")
        if self.homing_velocity <= 0 or self.homing_tolerance <= 0 or self.homing_timeout_s <= 0:
            raise ConfigError("homing_velocity, homing_tolerance and homing_timeout_s must be positive")
        if min(self.max_age_s, self.profile_velocity, self.reboot_attempts, self.reboot_wait_s) < 0:
            raise ConfigError("max_age_s, profile_velocity, reboot_attempts and reboot_wait_s must not be negative")

    @property
    def servo(self) -> Model:
        """The model's data."""
        return MODELS[self.model]

    @property
    def timeout_s(self) -> float:
        """`read_timeout_s`, resolved."""
        return self.read_timeout_s or 0.4 * self.control_dt

    @property
    def age_limit_s(self) -> float:
        """`max_age_s`, resolved."""
        return self.max_age_s or 2.5 * self.control_dt

    def spec(self, body_terms: tuple[TermSpec, ...] = ()) -> PolicySpec:
        """Interface of a policy: observed terms of all joints, the body's terms; one command term per joint, rad."""
        units = {"joint_position": "rad", "joint_velocity": "rad/s", "joint_effort": self.servo.effort_unit}
        observed = tuple(TermSpec(name, len(self.joints), units[name]) for name in self.observe)
        commands = tuple(TermSpec(joint.name, 1, "rad", (joint.low,), (joint.high,)) for joint in self.joints)
        return PolicySpec((*observed, *body_terms), commands, self.control_dt)
