"""Ending the program, as kill -9 would, at the n-th change of the file system."""

from __future__ import annotations

import os
from typing import Any

CHANGES = ("open", "write", "fsync", "replace", "unlink", "mkdir")


class Crash(BaseException):
    """Nobody handles this: it stands for the end of the process."""


class CrashAt:
    """While open: the call number `step` to one of `CHANGES` raises Crash, having written half of what it should.

    All later ones raise it too, so that no `finally` of a process that would be dead cleans up.

    Attributes:
        calls: Calls so far.
    """

    def __init__(self, step: int, monkeypatch: Any) -> None:
        self.calls = 0
        self._step = step
        self._patch = monkeypatch

    def __enter__(self) -> CrashAt:
        for name in CHANGES:
            self._patch.setattr(os, name, self._wrap(name, getattr(os, name)))
        return self

    def __exit__(self, *exception: object) -> None:
        self._patch.undo()

    def _wrap(self, name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._step and name == "write":
                original(args[0], bytes(args[1])[: len(args[1]) // 2])
            if self.calls >= self._step:
                raise Crash
            return original(*args, **kwargs)

        return call
