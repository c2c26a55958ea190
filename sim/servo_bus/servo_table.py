"""Control table of the emulated servos: that of the X series as its manual gives it, without indirect addresses.

Everything a driver can read or write is an item: address, size, access and range.
"""

from __future__ import annotations

import math
from typing import NamedTuple

PULSES_PER_TURN = 4096
CENTER_PULSE = 2048
VELOCITY_UNIT = 0.229 * 2 * math.pi / 60  # rad/s per count
CURRENT_UNIT = 0.001  # A per count
VOLTAGE_UNIT = 0.1  # V per count
WATCHDOG_UNIT = 0.02  # s per count
TABLE_SIZE = 256

# Bits of `hardware_error_status` and of `shutdown`, which says which of them switch the motor off.
VOLTAGE_ERROR, OVERHEATING, ENCODER_ERROR, ELECTRICAL_SHOCK, OVERLOAD = 1 << 0, 1 << 2, 1 << 3, 1 << 4, 1 << 5


class Item(NamedTuple):
    """One item of the table.

    Attributes:
        address: Of its first byte.
        size: In bytes; the value is little-endian.
        default: Value after a reset; items in RAM also get it by a reboot.
        writable: By a packet.
        low: Smallest value that may be written.
        high: Largest value that may be written.
    """

    address: int
    size: int
    default: int = 0
    writable: bool = False
    low: int = 0
    high: int = 0

    @property
    def in_eeprom(self) -> bool:
        """Whether it survives a reboot, and can be written with the torque off only."""
        return self.address < 64


def _rw(address: int, size: int, default: int, low: int, high: int) -> Item:
    return Item(address, size, default, True, low, high)


# An XC330-T288: the smallest model that measures current.
MODEL_NUMBER = 1220
ITEMS = {
    "model_number": Item(0, 2, MODEL_NUMBER),
    "firmware_version": Item(6, 1, 52),
    "id": Item(7, 1, 1),  # fixed here: the emulator's configuration says it
    "baud_rate": _rw(8, 1, 3, 0, 7),
    "return_delay_time": _rw(9, 1, 0, 0, 254),  # 250 from the factory
    "drive_mode": _rw(10, 1, 0, 0, 5),
    "operating_mode": _rw(11, 1, 3, 0, 16),
    "homing_offset": _rw(20, 4, 0, -1_044_479, 1_044_479),
    "temperature_limit": _rw(31, 1, 70, 0, 100),
    "max_voltage_limit": _rw(32, 2, 140, 55, 140),
    "min_voltage_limit": _rw(34, 2, 55, 55, 140),
    "current_limit": _rw(38, 2, 910, 0, 910),
    "max_position_limit": _rw(48, 4, 4095, 0, 4095),
    "min_position_limit": _rw(52, 4, 0, 0, 4095),
    "shutdown": _rw(63, 1, VOLTAGE_ERROR | OVERHEATING | ELECTRICAL_SHOCK | OVERLOAD, 0, 255),
    "torque_enable": _rw(64, 1, 0, 0, 1),
    "led": _rw(65, 1, 0, 0, 1),
    "status_return_level": _rw(68, 1, 2, 0, 2),
    "registered_instruction": Item(69, 1),
    "hardware_error_status": Item(70, 1),
    "position_p_gain": _rw(84, 2, 900, 0, 16_383),
    "bus_watchdog": _rw(98, 1, 0, 0, 127),
    "profile_acceleration": _rw(108, 4, 0, 0, 32_767),
    "profile_velocity": _rw(112, 4, 0, 0, 32_767),
    "goal_position": _rw(116, 4, CENTER_PULSE, 0, 4095),
    "realtime_tick": Item(120, 2),
    "present_current": Item(126, 2),
    "present_velocity": Item(128, 4),
    "present_position": Item(132, 4, CENTER_PULSE),
    "velocity_trajectory": Item(136, 4),
    "position_trajectory": Item(140, 4, CENTER_PULSE),
    "present_input_voltage": Item(144, 2, 111),
    "present_temperature": Item(146, 1, 30),
}
