"""A file that remembers a fault until a human re-arms the robot, so that no restart of the program forgets it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from mpo_robot.errors import MpoRobotError


class RobotFaultError(MpoRobotError):
    """The robot is in FAULT: it may not move before a human has re-armed it."""


class FaultRecord(NamedTuple):
    """Why a robot is in FAULT.

    Attributes:
        reason: One word: `estop`, `safety`, `fallback`, `watchdog` or `error`.
        detail: In words.
        episode_id: During which episode; empty between episodes.
        wall_time: When, local time with offset, for people.
    """

    reason: str
    detail: str
    episode_id: str = ""
    wall_time: str = ""


class FaultLatch:
    """The file of one robot; without a path nothing is remembered."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = Path(path) if path else None

    def read(self) -> FaultRecord | None:
        """The fault that is in force, or None. A file that cannot be read counts as a fault: it was put there."""
        if self.path is None or not self.path.exists():
            return None
        try:
            data: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            return FaultRecord(*(str(data.get(name, "")) for name in FaultRecord._fields))
        except (OSError, ValueError, AttributeError) as error:
            return FaultRecord("unknown", f"{self.path} cannot be read: {error}")

    def set(self, reason: str, detail: str, episode_id: str = "") -> str:
        """Remember a fault; the first one stays. Returns why it could not be written, or an empty text."""
        if self.path is None or self.path.exists():
            return ""
        record = FaultRecord(reason, detail, episode_id, time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as stream:
                json.dump(record._asdict(), stream, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return f"the fault could not be written to {self.path}: {error.strerror}; it is forgotten at a restart"
        return ""

    def clear(self) -> None:
        """Forget the fault. Only on the explicit act of a human who has looked at the robot.

        Raises:
            RobotFaultError: the file cannot be removed.
        """
        if self.path is None:
            return
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise RobotFaultError(f"cannot remove {self.path}: {error.strerror}") from error

    def require_clear(self, robot: str) -> None:
        """Check that no fault is in force.

        Raises:
            RobotFaultError: one is; the text says which and how to re-arm.
        """
        record = self.read()
        if record is not None:
            since = f" since {record.wall_time}" if record.wall_time else ""
            raise RobotFaultError(
                f"robot {robot} is in FAULT{since} ({record.reason}: {record.detail or 'no detail'}). Look at the "
                f"robot, mend the cause, then run `mpo-robot rearm --config FILE` (or remove {self.path})"
            )
