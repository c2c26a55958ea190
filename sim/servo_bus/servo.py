"""`EmulatedServo`: one servo's memory and rules. What moves it is outside (`sim.servo_bus.ant`).

Angles are the servo's own, in rad: 0 at its center pulse, positive counter-clockwise.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from sim.servo_bus.packets import StatusError
from sim.servo_bus.servo_table import (
    CENTER_PULSE,
    CURRENT_UNIT,
    ITEMS,
    OVERHEATING,
    PULSES_PER_TURN,
    TABLE_SIZE,
    VELOCITY_UNIT,
    VOLTAGE_UNIT,
    WATCHDOG_UNIT,
    Item,
)

REBOOT_S = 0.3
_PRESENT = struct.Struct("<hiiiiHB")  # from present_current to present_temperature, which lie side by side
_TRIPPED = 255  # bus_watchdog after it fired: -1


class ShaftState(NamedTuple):
    """What a servo's sensors see: angle in rad, velocity in rad/s, current in A."""

    angle: float
    velocity: float
    current: float


class EmulatedServo:
    """Memory, write rules, trajectory, watchdog, temperature and errors of one servo.

    Attributes:
        identifier: Its id on the bus.
        temperature: In degrees Celsius; faults raise it.
        voltage: In V.
        dead: Unplugged: never answers, and its motor is off.
        target: Angle in rad at which its position control aims now; follows the goal at the profile velocity.
    """

    def __init__(self, identifier: int) -> None:
        self.identifier = identifier
        self.temperature, self.voltage = 30.0, 11.1
        self.dead = False
        self.target = self._goal = 0.0
        self._speed_limit = math.inf
        self._memory = bytearray(TABLE_SIZE)
        self._offline_until = -math.inf
        self._last_heard = -math.inf
        self._registered: tuple[int, bytes] | None = None
        for name, item in ITEMS.items():
            self._set(name, identifier if name == "id" else item.default)

    @property
    def torque_enabled(self) -> bool:
        """Whether the motor is driven."""
        return not self.dead and self.get("torque_enable") == 1

    @property
    def alert(self) -> int:
        """The alert flag of its status packets."""
        return StatusError.ALERT if self.get("hardware_error_status") else StatusError.NONE

    def is_silent(self, now: float) -> bool:
        """Whether it answers nothing: unplugged, or busy with a reboot."""
        return self.dead or now < self._offline_until

    def get(self, name: str) -> int:
        """Value of an item; signed where its range or meaning is."""
        item = ITEMS[name]
        raw = self._memory[item.address : item.address + item.size]
        return int.from_bytes(raw, "little", signed=item.size > 1)

    def hear(self, now: float) -> None:
        """An instruction was on the bus."""
        self._last_heard = now

    def read(self, address: int, size: int) -> tuple[int, bytes]:
        """(error, data); bytes between items read as zero."""
        if size < 1 or address + size > TABLE_SIZE:
            return StatusError.ACCESS | self.alert, b""
        return StatusError.NONE | self.alert, bytes(self._memory[address : address + size])

    def write(self, address: int, data: bytes) -> int:
        """Write items that lie side by side; the error. Nothing is written if one of them is refused."""
        end, covered = address + len(data), address
        changes: list[tuple[str, int]] = []
        for name, item in sorted(ITEMS.items(), key=lambda entry: entry[1].address):
            if item.address + item.size <= address or item.address >= end:
                continue
            if item.address < address or item.address + item.size > end:
                return StatusError.DATA_LENGTH | self.alert
            if item.address != covered:
                return StatusError.ACCESS | self.alert
            part = data[item.address - address : item.address - address + item.size]
            value = int.from_bytes(part, "little", signed=item.size > 1)
            error = self._refusal(name, item, value)
            if error:
                return error | self.alert
            changes.append((name, value))
            covered += item.size
        if not data or covered != end:
            return StatusError.ACCESS | self.alert
        for name, value in changes:
            self._apply(name, value)
        return StatusError.NONE | self.alert

    def register(self, address: int, data: bytes) -> int:
        """Keep a write for `act`."""
        self._registered = (address, data)
        self._set("registered_instruction", 1)
        return StatusError.NONE | self.alert

    def act(self) -> int:
        """Carry out the write kept by `register`."""
        if self._registered is None:
            return StatusError.INSTRUCTION | self.alert
        (address, data), self._registered = self._registered, None
        self._set("registered_instruction", 0)
        return self.write(address, data)

    def reboot(self, now: float) -> None:
        """Restart: off the bus for a moment, RAM at its defaults, hardware errors gone unless their cause stays."""
        self._offline_until = now + REBOOT_S
        self._registered = None
        for name, item in ITEMS.items():
            if not item.in_eeprom and not name.startswith("present_"):
                self._set(name, item.default)
        self._speed_limit = math.inf

    def fail(self, error_bit: int) -> None:
        """A hardware error occurs; those in `shutdown` switch the motor off until a reboot."""
        self._set("hardware_error_status", self.get("hardware_error_status") | error_bit)
        if self._memory[ITEMS["shutdown"].address] & error_bit:
            self._set("torque_enable", 0)

    def follow(self, dt: float) -> None:
        """Move the target on by `dt` seconds, at the profile velocity."""
        step = self._speed_limit * dt
        self.target += max(-step, min(step, self._goal - self.target))

    def sense(self, now: float, shaft: ShaftState) -> None:
        """Take in the sensors; check the temperature and the watchdog."""
        self._store(now, shaft)
        if self.temperature >= self.get_unsigned("temperature_limit"):
            self.fail(OVERHEATING)
        if not self.torque_enabled:
            self.target = self._goal = shaft.angle
            return
        watchdog = self.get_unsigned("bus_watchdog")
        if 0 < watchdog < _TRIPPED and now - self._last_heard > watchdog * WATCHDOG_UNIT:
            self._set("bus_watchdog", _TRIPPED)
            self._hold()

    def get_unsigned(self, name: str) -> int:
        """Value of an item as an unsigned number."""
        item = ITEMS[name]
        return int.from_bytes(self._memory[item.address : item.address + item.size], "little")

    def _store(self, now: float, shaft: ShaftState) -> None:
        _PRESENT.pack_into(
            self._memory,
            ITEMS["present_current"].address,
            max(-32_768, min(32_767, round(shaft.current / CURRENT_UNIT))),
            round(shaft.velocity / VELOCITY_UNIT),
            to_pulse(shaft.angle),
            0,
            to_pulse(self.target),
            round(self.voltage / VOLTAGE_UNIT),
            max(0, min(255, round(self.temperature))),
        )
        self._set("realtime_tick", int(now * 1000) % 32_768)

    def _refusal(self, name: str, item: Item, value: int) -> int:
        if not item.writable or (item.in_eeprom and self.torque_enabled):
            return StatusError.ACCESS
        if not item.low <= value <= item.high:
            return StatusError.DATA_RANGE
        if name == "goal_position":
            if self.get_unsigned("bus_watchdog") == _TRIPPED:
                return StatusError.DATA_RANGE
            if not self.get("min_position_limit") <= value <= self.get("max_position_limit"):
                return StatusError.DATA_LIMIT
        if name == "torque_enable" and value == 1:
            errors = self.get_unsigned("hardware_error_status") & self.get_unsigned("shutdown")
            return StatusError.RESULT_FAIL if errors else StatusError.NONE
        return StatusError.NONE

    def _apply(self, name: str, value: int) -> None:
        if name == "torque_enable" and value == 1 and not self.torque_enabled:
            self._hold()  # as the real ones do in position mode, so that nothing jumps
        self._set(name, value)
        if name == "goal_position":
            self._goal = to_angle(value)
        elif name == "profile_velocity":
            self._speed_limit = value * VELOCITY_UNIT or math.inf

    def _hold(self) -> None:
        """Make the present position the goal."""
        self._set("goal_position", self.get("present_position"))
        self.target = self._goal = to_angle(self.get("present_position"))

    def _set(self, name: str, value: int) -> None:
        item = ITEMS[name]
        mask = (1 << (8 * item.size)) - 1
        self._memory[item.address : item.address + item.size] = (value & mask).to_bytes(item.size, "little")


def to_pulse(angle: float) -> int:
    """Position count of an angle in rad."""
    return CENTER_PULSE + round(angle * PULSES_PER_TURN / (2 * math.pi))


def to_angle(pulse: int) -> float:
    """Angle in rad of a position count."""
    return (pulse - CENTER_PULSE) * 2 * math.pi / PULSES_PER_TURN
