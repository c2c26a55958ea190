"""Read an episode log, also a truncated or damaged one: every record that is whole and passes its CRC, and no other.

The file is walked from the front, one length-prefixed MCAP record after the other. The walk ends at the footer
(complete), at the end of the data (the writer was killed), or at the first record that is damaged; what comes before
is kept in each case, and `LogContents.problem` says what was found.
"""

from __future__ import annotations

import fcntl
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, DataEnd, McapRecord, Message, Metadata
from mcap.stream_reader import breakup_chunk
from mcap.writer import MCAP0_MAGIC

from deploy.log_format import (
    EPISODE_METADATA,
    INVALID_STEP_TOPIC,
    STATISTICS_METADATA,
    STEP_TOPIC,
    decode_step,
    unpack_metadata,
)
from mpo_robot.episode import STEP_SCHEMA_VERSION, StepRecord
from mpo_robot.errors import ConfigError, EpisodeError
from mpo_robot.specs import PolicySpec

_PREFIX = struct.Struct("<BQ")  # opcode, length of the content


class LogContents(NamedTuple):
    """What `read_log` found.

    Attributes:
        records: Steps in file order.
        spec: Interface the episode was recorded with.
        metadata: `episode_id`, `robot`, `info` (with `randomization` if simulated), `spec_hash`, `schema_version`,
            `monotonic_ns` and `wall_time_ns` (clock anchor), and `statistics` if the episode was closed.
        complete: The writer closed the file and all of it was read.
        recovered_bytes: Length of the readable part, from the start of the file.
        total_bytes: Length of the file.
        problem: Why `complete` is False, as a sentence; empty otherwise.
        invalid_records: Steps kept apart by the control loop because a sensor reading at either end was bad.
    """

    records: tuple[StepRecord, ...]
    spec: PolicySpec
    metadata: dict[str, Any]
    complete: bool
    recovered_bytes: int
    total_bytes: int
    problem: str
    invalid_records: tuple[StepRecord, ...]


class _DamageError(Exception):
    """The walk cannot go on; the text says why."""


@dataclass
class _Walk:
    """Everything gathered so far."""

    description: dict[str, Any] | None = None
    statistics: dict[str, Any] | None = None
    topics: dict[int, str] = field(default_factory=dict)
    steps: dict[str, list[StepRecord]] = field(default_factory=lambda: {STEP_TOPIC: [], INVALID_STEP_TOPIC: []})
    position: int = 0
    complete: bool = False


