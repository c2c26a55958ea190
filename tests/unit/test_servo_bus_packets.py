"""Packets against the examples in the vendor's public description of the protocol, and against damage."""

import pytest

from sim.servo_bus.packets import (
    BROADCAST_ID,
    HEADER,
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

# Examples of the protocol's manual: id, instruction, parameters, and the packet as printed there.
INSTRUCTIONS = [
    (1, Instruction.PING, "", "FFFFFD0001030001194E"),
    (BROADCAST_ID, Instruction.PING, "", "FFFFFD00FE0300013142"),
    (1, Instruction.READ, "84000400", "FFFFFD000107000284000400" + "1D15"),
    (1, Instruction.WRITE, "740000020000", "FFFFFD0001090003740000020000CA89"),
    (1, Instruction.REG_WRITE, "6800C8000000", "FFFFFD00010900046800C8000000AE8E"),
    (1, Instruction.ACTION, "", "FFFFFD000103000502CE"),
    (1, Instruction.REBOOT, "", "FFFFFD00010300082F4E"),
    (BROADCAST_ID, Instruction.SYNC_READ, "840004000102", "FFFFFD00FE090082840004000102CEFA"),
    (
        BROADCAST_ID,
        Instruction.SYNC_WRITE,
        "74000400" + "0196000000" + "02AA000000",
        "FFFFFD00FE11008374000400" + "0196000000" + "02AA000000" + "8287",
    ),
    (BROADCAST_ID, Instruction.BULK_READ, "01900002000292000100", "FFFFFD00FE0D009201900002000292000100" + "1A05"),
    (
        BROADCAST_ID,
        Instruction.BULK_WRITE,
        "0120000200A000" + "021F00010050",
        "FFFFFD00FE1000930120000200A000021F00010050" + "B768",
    ),
]
STATUSES = [
    (1, "060426", "FFFFFD000107005500060426655D"),
    (2, "060426", "FFFFFD0002070055000604266F6D"),
    (1, "A6000000", "FFFFFD000108005500A60000008CC0"),
    (2, "1F080000", "FFFFFD0002080055001F080000BABE"),
    (1, "", "FFFFFD000104005500A10C"),
    (1, "7700", "FFFFFD0001060055007700C369"),
    (2, "24", "FFFFFD000205005500248BA9"),
]


@pytest.mark.parametrize(("identifier", "instruction", "parameters", "packet"), INSTRUCTIONS)
def test_instruction_packets_of_the_manual(identifier, instruction, parameters, packet):
    data = bytes.fromhex(parameters)
    assert encode(identifier, instruction, data).hex() == packet.lower()
    assert Parser().feed(bytes.fromhex(packet)) == [Packet(identifier, instruction, data)]


@pytest.mark.parametrize(("identifier", "data", "packet"), STATUSES)
def test_status_packets_of_the_manual(identifier, data, packet):
    assert encode_status(identifier, 0, bytes.fromhex(data)).hex() == packet.lower()


def test_crc_continues_and_detects_every_single_bit_error():
    packet = bytes.fromhex("FFFFFD00010700028400040000")
    assert crc16(packet[5:], crc16(packet[:5])) == crc16(packet)
    for position in range(8 * len(packet)):
        spoiled = bytearray(packet)
        spoiled[position // 8] ^= 1 << position % 8
        assert crc16(bytes(spoiled)) != crc16(packet)


@pytest.mark.parametrize(
    ("plain", "stuffed"),
    [
        ("FFFFFD", "FFFFFDFD"),
        ("FFFFFFFD", "FFFFFFFDFD"),
        ("FFFFFDFD", "FFFFFDFDFD"),
        ("FFFFFDFFFFFD", "FFFFFDFDFFFFFDFD"),
        ("FFFD", "FFFD"),
    ],
)
def test_stuffing(plain, stuffed):
    assert stuff(bytes.fromhex(plain)).hex() == stuffed.lower()
    assert unstuff(bytes.fromhex(stuffed)).hex() == plain.lower()


def test_parser_finds_packets_in_pieces_and_in_garbage():
    first, second = encode(1, Instruction.PING), encode(2, Instruction.WRITE, b"\x40\x00\x01")
    stream = b"\xff\xff\x00" + first + b"\xff\xff\xfd" + second + b"\xfd\x00"
    parser, found = Parser(), []
    for byte in stream:
        found += parser.feed(bytes([byte]))
    assert found == [Packet(1, 1, b""), Packet(2, 3, b"\x40\x00\x01")]
    assert parser.damaged == 0


def test_a_damaged_packet_does_not_take_the_next_one_with_it():
    spoiled = bytearray(encode(1, Instruction.WRITE, b"\x40\x00\x01"))
    spoiled[9] ^= 4
    good = encode(2, Instruction.PING)
    parser = Parser()
    assert parser.feed(bytes(spoiled) + good) == [Packet(2, 1, b"")]
    assert parser.damaged == 1


def test_a_length_that_is_too_long_is_passed_over_after_a_pause():
    unfinished = HEADER + b"\x01\xff\x00\x03"
    parser = Parser()
    assert parser.feed(unfinished + encode(2, Instruction.PING)) == []
    parser.forget()
    assert parser.feed(encode(3, Instruction.PING)) == [Packet(3, 1, b"")]
    assert parser.feed(HEADER + b"\x01\xff\xff\x03" + encode(4, Instruction.PING)) == [Packet(4, 1, b"")]


def test_fast_status_is_one_packet_whose_blocks_carry_running_checks():
    packet = encode_fast_status([(3, 0, b"\xa6\0\0\0"), (7, 0x80, b"\x1f\x08\0\0"), (4, 0, b"\xff\x03\0\0")])
    assert packet[:8].hex() == "fffffd00fe190055"  # the length in the manual's example of three servos is 25, too
    for index in (1, 2, 3):
        end = 8 + 8 * index
        assert crc16(packet[: end - 2]) == int.from_bytes(packet[end - 2 : end], "little")
    assert packet[16:18] == b"\x80\x07"
