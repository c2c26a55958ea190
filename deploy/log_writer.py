"""`EpisodeLogWriter`: the log of one episode, written by a thread so that the control loop never waits for a disk.

Every drain of the queue becomes one small uncompressed chunk with its CRC, handed to the operating system at once:
what was written before `kill -9` or a crash stays readable (`deploy.log_reader`). Surviving a power cut too needs
`fsync="step"`. A record that finds the queue full, or a disk that takes nothing, is dropped and counted; when the disk
takes data again, the log goes on behind a gap. An episode may span several files (parts).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deploy.log_config import FsyncPolicy, LogConfig
from deploy.log_drain import drain
from deploy.log_encoding import StepEncoder
from deploy.log_file import Disk, LogFile, sync_directory
from deploy.log_format import INVALID_STEP_TOPIC, STEP_TOPIC
from deploy.log_parts import check_episode_id, part_path
from deploy.timing import give_way
from mpo_robot.episode import STEP_SCHEMA_VERSION, StepRecord
from mpo_robot.errors import EpisodeError
from mpo_robot.specs import PolicySpec

__all__ = ["EpisodeLogWriter", "FsyncPolicy", "LogConfig"]


class _Step(NamedTuple):
    topic: str
    record: StepRecord


class _End(NamedTuple):
    statistics: Mapping[str, Any]


_Description = dict[str, Any]
_Item = _Description | _Step | _End


class EpisodeLogWriter:
    """Writes the steps of one episode.

    `append` and `append_invalid` may be called from one thread and never block. A file is locked (`flock`) while it
    is being written, so that a reader can tell an episode in progress from a crashed one.
    """

    def __init__(
        self,
        directory: str | Path,
        spec: PolicySpec,
        episode_id: str,
        *,
        robot: str = "",
        config: LogConfig | None = None,
        disk: Disk | None = None,
    ) -> None:
        """Create `directory/episode_id.mcap` and start the writer thread.

        Args:
            directory: Made if missing.
            spec: Interface of the robot.
            episode_id: Unique; letters, digits and `._-` only, because it names the file.
            robot: Name of the robot, for people.
            config: Writing policy; its `directory` is not used here.
            disk: Where the files go, in place of the operating system.

        Raises:
            EpisodeError: the name is malformed, the file exists, or it cannot be created.
            ConfigError: `joint_states` does not fit the spec.
        """
        check_episode_id(episode_id)
        self._directory, self._episode_id = Path(directory), episode_id
        self.path = part_path(self._directory, episode_id, 0)
        self._config = config or LogConfig()
        self._encoder = StepEncoder(spec, self._config)
        self._disk = disk or Disk()
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._offered = 0  # these two are counted by the appending thread,
        self._refused = 0
        self._lost = 0  # all others by the writer thread
        self._written = 0
        self._unflushed = 0
        self._error: Exception | None = None
        self._closed = False
        self._described = False
        self._description: _Description = {
            "schema_version": STEP_SCHEMA_VERSION,
            "episode_id": episode_id,
            "robot": robot,
            "spec": spec.to_dict(),
            "spec_hash": spec.spec_hash,
        }
        self._channel_metadata = {"spec_hash": spec.spec_hash, "schema_version": str(STEP_SCHEMA_VERSION)}
        self._part = self._open_part(0)
        self._part_index = 0
        self._part_start_ns: int | None = None  # of the first step in it
        self._may_rotate = True
        with contextlib.suppress(OSError):  # the thread tries again, and reports it
            self._part.flush()
        self._thread = threading.Thread(target=self._run, name=f"log {episode_id}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that were not written; once closed, also those that a disk that hangs has not taken yet."""
        return self._offered - self._written if self._closed else self._refused + self._lost

    @property
    def error(self) -> Exception | None:
        """The first error of writing, for example of a full disk."""
        return self._error

    @property
    def parts(self) -> int:
        """Files so far."""
        return self._part_index + 1

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
            False if it was dropped, and counted, because the queue is full.
        """
        return self._put(STEP_TOPIC, record)

    def append_invalid(self, record: StepRecord) -> bool:
        """Queue a step that must not be learned from (a bad sensor reading at either end); kept on its own topic."""
        return self._put(INVALID_STEP_TOPIC, record)

    def close(self, statistics: Mapping[str, Any] | None = None) -> None:
        """Write what is queued, then statistics, index and footer; fsync by policy. May be called twice.

        Blocks until the writer thread is done, at most for `close_timeout_s`. Errors do not raise: look at `error`.
        """
        if self._closed:
            return
        self._ensure_described()
        self._closed = True
        self._queue.put(_End(dict(statistics or {})))
        self._thread.join(self._config.close_timeout_s)
        if self._thread.is_alive():
            self._note(TimeoutError(f"the disk did not take the rest within {self._config.close_timeout_s:g} s"))

    def discard(self) -> None:
        """Close and remove the file: the episode never began."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _ensure_described(self) -> None:
        if not self._described:
            self.describe({}, time.monotonic_ns(), time.time_ns())

    def _put(self, topic: str, record: StepRecord) -> bool:
        self._ensure_described()
        self._offered += 1
        # One producer: the queue can only shrink between the test and the put.
        if self._closed or self._queue.qsize() >= self._config.queue_size:
            self._refused += 1
            return False
        self._queue.put(_Step(topic, record))
        return True

    # What follows runs in the writer thread.

    def _run(self) -> None:
        try:
            give_way()
            self._serve()
        except Exception as error:  # nobody else would learn of it
            self._note(error)

    def _serve(self) -> None:
        while True:
            items = drain(self._queue, self._config.flush_interval_s, _End)
            self._write(items)
            if isinstance(items[-1], _End):
                self._finish(items[-1].statistics)
                return

    def _write(self, items: Sequence[_Item]) -> None:
        for item in items:
            if isinstance(item, dict):
                self._description = item
                self._part.describe(item)
        steps = [item for item in items if isinstance(item, _Step)]
        if not self._flush():  # what the disk refused before comes first
            self._lost += len(steps)
            return
        for topic, record in steps:
            self._add(topic, record)
        self._flush()

    def _add(self, topic: str, record: StepRecord) -> None:
        try:
            messages = self._encoder.encode(topic, record)
            if self._is_full(record, sum(len(data) for _, data in messages)):
                self._rotate()
            for name, data in messages:
                self._part.add(name, data, record.wall_time_ns, record.step_index)
        except Exception as error:  # the thread must outlive any error: it is reported, and the robot goes on
            self._note(error)
            self._lost += 1
            return
        self._unflushed += 1
        if self._part_start_ns is None:
            self._part_start_ns = record.monotonic_ns

    def _flush(self) -> bool:
        """Hand everything to the disk; False, with the error noted, if it did not take all of it."""
        try:
            self._part.flush()
        except OSError as error:
            self._note(error)
            return False
        try:
            if self._config.fsync == "step":
                self._part.sync()
            self._written += self._unflushed
        except OSError as error:  # then nobody knows what is on the disk
            self._note(error)
            self._lost += self._unflushed
        self._unflushed = 0
        return True

    def _is_full(self, record: StepRecord, size: int) -> bool:
        if self._part_start_ns is None or not self._may_rotate:
            return False
        most, longest_ns = self._config.max_bytes, self._config.max_seconds * 1e9
        is_large = 0 < most < self._part.size + size
        return is_large or 0 < longest_ns <= record.monotonic_ns - self._part_start_ns

    def _rotate(self) -> None:
        """Go on in the next part. It is there, locked and described, before the one before it is closed."""
        if not self._flush():
            return
        following = None
        try:
            following = self._open_part(self._part_index + 1)
            following.flush()
        except (OSError, EpisodeError) as error:  # one file that grows is better than none
            self._note(error)
            self._may_rotate = False
            if following is not None:
                following.close()
                following.path.unlink(missing_ok=True)
            return
        self._finish_part({"log_written": self._written, "continued": True})
        self._part, self._part_start_ns = following, None
        self._part_index += 1

    def _open_part(self, index: int) -> LogFile:
        path = part_path(self._directory, self._episode_id, index)
        part = LogFile(path, self._encoder.topics, self._channel_metadata, self._disk)
        if index:
            part.describe({**self._description, "part": index})
        return part

    def _finish(self, statistics: Mapping[str, Any]) -> None:
        if not self._flush():
            self._lost += self._unflushed
            self._unflushed = 0
        counts = {"log_written": self._written, "log_dropped": self.dropped, "log_parts": self.parts}
        self._finish_part({**statistics, **counts})

    def _finish_part(self, statistics: Mapping[str, Any]) -> None:
        try:
            self._part.finish(statistics)
            if self._config.fsync != "never":
                self._part.sync()
                sync_directory(self._part.path.parent)
        except OSError as error:
            self._note(error)
        self._part.close()

    def _note(self, error: Exception) -> None:
        self._error = self._error or error
