"""What trips an `EStop` at the robot itself: a key of the terminal, a signal to the process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
from types import FrameType
from typing import Any

from deploy.estop import EStop
from deploy.timing import give_way

STOP_KEYS = b" eE"
_JOIN_S = 0.5


class SignalEStop:
    """Context in which a signal trips the e-stop.

    A signal like SIGUSR1 kills a process that does not handle it. So that an e-stop that comes a moment too late does
    no harm, it is ignored after the context, if nothing else handled it before. Outside the main thread the context
    does nothing.
    """

    def __init__(self, estop: EStop, name: str) -> None:
        """Args: what to trip, and the signal's name, for example `SIGUSR1`; empty does nothing."""
        self._estop, self._name = estop, name
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> SignalEStop:
        if self._name and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.Signals[self._name], self._handle)
            self._installed = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            previous = signal.SIG_IGN if self._previous in (signal.SIG_DFL, None) else self._previous
            signal.signal(signal.Signals[self._name], previous)
            self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._estop.trip(f"signal {self._name}")


class KeyEStop:
    """Context in which the space bar or `e` in a terminal trips the e-stop, without Enter.

    Ctrl-C still works. Ctrl-Z does not: a suspended program would leave the motors with their last command. Without a
    terminal of our own in the foreground the context does nothing, and `active` is False.
    """

    def __init__(self, estop: EStop, descriptor: int | None = None) -> None:
        """Args: what to trip, and the terminal's file descriptor; None is standard input."""
        self._estop = estop
        self._descriptor = _standard_input() if descriptor is None else descriptor
        self._saved: list[Any] | None = None
        self._thread: threading.Thread | None = None
        self._wake: tuple[int, int] | None = None

    @property
    def active(self) -> bool:
        """Whether keys are being listened to."""
        return self._thread is not None

    def __enter__(self) -> KeyEStop:
        if self._descriptor is None or not _is_own_terminal(self._descriptor):
            return self
        self._saved = termios.tcgetattr(self._descriptor)
        settings = termios.tcgetattr(self._descriptor)
        settings[3] &= ~(termios.ICANON | termios.ECHO)
        settings[6][termios.VSUSP] = b"\0"  # no Ctrl-Z
        settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._descriptor, termios.TCSANOW, settings)
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(self._descriptor, self._wake[0]), name="e-stop key")
        self._thread.daemon = True
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is None or self._wake is None or self._descriptor is None:
            return
        os.write(self._wake[1], b"x")
        self._thread.join(_JOIN_S)
        for end in self._wake:
            os.close(end)
        with contextlib.suppress(termios.error, OSError):  # the terminal may be gone
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._saved or [])
        self._thread = self._wake = None

    def _run(self, descriptor: int, wake: int) -> None:
        give_way()
        while True:
            try:
                ready, _, _ = select.select([descriptor, wake], [], [])
                keys = os.read(descriptor, 64) if descriptor in ready else b""
            except OSError:  # a lost terminal: SIGHUP asks for a stop by itself
                return
            if wake in ready or not keys:
                return
            if any(key in STOP_KEYS for key in keys):
                self._estop.trip("key")


def _standard_input() -> int | None:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # none, closed, or replaced by something without a descriptor
        return None


def _is_own_terminal(descriptor: int) -> bool:
    """Whether it is a terminal that we may change: a background job is stopped by the kernel if it tries."""
    if not os.isatty(descriptor):
        return False
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # not our controlling terminal, so there is no job control on it
        return True
