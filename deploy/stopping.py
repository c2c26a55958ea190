"""Ways to stop: operator signals, a watchdog for calls that do not return, and the stop command itself."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from deploy.robot import Robot
from deploy.timing import leave_pinned_cpus

STOP_ATTEMPTS = 3
_MAX_INTERRUPTS = 100
_JOIN_S = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopFailedError(RuntimeError):
    """`Robot.stop` has failed every time it was called: nothing else can be done from software. Cut the power."""


def stop_robot(robot: Robot) -> None:
    """Call `robot.stop`; if it raises, call it again, `STOP_ATTEMPTS` times at most. Interrupted ones do not count.

    Raises:
        StopFailedError: every attempt raised.
        KeyboardInterrupt: it came during an attempt; a later one has worked.
    """
    interrupt: KeyboardInterrupt | None = None
    failures = interrupts = 0
    while True:
        try:
            robot.stop()
            break
        except KeyboardInterrupt as error:
            interrupt, interrupts = error, interrupts + 1
            if interrupts == _MAX_INTERRUPTS:  # by the driver itself: nobody presses that often
                raise StopFailedError(
                    "the robot could not be stopped: its driver is interrupted again and again"
                ) from error
        except Exception as error:
            failures += 1
            if failures == STOP_ATTEMPTS:
                raise StopFailedError(f"the robot could not be stopped: {error!r}") from error
    if interrupt is not None:
        raise interrupt


class StopSignals:
    """Context in which Ctrl-C, SIGTERM and SIGHUP (a lost terminal) ask for a clean stop instead of ending the process.

    The control loop polls `requested` once per tick. As long as the main thread has not, a second signal raises
    KeyboardInterrupt there at once, for a program that hangs outside the loop or a driver that does not come back from
    homing; afterwards further signals are ignored, because the stop that is under way must not be interrupted. Outside
    the main thread the context does nothing.
    """

    def __init__(self) -> None:
        self._count = 0
        self._noticed = False
        self._previous: dict[int, Any] = {}

    def requested(self) -> bool:
        """Whether a stop was asked for. Any thread."""
        if self._count > 0 and threading.current_thread() is threading.main_thread():
            self._noticed = True
        return self._count > 0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1 and not self._noticed:
            raise KeyboardInterrupt


class Watchdog:
    """Context that stops the robot from a second thread if `feed` is not called for `timeout_s`; 0 does nothing.

    It helps against driver calls that block, not against one that also keeps the interpreter locked.
    """

    def __init__(self, robot: Robot, timeout_s: float, on_fire: Callable[[], None] = lambda: None) -> None:
        """Args: `on_fire` is called from the second thread after the stop: the loop's thread may never come back."""
        self._robot = robot
        self._timeout_s = timeout_s
        self._on_fire = on_fire
        self._fed = time.monotonic()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.fired = False

    def feed(self) -> None:
        """A sign of life of the control loop."""
        self._fed = time.monotonic()

    def __enter__(self) -> Watchdog:
        if self._timeout_s > 0:
            self.feed()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)  # it may hang in the driver; the loop's own stop must not wait for that

    def _watch(self) -> None:
        leave_pinned_cpus()  # but no lower priority: it must run when the loop does not come back
        while not self._done.wait(max(0.001, self._fed + self._timeout_s - time.monotonic())):
            if time.monotonic() - self._fed > self._timeout_s:
                self.fired = True
                with contextlib.suppress(Exception):  # the loop's own stop follows, if its thread ever comes back
                    stop_robot(self._robot)
                self._on_fire()
                return
