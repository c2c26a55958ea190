"""Control tables of the servos as data: where each register is, and what one count of it means.

From the vendor's manuals. The models here differ in their number and in what they measure of the motor's effort; one
more is one more entry of `MODELS`. Only registers that the driver uses are listed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Register(NamedTuple):
    """Place of a register: address, size in bytes, whether its value has a sign. Little-endian, two's complement."""

    address: int
    size: int
    signed: bool = False

    def decode(self, data: bytes, block: Block) -> int:
        """Value in the bytes of a block."""
        first = self.address - block.start
        return int.from_bytes(data[first : first + self.size], "little", signed=self.signed)


@dataclass(frozen=True)
class Model:
    """One model of servo.

    Attributes:
        number: What its register `model_number` says.
        effort_unit: Unit of what it measures of the motor's effort: `A`, or `1` for a share of its largest load.
        effort_scale: The same per count of `present_effort`.
    """

    number: int
    effort_unit: str
    effort_scale: float


PULSES_PER_TURN = 4096
CENTER_PULSE = 2048
RADIANS_PER_PULSE = 2 * math.pi / PULSES_PER_TURN
VELOCITY_SCALE = 0.229 * 2 * math.pi / 60  # rad/s per count: 0.229 rev/min
VOLTAGE_SCALE = 0.1  # V per count
WATCHDOG_SCALE = 0.02  # s per count
MAX_WATCHDOG = 127  # counts
DELAY_SCALE = 2e-6  # s per count of return_delay_time
POSITION_MODE = 3


class Block(NamedTuple):
    """Registers that are read together. The blocks differ in size, so that an answer shows what it answers."""

    start: int
    size: int


IDENTITY = Block(0, 12)
MODEL_NUMBER = Register(0, 2)
RETURN_DELAY_TIME = Register(9, 1)
DRIVE_MODE = Register(10, 1)
OPERATING_MODE = Register(11, 1)

CONDITION = Block(64, 7)
TORQUE_ENABLE = Register(64, 1)
HARDWARE_ERROR_STATUS = Register(70, 1)

PRESENT = Block(126, 21)
PRESENT_EFFORT = Register(126, 2, signed=True)
PRESENT_VELOCITY = Register(128, 4, signed=True)
PRESENT_POSITION = Register(132, 4, signed=True)
PRESENT_VOLTAGE = Register(144, 2)
PRESENT_TEMPERATURE = Register(146, 1)

BUS_WATCHDOG = Register(98, 1)
PROFILE_VELOCITY = Register(112, 4)
GOAL_POSITION = Register(116, 4, signed=True)

MODELS = {
    "xl430-w250": Model(1060, "1", 0.001),
    "xl330-m288": Model(1200, "A", 0.001),
    "xc330-t181": Model(1210, "A", 0.001),
    "xc330-t288": Model(1220, "A", 0.001),
    "xm430-w350": Model(1020, "A", 0.00269),
    "xm430-w210": Model(1030, "A", 0.00269),
}

HARDWARE_ERRORS = {
    0: "input voltage out of range",
    2: "overheating",
    3: "encoder fault",
    4: "electrical shock or not enough power",
    5: "overload",
}
REVERSE_MODE_BIT, TIME_PROFILE_BIT = 1 << 0, 1 << 2  # of drive_mode


def describe_hardware_error(status: int) -> str:
    """The bits of `hardware_error_status` in words."""
    words = [HARDWARE_ERRORS.get(bit, f"unknown error bit {bit}") for bit in range(8) if status >> bit & 1]
    return ", ".join(words) or "no hardware error"
