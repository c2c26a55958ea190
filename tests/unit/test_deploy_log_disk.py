"""Logs on disks that are full, read-only, slow or hang: the loop never waits, and what is lost is counted."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from deploy.control_loop import ControlLoop
from deploy.log_file import Disk
from deploy.log_reader import read_log
from deploy.log_writer import EpisodeLogWriter, LogConfig
from deploy.loop_parts import LoopParts
from deploy.loop_statistics import table
from mpo_robot.errors import ConfigError
from tests.support.disks import HangingDisk, SmallDisk
from tests.support.fake_clock import FakeClock
from tests.support.fake_robot import FakeRobot
from tests.support.loop_bench import Script
from tests.support.records import SPEC, identity, make_records
from tests.support.robot_process import wait_until

ENOUGH = 1 << 30


def writer_on(disk: Disk, directory: Path, **settings: object) -> EpisodeLogWriter:
    return EpisodeLogWriter(directory, SPEC, "test", config=LogConfig(**settings), disk=disk)  # type: ignore[arg-type]


def holds(writer: EpisodeLogWriter, step: int) -> bool:
    return b'"step_index":%d,' % step in writer.path.read_bytes()


def test_full_disk_keeps_what_fitted_and_counts_the_rest(tmp_path: Path) -> None:
    writer = writer_on(SmallDisk(8000), tmp_path)
    records = make_records(10)
    assert all(writer.append(record) for record in records), "the queue has room: nothing is refused"
    writer.close({"end_reason": "truncated"})
    assert isinstance(writer.error, OSError)
    assert writer.error.errno == errno.ENOSPC
    contents = read_log(writer.path)
    assert not contents.complete
    found = [identity(record) for record in contents.records]
    assert found == [identity(record) for record in records][: len(found)]
    assert writer.dropped == len(records) - len(found) > 0
    assert writer.path.stat().st_size == 8000


def test_log_goes_on_behind_a_gap_when_the_disk_has_room_again(tmp_path: Path) -> None:
    disk = SmallDisk(ENOUGH)
    writer = writer_on(disk, tmp_path)
    records = make_records(9)
    for record in records[:3]:
        writer.append(record)
    wait_until(lambda: holds(writer, 2))
    disk.capacity = 300
    writer.append(records[3])
    wait_until(lambda: disk.refusals > 0)
    assert disk.capacity == 0, "half of step 3 is written"
    writer.append(records[4])  # finds the disk full and is lost
    wait_until(lambda: writer.dropped == 1)
    disk.capacity = ENOUGH
    for record in records[5:]:
        writer.append(record)
    writer.close({"end_reason": "truncated"})
    contents = read_log(writer.path)
    assert contents.complete, contents.problem
    assert [record.step_index for record in contents.records] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert contents.metadata["statistics"] == {
        "end_reason": "truncated",
        "log_written": 8,
        "log_dropped": 1,
        "log_parts": 1,
    }
    assert writer.dropped == 1
    assert isinstance(writer.error, OSError), "the operator is told although the disk recovered"


def test_disk_that_becomes_read_only_ends_in_a_readable_log(tmp_path: Path) -> None:
    class ReadOnlySoon(Disk):
        left = 3  # writes until then: the head of the file, the description, the first step

        def write(self, descriptor: int, data: memoryview) -> int:
            if not self.left:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            self.left -= 1
            return super().write(descriptor, data)

    writer = writer_on(ReadOnlySoon(), tmp_path)
    records = make_records(20)
    writer.append(records[0])
    wait_until(lambda: holds(writer, 0))
    for record in records[1:]:
        writer.append(record)
    writer.close()
    assert writer.error is not None
    assert "Read-only" in str(writer.error)
    assert [record.step_index for record in read_log(writer.path).records] == [0]
    assert writer.dropped == 19


def test_control_loop_never_waits_for_a_disk_that_hangs(tmp_path: Path) -> None:
    """By the order of events: the disk is released by the robot's last stop, so every tick comes before that."""
    disk = HangingDisk()

    class Robot(FakeRobot):
        def stop(self) -> None:
            super().stop()
            if len(self.commands) == steps:
                disk.release()

    steps, clock = 40, FakeClock()
    robot = Robot(SPEC, clock=clock.monotonic_ns, length=steps)

    def open_log(episode_id: str) -> EpisodeLogWriter:
        writer = writer_on(disk, tmp_path, queue_size=8)
        disk.hang()
        return writer

    parts = LoopParts(source=Script(clock), open_log=open_log, clock=clock)
    result = ControlLoop(robot, parts).run_episode("test", seed=0)
    assert result.steps == steps
    assert result.statistics.overruns == result.statistics.deadline_misses == 0
    contents = read_log(tmp_path / "test.mcap")
    assert contents.complete
    # 8 in the queue, and what the thread held in its hands when the disk hung.
    assert 8 <= len(contents.records) <= 17
    lost = steps - len(contents.records)
    assert result.statistics.log_dropped == contents.metadata["statistics"]["log_dropped"] == lost
    assert f"steps NOT logged: {lost}" in table(result.statistics)


def test_closing_waits_for_a_hanging_disk_no_longer_than_it_is_told_to(tmp_path: Path) -> None:
    disk = HangingDisk()
    writer = writer_on(disk, tmp_path, close_timeout_s=0.05)
    disk.hang()
    for record in make_records(5):
        writer.append(record)
    assert disk.is_waiting.wait(60)
    writer.close()  # the disk is released only behind this line
    assert isinstance(writer.error, TimeoutError)
    assert writer.dropped == 5
    disk.release()
    wait_until(lambda: writer.dropped == 0)
    wait_until(lambda: read_log(writer.path).complete)


def test_part_that_cannot_be_created_leaves_one_file_that_grows(tmp_path: Path) -> None:
    class NoMoreFiles(Disk):
        def create(self, path: Path) -> int:
            if "part0001" in path.name:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().create(path)

    writer = writer_on(NoMoreFiles(), tmp_path, max_bytes=6000)
    for record in make_records(20):
        writer.append(record)
    writer.close()
    assert "part0001" in str(writer.error)
    assert writer.dropped == 0
    contents = read_log(writer.path)
    assert contents.complete
    assert len(contents.records) == 20
    assert list(tmp_path.iterdir()) == [writer.path]


def test_part_that_finds_the_disk_full_is_removed_again(tmp_path: Path) -> None:
    class FullForParts(Disk):
        descriptors: set[int] = set()  # noqa: RUF012 (one disk per test)

        def create(self, path: Path) -> int:
            descriptor = super().create(path)
            if "part" in path.name:
                self.descriptors.add(descriptor)
            return descriptor

        def write(self, descriptor: int, data: memoryview) -> int:
            if descriptor in self.descriptors:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(descriptor, data)

    writer = writer_on(FullForParts(), tmp_path, max_bytes=6000)
    for record in make_records(20):
        writer.append(record)
    writer.close()
    assert writer.dropped == 0
    assert list(tmp_path.iterdir()) == [writer.path]
    assert len(read_log(writer.path).records) == 20


def test_settings_of_rotation_and_closing_are_checked() -> None:
    for name, value in (("max_bytes", -1), ("max_seconds", -0.5), ("folder_max_bytes", -1), ("close_timeout_s", 0.0)):
        with pytest.raises(ConfigError, match=name):
            LogConfig(**{name: value})  # type: ignore[arg-type]
