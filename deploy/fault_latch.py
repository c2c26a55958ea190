"""A file that remembers, until a human re-arms the robot, that it may not move: no end of the program forgets it.

The file is written *before* the robot may move and says then that the program ended while it had the robot. It is taken
away only when the robot was stopped without a fault. So a kill, a power cut or a disk that has filled up meanwhile
leave it behind. A fault is written over it in place, which needs no new room on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from deploy.durable import replace_file, sync_directory, write_and_sync
from mpo_robot.errors import MpoRobotError

UNFINISHED = "unfinished"
_SIZE = 4096  # of the file: one block, so that a record can be replaced without asking the disk for more


class RobotFaultError(MpoRobotError):
    """The robot may not move: it is in FAULT, in use by another program, or faults could not be remembered."""


class FaultRecord(NamedTuple):
    """Why a robot is in FAULT.

    Attributes:
        reason: One word: `estop`, `safety`, `fallback`, `watchdog` or `error`; `unfinished` if the program ended
            without a word while it had the robot; `unknown` for a file that cannot be read.
        detail: In words.
        episode_id: During which episode; empty between episodes.
        wall_time: When, local time with offset, for people.
    """

    reason: str
    detail: str
    episode_id: str = ""
    wall_time: str = ""


class FaultLatch:
    """The file of one robot; without a path nothing is remembered.

    Args:
        path: Where this robot's state is kept.
        others: Further files that mean this robot too: of its other names, and where older versions kept them.
    """

    def __init__(self, path: str | Path | None, others: Callable[[], Iterable[Path]] = tuple) -> None:
        self.path = Path(path) if path else None
        self._others = others
        self._lock = threading.Lock()  # the watchdog's thread may set a fault too
        self._descriptor: int | None = None
        self._has_fault = False

    def read(self) -> FaultRecord | None:
        """The fault that is in force, or None. A file that cannot be read counts as a fault: it was put there."""
        present = self._present()
        return _read(present[0]) if present else None

    @contextlib.contextmanager
    def guarding(self, robot: str) -> Generator[Callable[[], None], None, None]:
        """Context in which `robot` may move. Gives a function to call once it was stopped without a fault.

        Without that call the robot is in FAULT afterwards, however the context is left. Meanwhile no other program
        gets the robot.

        Raises:
            RobotFaultError: a fault is in force, another program has the robot, or the file cannot be written.
        """
        self.require_clear(robot)
        if self.path is None:
            yield lambda: None
            return
        descriptor = self._create(self.path)
        self._descriptor, self._has_fault = descriptor, False
        try:
            yield self._release
        finally:
            with self._lock:
                self._descriptor = None
                os.close(descriptor)

    def set(self, reason: str, detail: str, episode_id: str = "") -> str:
        """Remember a fault; the first one stays. Returns why it could not be written, or an empty text."""
        if self.path is None:
            return ""
        data = _encode(FaultRecord(reason, detail, episode_id, _now()))
        with self._lock:
            try:
                if self._descriptor is not None and os.fstat(self._descriptor).st_nlink > 0:
                    if not self._has_fault:
                        _overwrite(self._descriptor, data)
                        self._has_fault = True
                elif not self.path.exists():
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    replace_file(self.path, data)
            except OSError as error:
                outcome = "no start is allowed all the same" if self.path.exists() else "it is forgotten at a restart"
                return f"the fault could not be written to {self.path}: {error.strerror}; {outcome}"
        return ""

    def clear(self) -> None:
        """Forget the fault. Only on the explicit act of a human who has looked at the robot.

        Raises:
            RobotFaultError: a program has the robot, or the file cannot be removed.
        """
        for path in self._present():
            if _is_held(path):
                raise RobotFaultError(f"a program that is running has the robot ({path}): end it first")
            _remove(path)

    def require_clear(self, robot: str) -> None:
        """Check that the robot may move.

        Raises:
            RobotFaultError: a fault is in force, or another program has the robot; the text says what to do.
        """
        for path in self._present():
            record = _read(path)
            if _is_held(path):
                raise RobotFaultError(
                    f"robot {robot} is in use by another program ({path}, since {record.wall_time}). If that is "
                    "another robot, give each a name of its own (robot.name), or a file of its own (estop.latch)"
                )
            since = f" since {record.wall_time}" if record.wall_time else ""
            raise RobotFaultError(
                f"robot {robot} is in FAULT{since} ({record.reason}: {record.detail or 'no detail'}). Look at the "
                f"robot, mend the cause, then run `mpo-robot rearm --config FILE` (or remove {path})"
            )

    def _present(self) -> list[Path]:
        if self.path is None:
            return []
        return [path for path in dict.fromkeys((self.path, *self._others())) if os.path.lexists(path)]

    def _create(self, path: Path) -> int:
        """Make the file, with all the room it will ever need, and keep it locked."""
        detail = f"process {os.getpid()} ended while it had the robot"
        data = _encode(FaultRecord(UNFINISHED, detail, wall_time=_now()))
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _overwrite(descriptor, data)
        except OSError as error:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise _unwritable(path, error) from error
        sync_directory(path.parent)
        return descriptor

    def _release(self) -> None:
        with self._lock:
            if self.path is not None and self._descriptor is not None and not self._has_fault:
                _remove(self.path)


def _read(path: Path) -> FaultRecord:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return FaultRecord(*(str(data.get(name, "")) for name in FaultRecord._fields))
    except (OSError, ValueError, AttributeError) as error:
        return FaultRecord("unknown", f"{path} cannot be read: {error}")


def _encode(record: FaultRecord) -> bytes:
    """JSON, filled up with spaces to the size that the file has from the beginning."""
    for longest in (len(record.detail), 300):  # a character takes up to 12 bytes
        data = json.dumps(record._replace(detail=record.detail[:longest])._asdict(), indent=1).encode()
        if len(data) < _SIZE:
            break
    return data.ljust(_SIZE - 1) + b"\n"


def _overwrite(descriptor: int, data: bytes) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    write_and_sync(descriptor, data)


def _is_held(path: Path) -> bool:
    """Whether a program that is running has the robot: the lock goes with its process, however that ends."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RobotFaultError(f"cannot remove {path}: {error.strerror}") from error
    sync_directory(path.parent)


def _unwritable(path: Path, error: OSError) -> RobotFaultError:
    return RobotFaultError(
        f"cannot write {path}: {error.strerror}. The robot does not move, because a fault could not be remembered; "
        "make room or change permissions there, or name another file (estop.latch)"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
