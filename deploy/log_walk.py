"""Walk the records of an episode log, damaged or not: gather what passes its checksum, skip the rest, say what it was.

The file is walked from the front, one length-prefixed MCAP record after the other. Behind a damaged record the walk
goes on at the next record that proves itself intact by its own checksum; a length that may be damaged is not trusted.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import (
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    McapRecord,
    Message,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)
from mcap.stream_reader import breakup_chunk
from mcap.writer import MCAP0_MAGIC

from deploy.log_format import EPISODE_METADATA, STATISTICS_METADATA, unpack_metadata

_PREFIX = struct.Struct("<BQ")  # opcode, length of the content
_FOOTER_CONTENT = struct.Struct("<QQI")
# Opcode and length of a record that can prove itself, overlapping matches included; no record is as long as 4 GiB.
_CANDIDATE = re.compile(rb"(?=[%c%c].{4}\x00{4})" % (Opcode.CHUNK, Opcode.METADATA), re.DOTALL)
# What a writer of episode logs puts before the end of the data, and behind it. Anything else at that place is a record
# whose type is damaged: to step over it would lose its steps without a word.
_DATA_READERS: dict[int, Callable[[ReadDataStream], McapRecord]] = {
    Opcode.HEADER: Header.read,
    Opcode.CHUNK: Chunk.read,
    Opcode.MESSAGE_INDEX: MessageIndex.read,
    Opcode.METADATA: Metadata.read,
    Opcode.DATA_END: DataEnd.read,
}
_SUMMARY_READERS: dict[int, Callable[[ReadDataStream], McapRecord]] = {
    Opcode.SCHEMA: Schema.read,
    Opcode.CHANNEL: Channel.read,
    Opcode.CHUNK_INDEX: ChunkIndex.read,
    Opcode.METADATA_INDEX: MetadataIndex.read,
    Opcode.STATISTICS: Statistics.read,
    Opcode.SUMMARY_OFFSET: SummaryOffset.read,
}


class DamageError(Exception):
    """A record is damaged or cut off; the text says how."""


@dataclass
class LogWalk:
    """What `walk_log` gathered.

    Attributes:
        description: Content of the first metadata record, None if there is no intact one.
        statistics: Content of the last metadata record, None if there is no intact one.
        channels: By channel id.
        schemas: By schema id.
        chunks: Messages of each intact chunk with the chunk's position, in file order, each message once.
        problems: What is damaged or missing, as sentences in file order.
        closed: The end of the file is as its writer leaves it.
        skipped_bytes: Length of what could not be read.
    """

    description: dict[str, Any] | None = None
    statistics: dict[str, Any] | None = None
    channels: dict[int, Channel] = field(default_factory=dict[int, Channel])
    schemas: dict[int, Schema] = field(default_factory=dict[int, Schema])
    chunks: list[tuple[int, list[Message]]] = field(default_factory=list[tuple[int, list[Message]]])
    problems: list[str] = field(default_factory=list[str])
    closed: bool = False
    skipped_bytes: int = 0


def walk_log(data: bytes) -> LogWalk:
    """Gather everything intact of a log that starts with the MCAP magic."""
    walk = LogWalk()
    position = proven = len(MCAP0_MAGIC)  # all before `proven` is what it seems, or was skipped
    summary: LogWalk | None = None  # the channels and schemas that the end of the file repeats
    while not walk.closed:
        try:
            opcode, content, end = _record_at(data, position)
            if opcode == Opcode.FOOTER and summary is not None:
                _take_footer(content, data, position, end, walk, summary)
            elif summary is not None:
                _take_descriptions([_parse(_SUMMARY_READERS, opcode, content)], summary)
            else:
                _take(_parse(_DATA_READERS, opcode, content), data, position, walk)
                summary = LogWalk() if opcode == Opcode.DATA_END else None
                proven = end
            position = end
        except Exception as error:  # whatever a parser makes of damaged bytes
            walk.problems.append(f"{_text_of(error, data, position)} at byte {position} of {len(data)}")
            found = _find_proven(data, proven)
            if found is None:
                walk.skipped_bytes += len(data) - position
                break
            # A damaged length may have led past intact records: then the search comes back to before `position`.
            walk.skipped_bytes += found - (position if found >= position else proven)
            position = found
            summary = LogWalk() if data[found] == Opcode.FOOTER else None
    _drop_repeats(walk)
    return walk


def _drop_repeats(walk: LogWalk) -> None:
    """Leave out messages that are there again bit for bit, as where bytes of the file were copied.

    A copy may stand before its original, so the chunks are then put in the order of their numbers. Different messages
    of one number are both kept: which of them is right, nothing here can tell.
    """
    seen: set[tuple[int, int, bytes]] = set()
    repeats, chunks = 0, list[tuple[int, list[Message]]]()
    for position, messages in walk.chunks:
        kept: list[Message] = []
        for message in messages:
            key = message.channel_id, message.sequence, message.data
            if key in seen:
                repeats += 1
            else:
                seen.add(key)
                kept.append(message)
        chunks.append((position, kept))
    if repeats:
        walk.problems.insert(0, f"messages that are there more than once: {repeats} repeats were left out")
        chunks = sorted((chunk for chunk in chunks if chunk[1]), key=lambda chunk: chunk[1][0].sequence)
    walk.chunks = chunks


def _record_at(data: bytes, position: int) -> tuple[int, bytes, int]:
    """Opcode, content and end of the record at a position."""
    if position == len(data):
        raise DamageError("the file has no end record (its writer was stopped)")
    if position + _PREFIX.size > len(data):
        raise DamageError("the last record is cut off")
    opcode, length = _PREFIX.unpack_from(data, position)
    if opcode not in Opcode._value2member_map_:
        raise DamageError(f"unknown record type {opcode}")
    start = position + _PREFIX.size
    if start + length > len(data):
        raise DamageError("the last record is cut off, or its length is damaged")
    return opcode, data[start : start + length], start + length


def _take(record: McapRecord, data: bytes, position: int, walk: LogWalk) -> None:
    """Use one whole record. Raises one of several exceptions if it is damaged; then nothing of it was used."""
    if isinstance(record, Metadata):
        if record.name == EPISODE_METADATA:
            walk.description = unpack_metadata(record.metadata)
        elif record.name == STATISTICS_METADATA:
            walk.statistics = unpack_metadata(record.metadata)
    elif isinstance(record, Chunk):
        records = _chunk_records(record)
        _take_descriptions(records, walk)
        walk.chunks.append((position, [item for item in records if isinstance(item, Message)]))
    elif isinstance(record, DataEnd):
        intact = record.data_section_crc in (0, zlib.crc32(data[:position]))
        if not intact and not walk.problems:
            walk.problems.append("the data section fails its checksum; every step that was read passed its own")


def _take_descriptions(records: list[McapRecord], walk: LogWalk) -> None:
    walk.channels.update({item.id: item for item in records if isinstance(item, Channel)})
    walk.schemas.update({item.id: item for item in records if isinstance(item, Schema)})


def _parse(readers: dict[int, Callable[[ReadDataStream], McapRecord]], opcode: int, content: bytes) -> McapRecord:
    if opcode not in readers:
        raise DamageError(f"a {Opcode(opcode).name.lower()} record, which has no place there")
    stream = ReadDataStream(BytesIO(content))
    record = readers[opcode](stream)
    if stream.count != len(content):
        raise DamageError(f"length {len(content)} of the record should be {stream.count}")
    return record


def _chunk_records(chunk: Chunk) -> list[McapRecord]:
    records = breakup_chunk(chunk, validate_crc=True)
    if chunk.uncompressed_crc == 0 and records:
        raise DamageError("chunk without a checksum")
    return records


def _take_footer(content: bytes, data: bytes, position: int, end: int, walk: LogWalk, summary: LogWalk) -> None:
    if data[end:] != MCAP0_MAGIC:
        raise DamageError("the end marker is cut off or followed by other data")
    footer = Footer.read(ReadDataStream(BytesIO(content)))
    section = data[footer.summary_start : position + _PREFIX.size + _FOOTER_CONTENT.size - 4]
    if footer.summary_start and footer.summary_crc == zlib.crc32(section):
        # Only needed if the chunk with the channels is damaged; the summary repeats them.
        walk.channels = {**summary.channels, **walk.channels}
        walk.schemas = {**summary.schemas, **walk.schemas}
    elif not walk.problems:
        walk.problems.append("the index at the end fails its checksum; no step depends on it")
    walk.closed = True


def _find_proven(data: bytes, start: int) -> int | None:
    """Position of the next chunk or metadata record that passes its checksum, or of the footer; None if there is none.

    Text cannot look like one: JSON holds no zero byte.
    """
    for match in _CANDIDATE.finditer(data, start):
        try:
            opcode, content, _ = _record_at(data, match.start())
            record = _parse(_DATA_READERS, opcode, content)
            if isinstance(record, Chunk):
                _chunk_records(record)
            elif isinstance(record, Metadata):
                unpack_metadata(record.metadata)
        except Exception:  # not a record, or a damaged one
            continue
        return match.start()
    prefix = _PREFIX.pack(Opcode.FOOTER, _FOOTER_CONTENT.size)
    footer = len(data) - len(MCAP0_MAGIC) - _FOOTER_CONTENT.size - len(prefix)
    whole = footer >= start and data.startswith(prefix, footer) and data.endswith(MCAP0_MAGIC)
    return footer if whole else None


def _text_of(error: Exception, data: bytes, position: int) -> str:
    if position + _PREFIX.size <= len(data) and data[position] in Opcode._value2member_map_:
        name = Opcode(data[position]).name.lower()
        if not isinstance(error, DamageError) or "checksum" in str(error) or "length" in str(error):
            return f"damaged {name} record ({error})"
    return str(error)
