from __future__ import annotations

from pathlib import Path

import pytest

from deploy.fault_latch import FaultLatch, RobotFaultError


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
