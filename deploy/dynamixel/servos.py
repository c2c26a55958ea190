"""`ServoGroup`: the servos of a robot, in the units of its joints. Shapes: J joints, all in the configured order."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from deploy.dynamixel import control_table as table
from deploy.dynamixel.bus import ATTEMPTS, Bus, BusError, Reply, StoppedError
from deploy.dynamixel.config import DynamixelConfig, JointConfig
from deploy.dynamixel.control_table import Register, describe_hardware_error
from deploy.robot import RobotError

Array = npt.NDArray[np.float64]
_LOG = logging.getLogger(__name__)
_OFF_ATTEMPTS = 3
_POLL_S = 0.01


class ServoGroup:
    """All servos of one robot.

    Attributes:
        bus: Theirs.
        stopped: Set, nothing that could move a motor or switch it on is sent any more, even by a call of another
            thread that is under way: it ends in `StoppedError`.
        position: Joint angles [J], rad; NaN for a servo that has not answered for longer than the age limit.
        velocity: Joint velocities [J], rad/s; likewise.
        effort: Motor currents [J], A, or loads (see the model), in the direction of the joint; likewise.
        voltage: Supply at each servo [J], V; likewise.
        temperature: Of each servo [J], degrees Celsius; likewise.
    """

    def __init__(self, config: DynamixelConfig, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """The bus is not opened yet; `clock` is the monotonic time in ns."""
        self._config, self._clock = config, clock
        self.stopped = True
        self.bus = self._bus = Bus(config.port, config.baud_rate, config.timeout_s, lambda: self.stopped)
        self._joints = config.joints
        self.ids = [joint.id for joint in config.joints]
        self._index = {identifier: index for index, identifier in enumerate(self.ids)}
        self._direction = np.array([joint.direction for joint in config.joints], np.float64)
        self._offset = np.array([joint.offset for joint in config.joints], np.float64)
        self._low, self._high, self.home = (
            np.array([getattr(joint, name) for joint in config.joints], np.float64) for name in ("low", "high", "home")
        )
        count = len(self.ids)
        self.position, self.velocity, self.effort, self.voltage, self.temperature = np.full((5, count), np.nan)
        self._answered_ns = [-(1 << 62)] * count
        self._spoke_ns: int | None = None  # to the servos, while their watchdogs are on

    def check(self) -> None:
        """Compare the servos with the configuration; nothing moves, and torque is off afterwards.

        Raises:
            BusError: a servo does not answer.
            RobotError: a servo is of another model or mode, or their answers take too long for the time-out.
        """
        identities = self._bus.read_all(self.ids, *table.IDENTITY)
        delay_s = 0.0
        for joint in self._joints:
            number, delay, drive, mode = (
                register.decode(identities[joint.id].data, table.IDENTITY)
                for register in (table.MODEL_NUMBER, table.RETURN_DELAY_TIME, table.DRIVE_MODE, table.OPERATING_MODE)
            )
            if number != self._config.servo.number:
                raise RobotError(
                    f"{_name(joint)} has model number {number}, and {self._config.model} has "
                    f"{self._config.servo.number}: correct robot.options.model or joints"
                )
            if mode != table.POSITION_MODE or drive & (table.REVERSE_MODE_BIT | table.TIME_PROFILE_BIT):
                raise RobotError(
                    f"{_name(joint)} has operating mode {mode} and drive mode {drive}: set operating mode 3 (position) "
                    "and drive mode 0 with the vendor's tool; directions belong into the robot file"
                )
            delay_s += delay * table.DELAY_SCALE
        expected_s = delay_s + len(self.ids) * (table.PRESENT.size + 11) * 10 / self._config.baud_rate
        if expected_s > self._config.timeout_s:
            raise RobotError(
                f"one reading of the {len(self.ids)} servos takes {1e3 * expected_s:.1f} ms, read_timeout_s allows "
                f"{1e3 * self._config.timeout_s:.1f} ms: set their return delay time to 0, or raise the baud rate"
            )
        self.torque_off()

    def recover(self) -> None:
        """Reboot servos with a hardware error, as often as configured.

        Raises:
            StoppedError: `stopped` was set meanwhile.
            BusError: an error does not go away, or a servo does not come back.
        """
        for joint in self._joints:
            attempts = self._config.reboot_attempts
            while status := self._hardware_error(joint.id):
                text = f"{_name(joint)}: {describe_hardware_error(status)}"
                if attempts == 0:
                    raise BusError(f"{text}; rebooting did not help" if self._config.reboot_attempts else text)
                attempts -= 1
                _LOG.warning("%s; rebooting it", text)
                self._bus.reboot(joint.id)
                self._wait_for(joint)

    def go_home(self) -> None:
        """Switch the motors on where they are and lead the joints slowly to the home pose. Blocks.

        Raises:
            StoppedError: `stopped` was set meanwhile.
            BusError: a servo fails or does not arrive.
        """
        self._spoke_ns = None
        self._write_all(table.BUS_WATCHDOG, [0] * len(self.ids))  # also clears one that has fired
        self._write_all(table.PROFILE_VELOCITY, self._velocity_counts(self._config.homing_velocity))
        self.send(self._present_position())
        watchdog = math.ceil(self._config.bus_watchdog_s / table.WATCHDOG_SCALE)
        self._write_all(table.BUS_WATCHDOG, [watchdog] * len(self.ids))
        self._spoke_ns = self._clock() if watchdog else None
        self._write_all(table.TORQUE_ENABLE, [1] * len(self.ids))
        end = self._clock() + round(self._config.homing_timeout_s * 1e9)
        while True:
            self.send(self.home)
            time.sleep(_POLL_S)
            self.read()
            away = [
                joint.name
                for joint, error in zip(self._joints, np.abs(self.position - self.home))
                if not error <= self._config.homing_tolerance
            ]
            if not away:
                break
            if self._clock() > end:
                raise BusError(f"{', '.join(away)} did not reach the start pose in {self._config.homing_timeout_s} s")
        self._write_all(table.PROFILE_VELOCITY, self._velocity_counts(self._config.profile_velocity))

    def read(self) -> int | None:
        """Take a reading of all servos. Its time in ns, or None if no servo has answered.

        Raises:
            BusError: the port failed, a servo reports a hardware error, or the servos have stopped by themselves.
        """
        time_ns = self._clock()
        self._require_heard(time_ns)
        replies = self._bus.sync_read(self.ids, *table.PRESENT, self._config.fast_sync_read)
        for identifier, reply in replies.items():
            self._take(self._index[identifier], reply.data, time_ns)
        self._forget_silent(time_ns)
        self._require_no_error(replies)
        return time_ns if replies else None

    def send(self, command: npt.ArrayLike) -> Array:
        """Set goals from joint angles [J], rad. What the servos got, after limits and rounding [J], rad.

        Raises:
            StoppedError: `stopped` is set.
            BusError: the port failed, or the servos have stopped by themselves.
        """
        self._require_heard(self._clock())
        wanted = np.clip(np.asarray(command, np.float64), self._low, self._high)
        servo_angle = self._direction * wanted + self._offset
        goals = table.CENTER_PULSE + np.rint(servo_angle / table.RADIANS_PER_PULSE).astype(np.int64)
        self._bus.sync_write(table.GOAL_POSITION, dict(zip(self.ids, goals.tolist())))
        return self._direction * ((goals - table.CENTER_PULSE) * table.RADIANS_PER_PULSE - self._offset)

    def torque_off(self) -> None:
        """Switch all motors off for good (see `stopped`), and look whether they are.

        A servo that does not answer cannot be looked at: it has been told several times, and its watchdog stops it.

        Raises:
            BusError: a servo says that it is still on, or the port failed.
        """
        self.stopped = True
        self._spoke_ns = None
        unknown, still_on = set(self.ids), set[int]()
        for _ in range(_OFF_ATTEMPTS):
            self._bus.sync_write(table.TORQUE_ENABLE, dict.fromkeys(self.ids, 0), force=True)
            replies = self._bus.sync_read(self.ids, *table.CONDITION)
            for identifier, reply in replies.items():
                unknown.discard(identifier)
                is_on = table.TORQUE_ENABLE.decode(reply.data, table.CONDITION)
                (still_on.add if is_on else still_on.discard)(identifier)
            if not unknown and not still_on:
                return
        if still_on:
            raise BusError(f"still on after having been switched off: {self._names(still_on)}")
        _LOG.warning("switched off without an answer: %s", self._names(unknown))

    def _take(self, index: int, data: bytes, time_ns: int) -> None:
        block, direction = table.PRESENT, self._direction[index]
        servo_angle = (table.PRESENT_POSITION.decode(data, block) - table.CENTER_PULSE) * table.RADIANS_PER_PULSE
        self.position[index] = direction * (servo_angle - self._offset[index])
        self.velocity[index] = direction * table.PRESENT_VELOCITY.decode(data, block) * table.VELOCITY_SCALE
        self.effort[index] = direction * table.PRESENT_EFFORT.decode(data, block) * self._config.servo.effort_scale
        self.voltage[index] = round(table.PRESENT_VOLTAGE.decode(data, block) * table.VOLTAGE_SCALE, 1)
        self.temperature[index] = table.PRESENT_TEMPERATURE.decode(data, block)
        self._answered_ns[index] = time_ns

    def _forget_silent(self, time_ns: int) -> None:
        """Make the values of servos that have not answered for too long NaN, and say so once."""
        oldest_ns = time_ns - round(self._config.age_limit_s * 1e9)
        for index, answered_ns in enumerate(self._answered_ns):
            if answered_ns >= oldest_ns or np.isnan(self.position[index]):
                continue
            _LOG.warning("%s does not answer", _name(self._joints[index]))
            for values in (self.position, self.velocity, self.effort, self.voltage, self.temperature):
                values[index] = np.nan

    def _require_heard(self, now_ns: int) -> None:
        """Servos whose watchdog has fired hold where they are and take no goal, and no answer to a goal says so."""
        before_ns = self._spoke_ns
        if before_ns is None:
            return
        self._spoke_ns = now_ns
        silent_s = (now_ns - before_ns) / 1e9
        if silent_s > self._config.bus_watchdog_s:
            raise BusError(
                f"the servos heard nothing for {silent_s:.2f} s, so their watchdogs (bus_watchdog_s "
                f"{self._config.bus_watchdog_s:g}) have stopped them; the next episode switches them on again"
            )

    def _require_no_error(self, replies: dict[int, Reply]) -> None:
        failed = [identifier for identifier, reply in replies.items() if reply.alert]
        if not failed:
            return
        texts = []
        for identifier in failed:
            joint = self._joints[self._index[identifier]]
            try:
                text = describe_hardware_error(self._hardware_error(identifier))
            except BusError as error:
                text = f"hardware error ({error})"
            texts.append(f"{_name(joint)}: {text}")
        raise BusError("; ".join(texts))

    def _hardware_error(self, identifier: int) -> int:
        reply = self._bus.read_all([identifier], *table.CONDITION)[identifier]
        return table.HARDWARE_ERROR_STATUS.decode(reply.data, table.CONDITION)

    def _present_position(self) -> Array:
        for _ in range(ATTEMPTS):
            self.read()
            if np.isfinite(self.position).all():
                return self.position.copy()
        silent = {self.ids[index] for index in np.flatnonzero(~np.isfinite(self.position))}
        raise BusError(f"no answer from {self._names(silent)}")

    def _wait_for(self, joint: JointConfig) -> None:
        end = self._clock() + round(self._config.reboot_wait_s * 1e9)
        while True:
            time.sleep(_POLL_S)
            if self.stopped:
                raise StoppedError(f"stopped while {_name(joint)} was being rebooted")
            try:
                self._hardware_error(joint.id)
            except BusError:
                if self._clock() > end:
                    raise BusError(f"{_name(joint)} did not come back from its reboot") from None
            else:
                return

    def _write_all(self, register: Register, values: list[int]) -> None:
        for identifier, value in zip(self.ids, values):
            self._bus.write(identifier, register, value)

    def _velocity_counts(self, velocity: float) -> list[int]:
        """A profile velocity in counts for each servo; 0, which means no limit, only for 0."""
        return [math.ceil(velocity / table.VELOCITY_SCALE)] * len(self.ids)

    def _names(self, identifiers: Iterable[int]) -> str:
        return ", ".join(_name(self._joints[self._index[identifier]]) for identifier in sorted(identifiers))


def _name(joint: JointConfig) -> str:
    return f"{joint.name} (id {joint.id})"
