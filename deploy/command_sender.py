"""The last hand on every motor command: interpolates, limits, checks who is in charge, sends. Shapes: A action size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deploy.fallback import Mode
from deploy.interpolation import Interpolation, command_at
from deploy.loop_parts import End, EndReason, LoopParts
from deploy.loop_statistics import LoopStatistics
from deploy.robot import Robot, RobotError
from deploy.robot_state import StateMachine
from deploy.safety import CommandLimits, filter_command
from deploy.watch import term_slices
from mpo_robot.specs import PolicySpec

FloatArray = npt.NDArray[np.float32]


class CommandSender:
    """Sends the `count` motor commands of each policy period. Nothing else in an episode calls `Robot.send_command`.

    Attributes:
        count: Motor commands per policy period.
        previous: [A] applied last, as the robot reports it.
        changed: A limit or the robot altered a command of the running period.
        arrived: The target of the running period was sent.
        fault: Why nothing is sent any more: the robot reports commands that cannot be.
    """

    def __init__(
        self,
        robot: Robot,
        parts: LoopParts,
        limits: CommandLimits,
        machine: StateMachine,
        statistics: LoopStatistics,
    ) -> None:
        """Args: `limits` are for one motor command, not for one policy period."""
        self.count = parts.loop.commands_per_period(robot.spec)
        self.previous = checked_vector(
            robot.safe_pose_command(), robot.spec.action_size, "safe_pose_command() returned"
        )
        self.changed: bool = False
        self.arrived: bool = False
        self._robot, self._limits, self._machine, self._statistics = robot, limits, machine, statistics
        self._spec: PolicySpec = robot.spec
        self._estop = parts.estop
        self._interpolation: Interpolation = parts.loop.interpolation
        self._tolerance = parts.safety.applied_tolerance * robot.spec.command_half_range
        self._allowed = _with_slack(limits.hard_low, limits.hard_high, self._tolerance)
        self.fault: End | None = self._refuse(self.previous, "safe pose")
        self._before: FloatArray | None = None
        self._start = self._target = self.previous
        self._mode, self._first = Mode.STOP, 0
        self._next: int = self.count

    def aim(self, target: FloatArray, mode: Mode, first: int = 0) -> None:
        """Begin a period: head for `target` [A] on behalf of `mode`, with commands `first` to `count` - 1."""
        self._start, self._target, self._mode = self.previous, target, mode
        self._first = self._next = min(max(first, 0), self.count - 1)
        self._statistics.skipped_commands += self._first
        self.changed = self.arrived = False

    @property
    def next_index(self) -> int:
        """Index of the next command of this period; `count` if all are sent."""
        return self._next

    def skip(self) -> None:
        """Leave out the next command: its time has passed."""
        self._next += 1
        self._statistics.skipped_commands += 1

    def send(self) -> End | None:
        """Send the next command of the period. Returns why nothing may be sent, if so. See also `fault` afterwards.

        Raises:
            StateError: whoever is acting is not in charge in the robot's state. A programming error.
            RobotError: the robot answered with a vector of a wrong size.
        """
        if self._estop.tripped:
            return End(EndReason.ESTOP, self._estop.reason)
        if self.fault is not None:
            return self.fault
        self._machine.require(self._mode)
        wanted = command_at(self._start, self._target, self._next, self.count, self._interpolation, self._first)
        safe = filter_command(wanted, self.previous, self._limits, self._before)
        self._statistics.faults.update(safe.violations)
        if safe.command is None:
            return End(EndReason.SAFETY, safe.stop)
        applied = checked_vector(
            self._robot.send_command(safe.command.copy()), self._spec.action_size, "send_command() returned"
        )
        self.changed = self.changed or safe.modified or not self._is_same(applied, safe.command)
        self.arrived = self._interpolation == "hold" or self._next == self.count - 1
        self._before, self.previous = self.previous, applied
        self.fault = self._refuse(applied, "applied command")
        self._next += 1
        self._statistics.commands += 1
        return None

    def _refuse(self, reported: FloatArray, what: str) -> End | None:
        """The fault, if a command [A] that the robot reports is NaN, infinite or beyond the hard position limits."""
        low, high = self._allowed
        within = (reported >= low) & (reported <= high)  # False for NaN
        if within.all():
            return None
        self._statistics.faults["applied"] += 1
        i = int(np.argmin(within))
        name = next(term.name for term, part in term_slices(self._spec.command) if i < part.stop)
        return End(
            EndReason.SAFETY,
            f"the {what} that the robot reports is {reported[i]:.6g} for {name!r}, allowed from {low[i]:.4g} to "
            f"{high[i]:.4g} (position limits and safety.applied_tolerance)",
        )

    def _is_same(self, applied: FloatArray, sent: FloatArray) -> bool:
        return np.array_equal(applied, sent) or bool((np.abs(applied - sent) <= self._tolerance).all())


def _with_slack(low: FloatArray, high: FloatArray, tolerance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Bounds [A] of what may be reported: wider by the tolerance, or by the rounding of a conversion of units."""
    slack = np.maximum(tolerance, 4.0 * np.spacing(np.maximum(np.abs(low), np.abs(high))))
    return low - slack, high + slack


def checked_vector(values: npt.ArrayLike, size: int, what: str) -> FloatArray:
    """Own float32 copy [size]: a driver may reuse its buffers.

    Raises:
        RobotError: another size; `what` says whose.
    """
    array = np.array(values, np.float32)
    if array.shape != (size,):
        raise RobotError(f"the robot's {what} of shape {array.shape}, its spec says ({size},)")
    return array
