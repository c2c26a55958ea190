from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from deploy.fault_latch import UNFINISHED, FaultLatch, RobotFaultError


def test_fault_is_remembered_until_cleared_and_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "arm.fault"
    latch = FaultLatch(path)
    latch.require_clear("arm")
    assert latch.set("estop", "key", "arm-1") == ""
    assert latch.set("safety", "later") == ""
    record = FaultLatch(path).read()
    assert record is not None
    assert (record.reason, record.detail, record.episode_id) == ("estop", "key", "arm-1")
    assert record.wall_time.startswith("20")
    with pytest.raises(RobotFaultError, match=r"arm is in FAULT since .*estop: key.*mpo-robot rearm"):
        latch.require_clear("arm")
    assert list(path.parent.iterdir()) == [path]
    latch.clear()
    latch.clear()
    assert latch.read() is None
    latch.require_clear("arm")


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\x00"])
def test_file_that_makes_no_sense_is_a_fault(tmp_path: Path, content: str) -> None:
    path = tmp_path / "arm.fault"
    path.write_text(content)
    with pytest.raises(RobotFaultError, match="FAULT"):
        FaultLatch(path).require_clear("arm")


def test_unwritable_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    problem = FaultLatch(tmp_path / "file" / "arm.fault").set("estop", "key")
    assert "could not be written" in problem


def test_without_a_path_nothing_is_remembered() -> None:
    for path in (None, ""):
        latch = FaultLatch(path)
        assert latch.set("estop", "key") == ""
        assert latch.read() is None
        latch.clear()


def test_file_is_there_while_the_robot_may_move_and_goes_only_when_it_was_stopped(tmp_path: Path) -> None:
    latch = FaultLatch(tmp_path / "state" / "arm.fault")
    with latch.guarding("arm") as was_stopped:
        record = latch.read()
        assert record is not None
        assert record.reason == UNFINISHED
        was_stopped()
        assert latch.read() is None
    with latch.guarding("arm"):
        pass
    with pytest.raises(RobotFaultError, match=r"unfinished: process .* ended while it had the robot"):
        latch.require_clear("arm")


def test_fault_is_written_over_the_file_in_place_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "arm.fault"
    latch = FaultLatch(path)
    with latch.guarding("arm") as was_stopped:
        before = path.stat()
        assert latch.set("estop", "\N{ROBOT FACE}" * 5000, "arm-1") == ""
        assert latch.set("safety", "later") == ""
        was_stopped()
        after = path.stat()
    assert (after.st_ino, after.st_size, after.st_blocks) == (before.st_ino, before.st_size, before.st_blocks)
    record = latch.read()
    assert record is not None
    assert record.reason == "estop"
    assert record.detail.startswith("\N{ROBOT FACE}" * 100)


def test_file_that_somebody_removed_meanwhile_is_written_anew(tmp_path: Path) -> None:
    latch = FaultLatch(tmp_path / "arm.fault")
    with latch.guarding("arm"):
        latch.path.unlink()  # type: ignore[union-attr]
        assert latch.set("estop", "key") == ""
    record = latch.read()
    assert record is not None
    assert record.reason == "estop"


def test_robot_in_use_is_neither_started_nor_rearmed_by_another_program(tmp_path: Path) -> None:
    first, second = FaultLatch(tmp_path / "arm.fault"), FaultLatch(tmp_path / "arm.fault")
    with first.guarding("arm") as was_stopped:
        with pytest.raises(RobotFaultError, match="in use by another program"), second.guarding("arm"):
            pass
        with pytest.raises(RobotFaultError, match="end it first"):
            second.clear()
        was_stopped()
    with second.guarding("arm") as was_stopped:
        was_stopped()


def test_nothing_moves_if_the_file_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    latch = FaultLatch(tmp_path / "arm.fault")
    with pytest.raises(RobotFaultError, match=r"No space left.*does not move"), latch.guarding("arm"):
        pass
    assert latch.read() is None, "nothing was left behind that would ask for a human"
    monkeypatch.undo()
    with latch.guarding("arm"):
        monkeypatch.setattr(os, "write", full)
        assert "no start is allowed all the same" in latch.set("estop", "key")
    assert latch.read() is not None
