"""Damage at every byte of a small log, and every record type in place of every other: nothing is lost in silence."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from deploy.log_reader import LogContents, parse_log
from deploy.log_writer import EpisodeLogWriter
from mpo_robot.errors import EpisodeError
from tests.support.onnx_files import small_spec
from tests.support.records import identity, make_records
from tests.support.robot_process import wait_until

SPEC = small_spec(observation_size=1, action_size=1)
COUNT = 3
MAGIC = 8
CHUNK, DATA_END = 0x06, 0x0F
OPCODES = {*range(0x12), 0x16, 0x26, 0x46, 0x7F, 0x80, 0x86, 0xFF}  # all that exist and some that do not


@pytest.fixture(scope="module")
def log_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small closed log, one chunk per record."""
    writer = EpisodeLogWriter(tmp_path_factory.mktemp("log"), SPEC, "test")
    for index, record in enumerate(make_records(COUNT, SPEC)):
        writer.append(record)
        wait_until(lambda index=index: b'"step_index":%d,' % index in writer.path.read_bytes())
    writer.close()
    return writer.path.read_bytes()


def records_of(data: bytes) -> list[tuple[int, int, int]]:
    """Type, start and end of each record of an intact log."""
    found, position = [], MAGIC
    while position < len(data) - MAGIC:
        opcode, length = struct.unpack_from("<BQ", data, position)
        found.append((opcode, position, position + 9 + length))
        position += 9 + length
    return found


def read(data: bytes) -> LogContents | None:
    try:
        return parse_log(data, "damaged")
    except EpisodeError:
        return None


@pytest.mark.parametrize(
    "stride", [7, pytest.param(1, marks=(pytest.mark.slow, pytest.mark.timeout(600)))], ids=["every 7th", "every byte"]
)
def test_damaged_byte_is_noticed_and_costs_one_step_at_most(log_bytes: bytes, stride: int) -> None:
    rng = np.random.default_rng(0)
    expected = [identity(record) for record in make_records(COUNT, SPEC)]
    chunks = [(start, end) for opcode, start, end in records_of(log_bytes) if opcode == CHUNK]
    described = chunks[0][0]
    for position in range(0, len(log_bytes), stride):
        damaged = bytearray(log_bytes)
        damaged[position] ^= 1 << int(rng.integers(8))
        contents = read(bytes(damaged))
        if contents is None:
            assert position < described, f"byte {position}: refused although the description is intact"
            continue
        found = [identity(record) for record in contents.records]
        assert found == [item for item in expected if item in found], f"byte {position}: invented or changed"
        assert not contents.complete, f"byte {position}: damage that nobody noticed"
        assert contents.problem
        hit = [end - start for start, end in chunks if start <= position < end]
        assert len(found) >= COUNT - len(hit), f"byte {position}"
        if len(found) < COUNT:  # not so for the times in the head of a chunk, which no step depends on
            assert contents.total_bytes - contents.recovered_bytes >= hit[0], f"byte {position}: not counted"


@pytest.mark.parametrize("closed", [True, False])
def test_record_whose_type_is_damaged_is_skipped_and_counted(log_bytes: bytes, closed: bool) -> None:
    layout = records_of(log_bytes)
    data_end = next(start for opcode, start, _ in layout if opcode == DATA_END)
    data = log_bytes if closed else log_bytes[:data_end]
    for number, (start, end) in enumerate((start, end) for opcode, start, end in layout if opcode == CHUNK):
        for opcode in OPCODES - {CHUNK}:
            damaged = bytearray(data)
            damaged[start] = opcode
            contents = read(bytes(damaged))
            assert contents is not None
            kept = [index for index in range(COUNT) if index != number]
            if number == 0 and not closed:
                kept = []  # the first chunk also says what the channels are, and there is no summary to say it again
            assert [record.step_index for record in contents.records] == kept, f"chunk {number} as type {opcode}"
            assert not contents.complete
            assert contents.problem
            assert contents.total_bytes - contents.recovered_bytes >= end - start, f"chunk {number} as type {opcode}"


def test_damaged_end_of_the_data_costs_nothing(log_bytes: bytes) -> None:
    start = next(start for opcode, start, _ in records_of(log_bytes) if opcode == DATA_END)
    for opcode in OPCODES - {DATA_END}:
        damaged = bytearray(log_bytes)
        damaged[start] = opcode
        contents = read(bytes(damaged))
        assert contents is not None
        assert len(contents.records) == COUNT
        assert not contents.complete


def test_damaged_index_is_noticed(log_bytes: bytes, tmp_path: Path) -> None:
    start = next(start for opcode, start, _ in records_of(log_bytes) if opcode == DATA_END) + 13
    damaged = bytearray(log_bytes)
    damaged[start + 40] ^= 1
    contents = read(bytes(damaged))
    assert contents is not None
    assert len(contents.records) == COUNT
    assert "the index at the end fails its checksum" in contents.problem
