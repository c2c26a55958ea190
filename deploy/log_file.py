"""`LogFile`: one MCAP file of an episode log as it is being written, on a disk that may be slow, full or broken."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mcap.writer import CompressionType, Writer

from deploy.log_format import EPISODE_METADATA, LOG_PROFILE, STATISTICS_METADATA, pack_metadata
from mpo_robot.episode import STEP_SCHEMA_VERSION
from mpo_robot.errors import EpisodeError

# What MCAP adds, about: to a message with its entry in the index, to a chunk, to the description of a topic.
_MESSAGE_BYTES, _CHUNK_BYTES, _TOPIC_BYTES = 47, 96, 256


class Topic(NamedTuple):
    """One channel of JSON messages."""

    name: str
    schema_name: str
    schema: bytes


class Disk:
    """What a log asks of the operating system. Tests put slow, full and broken disks in its place."""

    def create(self, path: Path) -> int:
        """Descriptor of a new file; an existing one is an error."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of the data; returns how many bytes."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Force what was written to the disk."""
        os.fsync(descriptor)


class LogFile:
    """Builds the file in memory and hands it to the disk whenever it is flushed.

    What the disk does not take stays in memory and comes first the next time, so that the file is never left with a
    hole: it is whole again as soon as the disk is. Used by one thread.

    Attributes:
        path: Of the file.
    """

    def __init__(self, path: Path, topics: Sequence[Topic], metadata: Mapping[str, str], disk: Disk) -> None:
        """Create and lock the file.

        Raises:
            EpisodeError: it exists or cannot be created.
        """
        self.path = path
        self._disk = disk
        self._descriptor = _create(path, disk)
        self._pending = _Pending()
        self._open_chunk = 0
        self._has_messages = False
        self._writer = Writer(
            self._pending,  # type: ignore[arg-type] (all it needs of a stream)
            chunk_size=1 << 40,  # a chunk ends where we flush
            compression=CompressionType.NONE,
            enable_crcs=True,
            enable_data_crcs=True,
        )
        self._writer.start(profile=LOG_PROFILE, library=f"mpo_robot log schema {STEP_SCHEMA_VERSION}")
        schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        for topic in topics:
            if topic.schema_name not in schemas:
                schemas[topic.schema_name] = self._writer.register_schema(topic.schema_name, "jsonschema", topic.schema)
            channel = self._writer.register_channel(topic.name, "json", schemas[topic.schema_name], dict(metadata))
            self._channels[topic.name] = channel
            self._open_chunk += len(topic.schema) + _TOPIC_BYTES

    @property
    def size(self) -> int:
        """Bytes so far, those in memory included; a little more than less."""
        return self._pending.total + self._open_chunk + _CHUNK_BYTES

    def describe(self, content: Mapping[str, Any]) -> None:
        """Add the description of the episode, in memory."""
        self._writer.add_metadata(EPISODE_METADATA, pack_metadata(content))

    def add(self, topic: str, data: bytes, time_ns: int, sequence: int) -> None:
        """Add a message to the open chunk, in memory.

        Raises:
            ValueError: MCAP cannot express the time or the number; the chunk stays as it was.
        """
        if not (0 <= time_ns < 1 << 64 and 0 <= sequence < 1 << 32):
            raise ValueError(f"time {time_ns} ns or step {sequence} does not fit into an MCAP message")
        self._writer.add_message(
            channel_id=self._channels[topic], log_time=time_ns, publish_time=time_ns, data=data, sequence=sequence
        )
        self._open_chunk += len(data) + _MESSAGE_BYTES
        self._has_messages = True

    def flush(self) -> None:
        """End the chunk and hand everything to the operating system.

        Raises:
            OSError: the disk did not take all of it.
        """
        self._writer.flush()
        if self._has_messages:  # without, the chunk with the schemas stays open
            self._open_chunk, self._has_messages = 0, False
        self._pending.drain(lambda data: self._disk.write(self._descriptor, data))

    def sync(self) -> None:
        """Force what was flushed to the disk.

        Raises:
            OSError: it cannot be known to be there.
        """
        self._disk.sync(self._descriptor)

    def finish(self, statistics: Mapping[str, Any] | None) -> None:
        """Add statistics, index and footer and flush. The file can only be closed after this.

        Raises:
            OSError: as of `flush`.
        """
        if statistics is not None:
            self._writer.add_metadata(STATISTICS_METADATA, pack_metadata(statistics))
        self._writer.finish()
        self.flush()

    def close(self) -> None:
        """Close and unlock the file; what could not be flushed is lost."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


class _Pending:
    """The stream that the MCAP writer writes to: keeps what the disk has not taken yet."""

    def __init__(self) -> None:
        self.total = 0
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        self.total += len(data)
        return len(data)

    def tell(self) -> int:
        return self.total

    def flush(self) -> None:
        """Asked for by the MCAP writer after each chunk; `drain` does it."""

    def drain(self, write: Any) -> None:
        done = 0
        try:
            with memoryview(self._data) as view:
                while done < len(view):
                    with view[done:] as rest:
                        done += write(rest)
        finally:
            del self._data[:done]


def _create(path: Path, disk: Disk) -> int:
    """Descriptor of a new, locked file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = disk.create(path)
    except FileExistsError as error:
        raise EpisodeError(f"{path} exists already; an episode log is never overwritten") from error
    except OSError as error:
        raise EpisodeError(f"cannot create the episode log {path}: {error.strerror}") from error
    with contextlib.suppress(OSError):  # some network file systems have no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def sync_directory(directory: Path) -> None:
    """Force the names of new files in a directory to the disk.

    Raises:
        OSError: it cannot be known to be there.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
