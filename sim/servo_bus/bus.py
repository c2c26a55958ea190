"""`ServoBus`: instructions in, status packets out, for all servos on one wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sim.servo_bus.packets import (
    BROADCAST_ID,
    Instruction,
    Packet,
    StatusError,
    encode_fast_status,
    encode_status,
)
from sim.servo_bus.servo import EmulatedServo


class ServoBus:
    """Carries out instruction packets.

    Attributes:
        servos: By id.
    """

    def __init__(self, servos: Iterable[EmulatedServo]) -> None:
        self.servos = {servo.identifier: servo for servo in servos}

    def handle(self, packet: Packet, now: float) -> list[bytes]:
        """Status packets, in the order in which they appear on the wire. Silent servos hear nothing."""
        awake = {key: servo for key, servo in self.servos.items() if not servo.is_silent(now)}
        for servo in awake.values():
            servo.hear(now)
        handler = _MULTIPLE.get(packet.instruction)
        if handler is not None:
            return handler(packet.parameters, awake) if packet.identifier == BROADCAST_ID else []
        if packet.instruction == Instruction.STATUS:
            return []
        if packet.identifier == BROADCAST_ID:
            answers = [_single(servo, packet, now) for servo in awake.values()]
            return answers if packet.instruction == Instruction.PING else []
        servo = awake.get(packet.identifier)
        return [] if servo is None else [_single(servo, packet, now)]


def _single(servo: EmulatedServo, packet: Packet, now: float) -> bytes:
    """What one servo does and answers."""
    parameters = packet.parameters
    error, data = StatusError.NONE | servo.alert, b""
    if packet.instruction == Instruction.PING:
        data = servo.read(0, 2)[1] + servo.read(6, 1)[1]
    elif packet.instruction == Instruction.READ and len(parameters) == 4:
        error, data = servo.read(_word(parameters, 0), _word(parameters, 2))
    elif packet.instruction == Instruction.WRITE and len(parameters) > 2:
        error = servo.write(_word(parameters, 0), parameters[2:])
    elif packet.instruction == Instruction.REG_WRITE and len(parameters) > 2:
        error = servo.register(_word(parameters, 0), parameters[2:])
    elif packet.instruction == Instruction.ACTION:
        error = servo.act()
    elif packet.instruction == Instruction.REBOOT:
        servo.reboot(now)
        error = StatusError.NONE
    else:
        error = StatusError.INSTRUCTION | servo.alert
    return encode_status(servo.identifier, error, data)


def _sync_read(parameters: bytes, servos: dict[int, EmulatedServo]) -> list[bytes]:
    if len(parameters) < 5:
        return []
    address, size = _word(parameters, 0), _word(parameters, 2)
    return [encode_status(key, *servos[key].read(address, size)) for key in parameters[4:] if key in servos]


def _fast_sync_read(parameters: bytes, servos: dict[int, EmulatedServo]) -> list[bytes]:
    """One packet made by all: each servo waits for the block before its own, so one that is silent cuts it short."""
    if len(parameters) < 5:
        return []
    address, size = _word(parameters, 0), _word(parameters, 2)
    identifiers = list(parameters[4:])
    blocks: list[tuple[int, int, bytes]] = []
    for key in identifiers:
        error, data = servos[key].read(address, size) if key in servos else (0, bytes(size))
        blocks.append((key, error, data))
    packet = encode_fast_status(blocks)
    heard = next((place for place, key in enumerate(identifiers) if key not in servos), len(identifiers))
    return [packet[: 8 + heard * (size + 4)]] if heard else []


def _sync_write(parameters: bytes, servos: dict[int, EmulatedServo]) -> list[bytes]:
    if len(parameters) < 4:
        return []
    address, size = _word(parameters, 0), _word(parameters, 2)
    for start in range(4, len(parameters) - size, size + 1):
        servo = servos.get(parameters[start])
        if servo is not None:
            servo.write(address, parameters[start + 1 : start + 1 + size])
    return []


def _bulk_read(parameters: bytes, servos: dict[int, EmulatedServo]) -> list[bytes]:
    requests = [parameters[start : start + 5] for start in range(0, len(parameters) - 4, 5)]
    return [
        encode_status(request[0], *servos[request[0]].read(_word(request, 1), _word(request, 3)))
        for request in requests
        if request[0] in servos
    ]


def _bulk_write(parameters: bytes, servos: dict[int, EmulatedServo]) -> list[bytes]:
    start = 0
    while start + 5 <= len(parameters):
        size = _word(parameters, start + 3)
        servo, data = servos.get(parameters[start]), parameters[start + 5 : start + 5 + size]
        if servo is not None and len(data) == size:
            servo.write(_word(parameters, start + 1), data)
        start += 5 + size
    return []


_MULTIPLE: dict[int, Callable[[bytes, dict[int, EmulatedServo]], list[bytes]]] = {
    Instruction.SYNC_READ: _sync_read,
    Instruction.FAST_SYNC_READ: _fast_sync_read,
    Instruction.SYNC_WRITE: _sync_write,
    Instruction.BULK_READ: _bulk_read,
    Instruction.BULK_WRITE: _bulk_write,
}


def _word(data: bytes, start: int) -> int:
    return int.from_bytes(data[start : start + 2], "little")
