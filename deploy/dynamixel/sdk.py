"""The vendor's library as this driver uses it, with four things put right. Imported only when a bus is opened.

- Its time-outs add 34 ms to the time a packet takes, longer than a control period, and follow the wall clock. Here
  each exchange has one time-out, counted by the monotonic clock.
- It spins while it waits. Here it waits in the operating system.
- It does not stuff what it sends: the stuffed copy is thrown away. (4.1.0; tested)
- It unstuffs in place and, behind the first stuffed byte, takes plain bytes for stuffed ones. (4.1.0; tested)
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Any

import serial
from dynamixel_sdk.port_handler import PortHandler
from dynamixel_sdk.protocol2_packet_handler import Protocol2PacketHandler

_BODY = 7  # index of the instruction: header, id and length come before it
_PATTERN, _STUFFED = b"\xff\xff\xfd", b"\xff\xff\xfd\xfd"


class DeadlinePort(PortHandler):
    """A serial port on which every exchange ends within `timeout_s` after its request was written."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ser: Any
        self.timeout_s = 0.0

    def setupPort(self, cflag_baud: int) -> bool:  # noqa: N802 - the library's name
        """Open the port for this process alone."""
        if self.is_open:
            self.closePort()
        self.ser = serial.Serial(self.port_name, cflag_baud, timeout=0, exclusive=True)
        with contextlib.suppress(ValueError, OSError, NotImplementedError, AttributeError):
            self.ser.set_low_latency_mode(True)  # USB adapters otherwise collect bytes for 16 ms
        self.is_open = True
        self.ser.reset_input_buffer()
        return True

    def getCurrentTime(self) -> float:  # noqa: N802
        """Milliseconds of the monotonic clock."""
        return time.monotonic_ns() / 1e6

    def setPacketTimeout(self, packet_length: int) -> None:  # noqa: N802
        """Start the time-out of an exchange, the same for every length."""
        self.setPacketTimeoutMillis(self.timeout_s * 1e3)

    def is_over(self) -> bool:
        """Whether the time-out of the exchange is over."""
        return self.getTimeSinceStart() >= self.timeout_s * 1e3

    def writePort(self, packet: list[int]) -> int:  # noqa: N802
        """Hand bytes to the operating system without waiting; how many it took."""
        try:
            return os.write(self.ser.fileno(), bytes(packet))
        except BlockingIOError:
            return 0

    def readPort(self, length: int) -> bytes:  # noqa: N802
        """Up to `length` bytes; waits for the first one as long as the time-out allows."""
        data = self.ser.read(length)
        if data or length == 0:
            return data
        remaining_s = (self.packet_timeout - self.getTimeSinceStart()) / 1e3
        if remaining_s > 0:
            select.select([self.ser.fileno()], [], [], remaining_s)
            return self.ser.read(length)
        return b""


class PacketHandler(Protocol2PacketHandler):
    """Packets whose stuffing is right in both directions. Packets are the library's lists of bytes."""

    def addStuffing(self, packet: list[int]) -> list[int]:  # noqa: N802
        """Stuff a packet in place, for that is what the caller goes on with."""
        body, crc = bytes(packet[_BODY:-2]), packet[-2:]
        stuffed = body.replace(_PATTERN, _STUFFED)
        packet[_BODY:] = [*stuffed, *crc]
        packet[5:_BODY] = (len(stuffed) + 2).to_bytes(2, "little")
        return packet

    def removeStuffing(self, packet: list[int]) -> list[int]:  # noqa: N802
        """Unstuff a packet in place."""
        body, crc = bytes(packet[_BODY:-2]), packet[-2:]
        plain = body.replace(_STUFFED, _PATTERN)
        packet[_BODY:] = [*plain, *crc]
        packet[5:_BODY] = (len(plain) + 2).to_bytes(2, "little")
        return packet
