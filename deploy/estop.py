"""The emergency stop: one latch that any source can trip, and a thread that stops the robot at once when it does.

Sources (a key, a signal, a message) only call `EStop.trip`. The control loop looks at `tripped` before every motor
command; `EStopGuard` calls `Robot.stop` without waiting for the loop, which may be inside a driver call. Nothing in
the software un-trips it but `rearm`, which run-robot never calls by itself.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.robot import Robot
from deploy.security import ServerSecurity
from deploy.stopping import stop_robot
from deploy.timing import give_way
from mpo_robot.errors import ConfigError

Confirmation = Literal["", "stopped", "unconfirmed", "failed"]
_JOIN_S = 0.2


@dataclass(frozen=True)
class EStopConfig:
    """Where emergency stops may come from, and where a fault is remembered.

    Attributes:
        key: The space bar and `e` of the terminal that `run-robot` runs in.
        signal: Signal to the process; "" for none.
        endpoint: Listen here for `mpo-robot estop` messages, `tcp://HOST:PORT` or `ipc://PATH`; "" does not listen.
        secret_key: This robot's NAME.key_secret for that endpoint; needed off loopback.
        allow: Allow-list with the public keys of the operators whose messages count (`mpo-robot keys allow`).
        latch: File that remembers a fault until `mpo-robot rearm`; a relative path counts from the user's state
            directory. null: a file there named after robot and hardware, none for a simulated robot. "": none.
    """

    key: bool = True
    signal: Literal["SIGUSR1", "SIGUSR2", ""] = "SIGUSR1"
    endpoint: str = ""
    secret_key: Path | None = None
    allow: Path | None = None
    latch: str | None = None

    def __post_init__(self) -> None:
        if (self.secret_key is None) != (self.allow is None):
            raise ConfigError("estop.secret_key and estop.allow go together: give both or none")

    @property
    def security(self) -> ServerSecurity | None:
        """Keys, if given."""
        if self.secret_key is None or self.allow is None:
            return None
        return ServerSecurity(self.secret_key, self.allow)


class EStop:
    """Tripped or not, and why; and whether the robot is known to have stopped since.

    Every method may be called from any thread; `trip` from a signal handler too.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._since = object()  # marks the last moment from which on only a new stop counts
        self._newest: tuple[object, bool] | None = None  # stop: what `_since` was when it began, whether it worked
        self._can_be_undone = False
        # A SimpleQueue, because an Event's lock could be held by the very thread that a signal handler interrupts.
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()

    @property
    def tripped(self) -> bool:
        """Whether the stop is in force."""
        return self._reason is not None

    @property
    def reason(self) -> str:
        """Who or what tripped it first; empty if nothing did."""
        return self._reason or ""

    def trip(self, reason: str) -> None:
        """Stop the robot, and keep it stopped. Again: stop it again, the first reason stays."""
        if self._reason is None:
            self._reason = reason or "no reason given"
        self._since = object()
        self._wake.put(True)

    @contextlib.contextmanager
    def may_undo_stops(self) -> Generator[None, None, None]:
        """Context in which a driver takes stops back, when only it knows: none begun until its end is `stopped`."""
        self._can_be_undone = True
        try:
            yield
        finally:
            self._since = object()
            self._can_be_undone = False

    def stop(self, robot: Robot) -> None:
        """Stop the robot by `stop_robot`, and remember whether that has worked.

        Raises:
            StopFailedError, KeyboardInterrupt: see `stop_robot`.
        """
        since, has_worked = self._since, False
        try:
            stop_robot(robot)
            has_worked = True
        except KeyboardInterrupt:  # it was put off until a stop had worked
            has_worked = True
            raise
        finally:
            self._newest = (since, has_worked)

    @property
    def stopped(self) -> bool:
        """Whether the newest stop of the robot has worked, was begun after the last `trip`, and stays in force."""
        return self._newest == (self._since, True) and not self._can_be_undone

    @property
    def stop_failed(self) -> bool:
        """Whether the newest stop of the robot has failed."""
        return self._newest is not None and not self._newest[1]

    @property
    def confirmation(self) -> Confirmation:
        """What is known of the stop that is in force: `stopped`, `failed`, or `unconfirmed`; empty if none is."""
        if not self.tripped:
            return ""
        if self.stopped:
            return "stopped"
        return "failed" if self._newest == (self._since, False) else "unconfirmed"

    def rearm(self) -> None:
        """Take the stop back. Only on the explicit act of a human who has looked at the robot."""
        self._reason = None

    def wait(self) -> bool:
        """Block until the next `trip` (True) or `release` (False). One thread at a time."""
        return self._wake.get()

    def release(self) -> None:
        """Let a waiting thread go on without a stop."""
        self._wake.put(False)


class EStopGuard:
    """Context in which a tripped `EStop` calls `Robot.stop` from a thread of its own, at once.

    Without it a stop is in force from the loop's next motor command or tick on; with it also while the loop waits for
    a driver (a slow bus; on the way to the start pose see `deploy.homing`). The driver's `stop` may be called from any
    thread at any time.
    """

    def __init__(self, robot: Robot, estop: EStop) -> None:
        self._robot, self._estop = robot, estop
        self._thread = threading.Thread(target=self._run, name="e-stop", daemon=True)

    def __enter__(self) -> EStopGuard:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._estop.release()
        self._thread.join(_JOIN_S)  # it may hang in the driver

    def _run(self) -> None:
        give_way()
        while self._estop.wait():
            with contextlib.suppress(Exception):  # the loop's own stop follows
                self._estop.stop(self._robot)
