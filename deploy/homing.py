"""`HomingWatch`: stops the robot while its driver is busy with `Robot.start_episode` and cannot be asked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from deploy.loop_parts import End, EndReason, LoopParts
from deploy.robot import Robot
from deploy.timing import leave_pinned_cpus

_POLL_S = 0.002
_LONGEST_PAUSE_S = 0.1
_JOIN_S = 0.2


class HomingWatch:
    """Context around `Robot.start_episode`: an e-stop, the operator or the time limit stops the robot.

    `Robot.stop` is called again and again until the context is left. Once is not enough: `start_episode` takes back
    the stops that came before it, and nobody but the driver knows when it does. So enter the context before the last
    look at the e-stop; whatever trips it afterwards, is followed by a stop that comes late enough.
    """

    def __init__(self, robot: Robot, parts: LoopParts, on_timeout: Callable[[], None] = lambda: None) -> None:
        """Args: `on_timeout` is called from the second thread after the stop: the driver may never come back."""
        self._robot, self._parts, self._on_timeout = robot, parts, on_timeout
        self._limit_s = parts.loop.homing_timeout_s if parts.loop.is_real_time else 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="homing watch", daemon=True)
        self._begun_s = 0.0
        self._end: End | None = None

    @property
    def end(self) -> End | None:
        """Why the robot was stopped; None if it was not."""
        estop = self._parts.estop
        return End(EndReason.ESTOP, estop.reason) if estop.tripped else self._end

    def __enter__(self) -> HomingWatch:
        self._begun_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join(_JOIN_S)  # it may hang in the driver

    def _watch(self) -> None:
        leave_pinned_cpus()  # but no lower priority: it must run when the driver does not come back
        while self._end is None:
            if self._done.wait(_POLL_S):
                return
            self._end = self._look()
        pause_s, is_first = _POLL_S, True
        while not self._done.is_set():
            with contextlib.suppress(Exception):  # the loop's own stop follows, if its thread ever comes back
                self._parts.estop.stop(self._robot)
            if is_first and self._end.reason is EndReason.WATCHDOG:
                self._on_timeout()
            is_first = False
            self._done.wait(pause_s)
            pause_s = min(2.0 * pause_s, _LONGEST_PAUSE_S)

    def _look(self) -> End | None:
        if self._parts.estop.tripped:
            return End(EndReason.ESTOP, self._parts.estop.reason)
        if self._parts.should_stop():
            return End(EndReason.OPERATOR, "on the way to the start pose")
        if 0 < self._limit_s < time.monotonic() - self._begun_s:
            return End(EndReason.WATCHDOG, f"the way to the start pose took longer than {self._limit_s:g} s")
        return None
