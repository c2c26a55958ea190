"""A disk for logs that becomes slow, full or stuck for a while; used by the soak."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Literal

from deploy.log_file import Disk
from tests.support.soak_watch import Watch

DiskMode = Literal["ok", "slow", "full", "stuck"]
_POLL_S = 0.01


class SoakDisk(Disk):
    """Behaves as told until a time; a call by the loop's thread while the robot moves is a violation.

    Attributes:
        refused: Writes that a full disk refused.
        delayed: Writes that a slow or stuck one held up.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._mode: DiskMode = "ok"
        self._until, self._delay_s = 0.0, 0.0
        self.refused = self.delayed = 0

    def become(self, mode: DiskMode, seconds: float, delay_s: float = 0.0) -> None:
        """Be slow (each write takes `delay_s`), full or stuck for that long."""
        self._mode, self._until, self._delay_s = mode, time.monotonic() + seconds, delay_s

    def create(self, path: Path) -> int:
        self._check_thread("create")
        if self._now() == "full":
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._check_thread("write")
        mode = self._now()
        if mode == "full":
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if mode != "ok":
            self.delayed += 1
            end = time.monotonic() + self._delay_s
            while time.monotonic() < end or self._now() == "stuck":
                time.sleep(_POLL_S)
            with data[: max(1, len(data) // 2)] as part:  # a slow disk takes what it is given in pieces
                return super().write(descriptor, part)
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._check_thread("sync")
        super().sync(descriptor)

    def _now(self) -> DiskMode:
        return self._mode if time.monotonic() < self._until else "ok"

    def _check_thread(self, call: str) -> None:
        if self._watch.moving and self._watch.is_loop():
            self._watch.violations.report("blocked", f"the loop's own thread called {call} of the disk")
