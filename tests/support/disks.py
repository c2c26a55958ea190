"""Disks that are full, broken or slow, for logs."""

from __future__ import annotations

import errno
import os
import threading

from deploy.log_file import Disk


class SmallDisk(Disk):
    """Takes `capacity` bytes in all, then as many as `capacity` is raised by; writes short before it refuses."""

    def __init__(self, capacity: int) -> None:
        self._lock = threading.Lock()  # a test may see the bytes in the file before the write is accounted for
        self._capacity = capacity
        self.refusals = 0

    @property
    def capacity(self) -> int:
        """Bytes that still fit."""
        return self._capacity

    @capacity.setter
    def capacity(self, value: int) -> None:
        with self._lock:
            self._capacity = value

    def write(self, descriptor: int, data: memoryview) -> int:
        with self._lock, data[: self._capacity] as part:
            if not part:
                self.refusals += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = super().write(descriptor, part)
            self._capacity -= written
        return written


class HangingDisk(Disk):
    """Takes what is written before `hang()`, and then nothing until `release()`."""

    def __init__(self) -> None:
        self._free = threading.Event()
        self._free.set()
        self.is_waiting = threading.Event()

    def hang(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def write(self, descriptor: int, data: memoryview) -> int:
        if not self._free.is_set():
            self.is_waiting.set()
            assert self._free.wait(60)
        return super().write(descriptor, data)
