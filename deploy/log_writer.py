"""`EpisodeLogWriter`: one MCAP file per episode, written by a thread so that the control loop never waits for a disk.

Every drain of the queue becomes one small uncompressed chunk with its CRC, handed to the operating system at once:
what was written before `kill -9` or a crash stays readable (`deploy.log_reader`). Surviving a power cut too needs
`fsync="step"`. A record that finds the queue full, or comes after a write error, is dropped and counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from mcap.writer import CompressionType, Writer

from deploy.log_format import (
    EPISODE_METADATA,
    INVALID_STEP_TOPIC,
    LOG_PROFILE,
    LOG_SUFFIX,
    SIGNALS_TOPIC,
    STATISTICS_METADATA,
    STEP_TOPIC,
    encode_step,
    pack_metadata,
    step_json_schema,
)
from deploy.log_signals import encode_signals, signals_json_schema
from deploy.timing import give_way
from mpo_robot.episode import STEP_SCHEMA_VERSION, StepRecord
from mpo_robot.errors import ConfigError, EpisodeError
from mpo_robot.specs import PolicySpec

_Item = dict[str, Any] | tuple[str, StepRecord]  # the description, or a step and its topic
FsyncPolicy = Literal["step", "episode", "never"]


@dataclass(frozen=True)
class LogConfig:
    """How episodes are logged.

    Attributes:
        directory: Folder of the log files; made if missing. Empty: no logs.
        fsync: When data are forced to the disk: after every write, at the end of the episode, or never. Only matters
            for power cuts; `kill -9` never loses a written record.
        queue_size: Records that may wait for the writer thread before records are dropped (and counted).
        flush_interval_s: 0 writes each record as soon as the thread sees it. A positive value collects records for
            that long into one chunk: smaller files and less work at high rates, and at most that much lost in a crash.
        signals: Also write a `/signals` topic with the scalars by name, for plotting. Makes the file about twice as
            large.
    """

    directory: str = "logs"
    fsync: FsyncPolicy = "episode"
    queue_size: int = 4096
    flush_interval_s: float = 0.0
    signals: bool = False

    def __post_init__(self) -> None:
        if self.queue_size < 1:
            raise ConfigError(f"log.queue_size must be at least 1, got {self.queue_size}")
        if self.flush_interval_s < 0:
            raise ConfigError(f"log.flush_interval_s must not be negative, got {self.flush_interval_s}")


class EpisodeLogWriter:
    """Writes the steps of one episode.

    `append` and `append_invalid` may be called from one thread and never block. The file is locked (`flock`) while
    it is being written, so that a reader can tell an episode in progress from a crashed one.
    """

    def __init__(
        self,
        directory: str | Path,
        spec: PolicySpec,
        episode_id: str,
        *,
        robot: str = "",
        config: LogConfig | None = None,
    ) -> None:
        """Create `directory/episode_id.mcap` and start the writer thread.

        Args:
            directory: Made if missing.
            spec: Interface of the robot.
            episode_id: Unique; letters, digits and `._-` only, because it names the file.
            robot: Name of the robot, for people.
            config: Writing policy; its `directory` is not used here.

        Raises:
            EpisodeError: the name is malformed, the file exists, or it cannot be created.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", episode_id):
            raise EpisodeError(f"episode id {episode_id!r} cannot name a file: use letters, digits, dot, dash, _")
        self.path = Path(directory) / f"{episode_id}{LOG_SUFFIX}"
        self._config = config or LogConfig()
        self._spec = spec
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._refused = 0  # counted by the appending thread
        self._lost = 0  # counted by the writer thread
        self._written = 0
        self._error: Exception | None = None
        self._closed = False
        self._described = False
        self._description = {
            "schema_version": STEP_SCHEMA_VERSION,
            "episode_id": episode_id,
            "robot": robot,
            "spec": spec.to_dict(),
            "spec_hash": spec.spec_hash,
        }
        self._stream = _create(self.path)
        self._writer = Writer(
            self._stream,
            chunk_size=1 << 30,  # a chunk ends where we flush, never in the middle of a drain
            compression=CompressionType.NONE,
            enable_crcs=True,
            enable_data_crcs=True,
        )
        self._writer.start(profile=LOG_PROFILE, library=f"mpo_robot log schema {STEP_SCHEMA_VERSION}")
        self._channels = self._register_channels()
        self._stream.flush()
        self._thread = threading.Thread(target=self._run, name=f"log {episode_id}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that were not written."""
        return self._refused + self._lost

    @property
    def error(self) -> Exception | None:
        """The write error that ended logging, for example a full disk."""
        return self._error

    def describe(self, info: Mapping[str, Any], monotonic_ns: int, wall_time_ns: int) -> None:
        """Queue the description of the episode; once, and before the first step. Never blocks.

        Args:
            info: What the robot said about the episode; holds `randomization` for a simulated robot.
            monotonic_ns: Clock anchor: the robot's monotonic time ...
            wall_time_ns: ... at this wall time.

        Raises:
            ValueError: called twice or after a step.
        """
        if self._described:
            raise ValueError("an episode log is described once, before its first step")
        self._described = True
        self._queue.put(
            {**self._description, "info": dict(info), "monotonic_ns": monotonic_ns, "wall_time_ns": wall_time_ns}
        )

    def append(self, record: StepRecord) -> bool:
        """Queue a completed step. Never blocks.

        Returns:
            False if it was dropped, and counted, because the queue is full or the file cannot be written.
        """
        return self._put(STEP_TOPIC, record)

    def append_invalid(self, record: StepRecord) -> bool:
        """Queue a step that must not be learned from (a bad sensor reading at either end); kept on its own topic."""
        return self._put(INVALID_STEP_TOPIC, record)

    def close(self, statistics: Mapping[str, Any] | None = None) -> None:
        """Write what is queued, then statistics, index and footer; fsync by policy. May be called twice.

        Blocks until the writer thread is done. Write errors do not raise: look at `error`.
        """
        if self._closed:
            return
        self._ensure_described()
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        try:
            if self._error is None:
                content = {**(statistics or {}), "log_written": self._written, "log_dropped": self.dropped}
                self._writer.add_metadata(STATISTICS_METADATA, pack_metadata(content))
                self._writer.finish()
                self._stream.flush()
                if self._config.fsync != "never":
                    os.fsync(self._stream.fileno())
                    _fsync_directory(self.path.parent)
        except OSError as error:
            self._error = error
        with contextlib.suppress(OSError):  # what cannot be flushed was counted as dropped already
            self._stream.close()

    def discard(self) -> None:
        """Close and remove the file: the episode never began."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _ensure_described(self) -> None:
        if not self._described:
            self.describe({}, time.monotonic_ns(), time.time_ns())

    def _put(self, topic: str, record: StepRecord) -> bool:
        self._ensure_described()
        # One producer: the queue can only shrink between the test and the put.
        if self._closed or self._error is not None or self._queue.qsize() >= self._config.queue_size:
            self._refused += 1
            return False
        self._queue.put((topic, record))
        return True

    def _run(self) -> None:
        give_way()
        finished = False
        while not finished:
            items = [self._queue.get()]
            if self._config.flush_interval_s > 0 and items[0] is not None:
                items += self._collect(self._config.flush_interval_s)
            while not self._queue.empty():
                items.append(self._queue.get())
            finished = items[-1] is None
            self._write([item for item in items if item is not None])

    def _collect(self, seconds: float) -> list[_Item | None]:
        items: list[_Item | None] = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                items.append(self._queue.get(timeout=left))
            except queue.Empty:
                break
            if items[-1] is None:
                break
        return items

    def _write(self, items: list[_Item]) -> None:
        steps = [item for item in items if isinstance(item, tuple)]
        if self._error is not None:
            self._lost += len(steps)
            return
        try:
            for item in items:
                if isinstance(item, dict):
                    self._writer.add_metadata(EPISODE_METADATA, pack_metadata(item))
                    continue
                topic, record = item
                self._add(topic, encode_step(record), record)
                if self._config.signals and topic == STEP_TOPIC:
                    self._add(SIGNALS_TOPIC, encode_signals(record, self._spec), record)
            self._writer.flush()
            if self._config.fsync == "step":
                os.fsync(self._stream.fileno())
            self._written += len(steps)
        except Exception as error:  # the thread must outlive any error: it is reported, and the robot goes on
            self._error = error
            self._lost += len(steps)

    def _add(self, topic: str, data: bytes, record: StepRecord) -> None:
        self._writer.add_message(
            channel_id=self._channels[topic],
            log_time=record.wall_time_ns,
            publish_time=record.wall_time_ns,
            data=data,
            sequence=record.step_index,
        )

    def _register_channels(self) -> dict[str, int]:
        metadata = {"spec_hash": self._spec.spec_hash, "schema_version": str(STEP_SCHEMA_VERSION)}
        step_schema = self._writer.register_schema("mpo_robot.Step", "jsonschema", step_json_schema())
        channels = {
            topic: self._writer.register_channel(topic, "json", step_schema, metadata)
            for topic in (STEP_TOPIC, INVALID_STEP_TOPIC)
        }
        if self._config.signals:
            schema = self._writer.register_schema("mpo_robot.Signals", "jsonschema", signals_json_schema(self._spec))
            channels[SIGNALS_TOPIC] = self._writer.register_channel(SIGNALS_TOPIC, "json", schema, metadata)
        return channels


def _create(path: Path) -> IO[bytes]:
    """New, locked file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("xb", buffering=1 << 18)
    except FileExistsError as error:
        raise EpisodeError(f"{path} exists already; an episode log is never overwritten") from error
    except OSError as error:
        raise EpisodeError(f"cannot create the episode log {path}: {error.strerror}") from error
    with contextlib.suppress(OSError):  # some network file systems have no locks
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return stream


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
