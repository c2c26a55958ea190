"""What a control loop is configured with and made of, and how an episode can end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal, NamedTuple

from deploy.action_source import ActionSource
from deploy.estop import EStop
from deploy.fallback import FallbackConfig
from deploy.interpolation import Interpolation
from deploy.log_writer import EpisodeLogWriter
from deploy.observation_checks import ObservationConfig, ObservationMonitor
from deploy.real_time import RealTimeConfig
from deploy.safety import CommandLimits, SafetyConfig, compile_limits
from deploy.timing import Clock, SystemClock
from deploy.watch import TermWatch
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec

_HIGHEST_RATE = 10_000.0  # Hz; no bus takes more, and no loop in Python gives it


@dataclass(frozen=True)
class LoopConfig:
    """Timing of the control loop.

    Attributes:
        pace: `real_time` keeps the schedule; `fast` never sleeps, for simulated robots only.
        deadline: When an action must have come, as a fraction of the period after the tick was due.
        fast_timeout_s: Deadline in the fast pace, seconds after asking.
        late_tolerance: How late a tick may start, as a fraction of the period, before whole periods are skipped.
        spin_s: Busy-wait this long before each tick for exacter starts; uses that share of a core.
        max_steps: Cut each episode after this many steps; 0 leaves its end to the robot.
        homing_timeout_s: Stop the robot, which is a fault, if `Robot.start_episode` takes longer than this; 0 turns it
            off. Real-time pace only.
        watchdog_s: Stop the robot from a second thread if a tick takes longer than this, because a driver call does
            not return; 0 turns it off. Real-time pace only.
        realtime_priority: The older place of `real_time.priority`; used if that is 0.
        real_time: What to ask the operating system for.
        command_rate: Motor commands per second; a whole multiple of the policy's rate, at most 10,000. 0: one command
            per action.
        interpolation: What the commands between two actions are: `hold` sends the action's command at once, `linear`
            goes there in equal steps and arrives with the last command of the period. Limits hold for every command.
    """

    pace: Literal["real_time", "fast"] = "real_time"
    deadline: float = 0.5
    fast_timeout_s: float = 1.0
    late_tolerance: float = 0.1
    spin_s: float = 0.0
    max_steps: int = 0
    homing_timeout_s: float = 60.0
    watchdog_s: float = 1.0
    realtime_priority: int = 0
    real_time: RealTimeConfig = field(default_factory=RealTimeConfig)
    command_rate: float = 0.0
    interpolation: Interpolation = "hold"

    def __post_init__(self) -> None:
        if not 0.0 < self.deadline <= 1.0:
            raise ConfigError(f"loop.deadline must be in (0, 1] periods, got {self.deadline}")
        if not 0.0 <= self.late_tolerance < 1.0:
            raise ConfigError(f"loop.late_tolerance must be in [0, 1) periods, got {self.late_tolerance}")
        if self.fast_timeout_s <= 0 or min(self.spin_s, self.max_steps, self.watchdog_s, self.homing_timeout_s) < 0:
            raise ConfigError(
                "loop: fast_timeout_s must be positive; spin_s, max_steps, watchdog_s, homing_timeout_s not negative"
            )
        if not 0 <= self.realtime_priority <= 99:
            raise ConfigError(f"loop.realtime_priority must be 0 to 99, got {self.realtime_priority}")
        if not 0 <= self.command_rate <= _HIGHEST_RATE:
            raise ConfigError(
                f"loop.command_rate must not be negative and at most {_HIGHEST_RATE:.0f} Hz, got {self.command_rate:g}"
            )

    @property
    def is_real_time(self) -> bool:
        """Whether the schedule follows the clock."""
        return self.pace == "real_time"

    @property
    def operating_system(self) -> RealTimeConfig:
        """`real_time`, with the priority from wherever it was given."""
        return replace(self.real_time, priority=self.real_time.priority or self.realtime_priority)

    def commands_per_period(self, spec: PolicySpec) -> int:
        """Motor commands per policy period.

        Raises:
            ConfigError: not a whole number of them, or interpolation between the choices of a discrete policy.
        """
        count = max(1, round(self.command_rate * spec.control_dt)) if self.command_rate else 1
        if self.command_rate and abs(self.command_rate * spec.control_dt - count) > 1e-6 * count:
            rate = 1.0 / spec.control_dt
            raise ConfigError(
                f"loop.command_rate must be a whole multiple of the policy's {rate:.6g} Hz, got {self.command_rate:g}: "
                f"for example {rate * max(1, round(self.command_rate / rate)):.6g}"
            )
        if self.interpolation == "linear" and spec.num_actions is not None:
            raise ConfigError("loop.interpolation: linear makes no sense between discrete actions; use hold")
        return count


class EndReason(str, Enum):
    """Why an episode ended."""

    TERMINATED = "terminated"
    TRUNCATED = "truncated"
    MAX_STEPS = "max_steps"
    OPERATOR = "operator"  # a stop was asked for
    FALLBACK = "fallback"  # the ladder reached its last rung
    SAFETY = "safety"  # a limit or an observation check with mode `fault`
    WATCHDOG = "watchdog"  # a tick or the way to the start pose took too long
    ESTOP = "estop"  # the emergency stop was tripped

    @property
    def is_fault(self) -> bool:
        """Whether the robot is in FAULT afterwards: it moves again only when a human has re-armed it."""
        return self in (EndReason.FALLBACK, EndReason.SAFETY, EndReason.WATCHDOG, EndReason.ESTOP)


class End(NamedTuple):
    """Why an episode ends, and for faults what happened."""

    reason: EndReason
    detail: str


def _never() -> bool:
    return False


@dataclass(frozen=True)
class LoopParts:
    """What a control loop is made of besides the robot.

    Attributes:
        source: Where actions come from.
        local: In-process policy for the `local` rung, if the ladder has it.
        loop: Timing.
        safety: Limits.
        observation: Checks of readings.
        fallback: The ladder.
        open_log: Called with the episode id, before the robot moves, for the log of an episode; None: no log.
        should_stop: Polled once per tick, and by another thread while the robot is homing; True ends the episode
            cleanly.
        estop: The emergency stop; looked at before every motor command.
        clock: Source of time.
    """

    source: ActionSource
    local: ActionSource | None = None
    loop: LoopConfig = field(default_factory=LoopConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    fallback: FallbackConfig = field(default_factory=FallbackConfig)
    open_log: Callable[[str], EpisodeLogWriter] | None = None
    should_stop: Callable[[], bool] = _never
    estop: EStop = field(default_factory=EStop)
    clock: Clock = field(default_factory=SystemClock)


def limits_for(
    spec: PolicySpec, loop: LoopConfig, safety: SafetyConfig, observation: ObservationConfig
) -> CommandLimits:
    """Limits of one motor command. All that these settings may get wrong for a robot is found here, before it moves.

    Raises:
        ConfigError: limits or checks that name unknown terms or make no sense, a too short watchdog, a command rate
            that is no multiple of the policy's.
    """
    limits = compile_limits(safety, spec, spec.control_dt / loop.commands_per_period(spec))
    TermWatch(safety.watch, spec)
    ObservationMonitor(observation, spec, loop.is_real_time)
    if loop.is_real_time and 0 < loop.watchdog_s <= 2 * spec.control_dt:
        raise ConfigError(
            f"loop.watchdog_s must be 0 or longer than two periods of {spec.control_dt} s, got {loop.watchdog_s}"
        )
    return limits
