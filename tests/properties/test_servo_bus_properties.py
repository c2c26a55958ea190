"""The vendor's library against the emulator's own reading of the protocol, on packets that hypothesis makes."""

from importlib.metadata import version

import dynamixel_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.dynamixel.sdk import DeadlinePort, PacketHandler
from sim.servo_bus.bus import ServoBus
from sim.servo_bus.packets import (
    BROADCAST_ID,
    Instruction,
    Packet,
    Parser,
    crc16,
    encode,
    encode_fast_status,
    encode_status,
    stuff,
    unstuff,
)
from sim.servo_bus.servo import EmulatedServo

IDS = st.integers(0, 252)
# Bytes of which packets are made, in a mixture that often holds headers and what looks like stuffing.
DATA = st.lists(st.sampled_from([b"\xff", b"\xfd", b"\xff\xff\xfd", b"\x00"]) | st.binary(max_size=3), max_size=20).map(
    b"".join
)
# (id, error, data) of several servos, all data of one length.
BLOCKS = st.integers(1, 24).flatmap(
    lambda size: st.lists(st.tuples(IDS, IDS, st.binary(min_size=size, max_size=size)), min_size=1, max_size=8)
)


class Port(DeadlinePort):
    """Keeps what is written; reads from given bytes."""

    def __init__(self, incoming=b""):
        super().__init__("none")
        self.written, self.incoming, self.time = b"", incoming, 0.0
        self.timeout_s = 1.0

    def clearPort(self):
        pass

    def writePort(self, packet):
        self.written += bytes(packet)
        return len(packet)

    def readPort(self, length):
        data, self.incoming = self.incoming[:length], self.incoming[length:]
        if not data:
            self.time += 1e6
        return data

    def getCurrentTime(self):
        return self.time


def sent(call):
    port = Port()
    call(PacketHandler(), port)
    return port.written


@given(DATA)
def test_stuffing_has_an_inverse_and_leaves_no_header(data):
    assert unstuff(stuff(data)) == data
    assert b"\xff\xff\xfd\x00" not in stuff(data)


@given(IDS, st.integers(0, 60_000), DATA.filter(bool))
def test_the_emulator_reads_what_the_library_writes(identifier, address, data):
    written = sent(lambda handler, port: handler.writeTxOnly(port, identifier, address, len(data), list(data)))
    assert Parser().feed(written) == [Packet(identifier, Instruction.WRITE, address.to_bytes(2, "little") + data)]
    assert written == encode(identifier, Instruction.WRITE, address.to_bytes(2, "little") + data)


@given(st.lists(IDS, min_size=1, max_size=20, unique=True), st.integers(0, 255), st.integers(1, 100), st.booleans())
def test_the_emulator_reads_the_librarys_sync_reads(identifiers, address, size, fast):
    written = sent(lambda handler, port: handler.syncReadTx(port, address, size, identifiers, len(identifiers), fast))
    kind = Instruction.FAST_SYNC_READ if fast else Instruction.SYNC_READ
    head = address.to_bytes(2, "little") + size.to_bytes(2, "little")
    assert Parser().feed(written) == [Packet(BROADCAST_ID, kind, head + bytes(identifiers))]


@given(st.dictionaries(IDS, st.binary(min_size=4, max_size=4), min_size=1, max_size=16))
def test_the_emulator_reads_the_librarys_sync_writes(goals):
    parameters = [byte for key, data in goals.items() for byte in (key, *data)]
    written = sent(lambda handler, port: handler.syncWriteTxOnly(port, 116, 4, parameters, len(parameters)))
    assert Parser().feed(written) == [
        Packet(BROADCAST_ID, Instruction.SYNC_WRITE, b"\x74\x00\x04\x00" + bytes(parameters))
    ]


@given(IDS, st.integers(0, 255), DATA, st.binary(max_size=4).filter(lambda data: b"\xff" not in data))
def test_the_library_reads_what_the_emulator_writes(identifier, error, data, garbage):
    packet, result = PacketHandler().rxPacket(Port(garbage + encode_status(identifier, error, data)), False)
    assert result == dynamixel_sdk.COMM_SUCCESS
    assert (packet[4], packet[8], bytes(packet[9:-2])) == (identifier, error, data)


@given(BLOCKS)
def test_the_library_reads_the_emulators_fast_answers(blocks):
    packet, result = PacketHandler().rxPacket(Port(encode_fast_status(blocks)), True)
    assert result == dynamixel_sdk.COMM_SUCCESS
    length = len(blocks[0][2]) + 4
    read = [packet[start : start + length] for start in range(8, len(packet), length)]
    assert [(block[1], block[0], bytes(block[2:-2])) for block in read] == blocks


@given(DATA, st.integers(0, 10_000))
def test_a_flipped_bit_never_passes(data, position):
    packet = bytearray(encode_status(1, 0, data))
    packet[position % len(packet)] ^= 1 << position % 8
    _, result = PacketHandler().rxPacket(Port(bytes(packet)), False)
    assert result != dynamixel_sdk.COMM_SUCCESS
    assert Parser().feed(bytes(packet)) == []


@given(st.binary(max_size=300))
def test_checks_agree(data):
    assert crc16(data) == PacketHandler().updateCRC(0, list(data), len(data))


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_no_bytes_stop_parser_and_bus(pieces):
    bus, parser = ServoBus([EmulatedServo(1)]), Parser()
    for piece in pieces:
        for packet in parser.feed(piece):
            bus.handle(packet, 0.0)
    parser.forget()
    assert parser.feed(encode(1, Instruction.PING)) == [Packet(1, Instruction.PING, b"")]


@given(IDS, st.integers(0, 255), DATA)
def test_no_instruction_stops_the_bus(identifier, instruction, parameters):
    bus = ServoBus([EmulatedServo(1), EmulatedServo(2)])
    for target in (identifier, 1, BROADCAST_ID):
        for answer in bus.handle(Packet(target, instruction, parameters), 0.0):
            assert Parser().feed(answer) or instruction == Instruction.FAST_SYNC_READ


@pytest.mark.skipif(version("dynamixel-sdk") != "4.1.0", reason="what 4.1.0 gets wrong")
def test_the_library_alone_stuffs_wrongly():
    handler, data = dynamixel_sdk.PacketHandler(2.0), bytes.fromhex("fffffd0102fffdfd03")
    port = Port()
    handler.writeTxOnly(port, 1, 116, len(data), list(data))
    assert Parser().feed(port.written) == [Packet(1, Instruction.WRITE, b"\x74\x00" + data)]
    assert port.written != encode(1, Instruction.WRITE, b"\x74\x00" + data)  # not stuffed
    packet, _ = handler.rxPacket(Port(encode_status(1, 0, data)), False)
    assert bytes(packet[9:-2]) != data
