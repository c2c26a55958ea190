"""Packets of Dynamixel Protocol 2.0: framing, byte stuffing and CRC-16.

    FF FF FD 00 | id | length (2, little-endian) | instruction | parameters | CRC (2, little-endian)

The length counts what follows it. Within instruction and parameters, FF FF FD is sent as FF FF FD FD, so that the
header occurs nowhere else. A status packet has the instruction 0x55 and an error byte before its parameters.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

HEADER = b"\xff\xff\xfd\x00"
BROADCAST_ID = 0xFE
MAX_PACKET_BYTES = 1024
_PATTERN, _STUFFED = b"\xff\xff\xfd", b"\xff\xff\xfd\xfd"
_BEFORE_BODY = len(HEADER) + 3  # id and length


class Instruction(IntEnum):
    """What a packet asks for."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    REBOOT = 0x08
    STATUS = 0x55
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83
    FAST_SYNC_READ = 0x8A
    BULK_READ = 0x92
    BULK_WRITE = 0x93


class StatusError(IntEnum):
    """Low bits of a status packet's error byte; `ALERT` is the flag for a hardware error."""

    NONE = 0x00
    RESULT_FAIL = 0x01
    INSTRUCTION = 0x02
    CRC = 0x03
    DATA_RANGE = 0x04
    DATA_LENGTH = 0x05
    DATA_LIMIT = 0x06
    ACCESS = 0x07
    ALERT = 0x80


class Packet(NamedTuple):
    """One intact packet. `instruction` is a number, for it may be none that is known; `parameters` are unstuffed."""

    identifier: int
    instruction: int
    parameters: bytes


def _crc_table() -> tuple[int, ...]:
    table: list[int] = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x8005 if crc & 0x8000 else 0)
        table.append(crc & 0xFFFF)
    return tuple(table)


_TABLE = _crc_table()


def crc16(data: bytes, crc: int = 0) -> int:
    """CRC-16 with polynomial 0x8005 (most significant bit first, start value 0) of `data`, continued from `crc`."""
    for byte in data:
        crc = ((crc << 8) & 0xFFFF) ^ _TABLE[(crc >> 8) ^ byte]
    return crc


def stuff(body: bytes) -> bytes:
    """Instruction and parameters as they are sent."""
    return body.replace(_PATTERN, _STUFFED)


def unstuff(body: bytes) -> bytes:
    """Inverse of `stuff`."""
    return body.replace(_STUFFED, _PATTERN)


def encode(identifier: int, instruction: int, parameters: bytes = b"") -> bytes:
    """A whole packet."""
    body = stuff(bytes([instruction]) + parameters)
    packet = HEADER + bytes([identifier]) + (len(body) + 2).to_bytes(2, "little") + body
    return packet + crc16(packet).to_bytes(2, "little")


def encode_status(identifier: int, error: int, parameters: bytes = b"") -> bytes:
    """A whole status packet."""
    return encode(identifier, Instruction.STATUS, bytes([error]) + parameters)


def encode_fast_status(blocks: list[tuple[int, int, bytes]]) -> bytes:
    """The one answer of several servos to a fast sync read, from (id, error, data) of each.

    Its blocks of error, id, data and CRC are not stuffed; each CRC covers all that came before it.
    """
    length = 1 + sum(4 + len(data) for _, _, data in blocks)
    packet = HEADER + bytes([BROADCAST_ID]) + length.to_bytes(2, "little") + bytes([Instruction.STATUS])
    for identifier, error, data in blocks:
        packet += bytes([error, identifier]) + data
        packet += crc16(packet).to_bytes(2, "little")
    return packet


class Parser:
    """Finds packets in a stream of bytes.

    Attributes:
        damaged: Packets whose CRC was wrong, so far.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.damaged = 0

    def feed(self, data: bytes) -> list[Packet]:
        """The intact packets completed by `data`; whatever cannot be part of one is dropped."""
        self._buffer += data
        packets: list[Packet] = []
        while self._seek():
            size = _BEFORE_BODY + int.from_bytes(self._buffer[5:7], "little")
            if size < _BEFORE_BODY + 3 or size > MAX_PACKET_BYTES:
                del self._buffer[0]
                continue
            if len(self._buffer) < size:
                break
            packet = bytes(self._buffer[:size])
            if crc16(packet[:-2]) != int.from_bytes(packet[-2:], "little"):
                self.damaged += 1
                del self._buffer[0]  # a damaged length may have swallowed a good packet: look on right behind
                continue
            del self._buffer[:size]
            body = unstuff(packet[_BEFORE_BODY:-2])
            packets.append(Packet(packet[4], body[0], body[1:]))
        return packets

    def forget(self) -> None:
        """Drop an unfinished packet: the line has been silent for longer than a packet may pause."""
        self._buffer.clear()

    def _seek(self) -> bool:
        """Drop what is before a header; whether the header, id and length are there."""
        start = self._buffer.find(HEADER)
        if start < 0:
            del self._buffer[: max(0, len(self._buffer) - len(HEADER) + 1)]
            return False
        del self._buffer[:start]
        return len(self._buffer) >= _BEFORE_BODY