def read_log(path: str | Path) -> LogContents:
    """Records, spec and metadata of an episode log, recovered as far as possible.

    Raises:
        EpisodeError: not readable, not an MCAP file, not an episode log of this program's schema version, or cut off
            before the description of the episode was complete (no step can precede it).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EpisodeError(f"cannot read {path}: {error.strerror}") from error
    return parse_log(data, str(path))


def parse_log(data: bytes, name: str) -> LogContents:
    """`read_log` of bytes; `name` is for messages."""
    if not data.startswith(MCAP0_MAGIC):
        raise EpisodeError(f"{name} is not an MCAP file")
    walk, problem = _Walk(), ""
    try:
        _walk(data, walk)
    except _DamageError as damage:
        problem = f"{damage} at byte {walk.position} of {len(data)}"
    if walk.description is None:
        raise EpisodeError(f"{name} holds no episode description" + (f": {problem}" if problem else ""))
    spec = _spec_of(walk.description, name)
    metadata = {key: value for key, value in walk.description.items() if key != "spec"}
    if walk.statistics is not None:
        metadata["statistics"] = walk.statistics
    return LogContents(
        records=tuple(walk.steps[STEP_TOPIC]),
        spec=spec,
        metadata=metadata,
        complete=walk.complete,
        recovered_bytes=walk.position,
        total_bytes=len(data),
        problem=problem,
        invalid_records=tuple(walk.steps[INVALID_STEP_TOPIC]),
    )


def is_being_written(path: str | Path) -> bool:
    """True while an `EpisodeLogWriter` of a live process holds the file; False for a closed or crashed one.

    Raises:
        EpisodeError: the file cannot be opened.
    """
    try:
        with Path(path).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise EpisodeError(f"cannot read {path}: {error.strerror}") from error
    return False


def _walk(data: bytes, walk: _Walk) -> None:
    walk.position = len(MCAP0_MAGIC)
    while True:
        if walk.position == len(data):
            raise _DamageError("the file has no end record (its writer was stopped)")
        if walk.position + _PREFIX.size > len(data):
            raise _DamageError("the last record is cut off")
        opcode, length = _PREFIX.unpack_from(data, walk.position)
        if opcode not in Opcode._value2member_map_:
            raise _DamageError(f"unknown record type {opcode}")
        end = walk.position + _PREFIX.size + length
        if end > len(data):
            raise _DamageError("the last record is cut off")
        content = data[walk.position + _PREFIX.size : end]
        if opcode == Opcode.FOOTER:
            if data[end:] != MCAP0_MAGIC:
                raise _DamageError("the end marker is cut off or followed by other data")
            walk.position, walk.complete = len(data), True
            return
        try:
            _take(opcode, content, data, walk)
        except Exception as error:  # whatever a parser makes of damaged bytes
            raise _DamageError(f"damaged {Opcode(opcode).name.lower()} record ({error})") from error
        walk.position = end


def _take(opcode: int, content: bytes, data: bytes, walk: _Walk) -> None:
    """Use one whole record. Raises one of several exceptions if it is damaged; then nothing of it was used."""
    stream = ReadDataStream(BytesIO(content))
    if opcode == Opcode.METADATA:
        record = Metadata.read(stream)
        if record.name == EPISODE_METADATA:
            walk.description = unpack_metadata(record.metadata)
        elif record.name == STATISTICS_METADATA:
            walk.statistics = unpack_metadata(record.metadata)
    elif opcode == Opcode.CHUNK:
        _take_messages(_chunk_records(Chunk.read(stream)), walk)
    elif opcode == Opcode.CHANNEL:
        _take_messages([Channel.read(stream)], walk)
    elif opcode == Opcode.MESSAGE:
        raise ValueError("message outside a chunk, so without a checksum")
    elif opcode == Opcode.DATA_END:
        expected = DataEnd.read(stream).data_section_crc
        if expected not in (0, zlib.crc32(data[: walk.position])):
            raise ValueError("the data section fails its checksum; every step passed its own")


def _chunk_records(chunk: Chunk) -> list[McapRecord]:
    records = breakup_chunk(chunk, validate_crc=True)
    if chunk.uncompressed_crc == 0 and records:
        raise ValueError("chunk without a checksum")
    return records


def _take_messages(records: list[McapRecord], walk: _Walk) -> None:
    topics = {**walk.topics, **{item.id: item.topic for item in records if isinstance(item, Channel)}}
    decoded = list(_decoded(records, topics))
    walk.topics = topics
    for topic, step in decoded:
        walk.steps[topic].append(step)


def _decoded(records: list[McapRecord], topics: dict[int, str]) -> Iterator[tuple[str, StepRecord]]:
    for record in records:
        if isinstance(record, Message) and topics[record.channel_id] in (STEP_TOPIC, INVALID_STEP_TOPIC):
            yield topics[record.channel_id], decode_step(record.data)


def _spec_of(description: dict[str, Any], name: str) -> PolicySpec:
    version = description.get("schema_version")
    if version != STEP_SCHEMA_VERSION:
        raise EpisodeError(f"{name} has step schema version {version}, this program reads {STEP_SCHEMA_VERSION}")
    try:
        spec = PolicySpec.from_dict(description["spec"])
    except (ConfigError, KeyError) as error:
        raise EpisodeError(f"{name} holds a malformed policy spec: {error}") from error
    if spec.spec_hash != description.get("spec_hash"):
        raise EpisodeError(f"{name}: the policy spec does not match its own hash")
    return spec
