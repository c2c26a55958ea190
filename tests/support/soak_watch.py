"""The soak's checker inside the robot process: sees every call of the loop, believes none of its numbers.

It shares no code with `deploy`: limits are plain numbers, steps are counted from the calls of the robot alone.
Shapes: O observation size, A action size.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
STARVED_S = 0.1  # a heartbeat that late means that the machine, not the loop, is to blame
IN_FLIGHT_S = 0.5  # a command whose checks were over when another thread stopped the robot
_LAST_EVENTS = 40
_ROUNDING = 2e-6  # of float32, in rad


@dataclass(frozen=True)
class Bounds:
    """What no motor command may break; [A] each, in the command's unit.

    Attributes:
        low: Lowest command.
        high: Highest command.
        velocity: Largest change per second.
        acceleration: Largest change of that per second.
        command_dt: Seconds from one motor command to the next.
        home: Command in force when an episode begins.
        resolution: Of the motors: what they apply may differ from what was sent by so much.
        ranges: (low [A], high [A]) of the commands that a policy version can lead to, by version; all if not named.
    """

    low: Array
    high: Array
    velocity: Array
    acceleration: Array
    command_dt: float
    home: Array
    resolution: float = 0.0
    ranges: dict[str, tuple[Array, Array]] = field(default_factory=dict)


class Violations:
    """What went wrong, with the events before it; also written to a file at once, if there is one."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._events: deque[str] = deque(maxlen=_LAST_EVENTS)
        self.found: list[dict[str, Any]] = []

    def event(self, text: str) -> None:
        """Remember something that happened."""
        self._events.append(f"{time.monotonic():.4f} {text}")

    def report(self, kind: str, text: str) -> None:
        """Note a violation."""
        with self._lock:
            entry = {"kind": kind, "text": text, "monotonic_s": time.monotonic(), "events": list(self._events)}
            self.found.append(entry)
            if self._path is not None:
                with self._path.open("a") as stream:
                    stream.write(json.dumps(entry) + "\n")

    @property
    def kinds(self) -> set[str]:
        """Of what was found."""
        return {str(entry["kind"]) for entry in self.found}


class Heartbeat:
    """A thread that does nothing but sleep, to tell a blocked loop from a busy or suspended machine."""

    def __init__(self, interval_s: float = 0.01) -> None:
        self._interval_s = interval_s
        self._late: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)], maxlen=1000)
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()

    def starved(self, since: float) -> bool:
        """Whether it was late at some time since then (`time.monotonic`), or is just now."""
        beats = list(self._late)
        worst = max((late for end, late in beats if end >= since), default=0.0)
        return max(worst, time.monotonic() - beats[-1][0]) > STARVED_S

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(self._interval_s):
            now = time.monotonic()
            self._late.append((now, now - before - self._interval_s))
            before = now


def waiting_s() -> float:
    """Time for which the calling thread waited for something, up to a constant: not for the processor, nor on it.

    Where the kernel does not tell (it is Linux' schedstat), simply the time.
    """
    now = time.monotonic()
    try:
        running_ns, queueing_ns, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except (OSError, ValueError):
        return now
    return now - (int(running_ns) + int(queueing_ns)) / 1e9


@dataclass
class EpisodeTrace:
    """What the checker saw of one episode.

    Attributes:
        observations: [O] float32 that each completed step started from.
        applied: [A] float32 last applied command of each.
        outcomes: [O] float32 that each ended in.
        commands: Motor commands sent.
        ticks: Periods that the loop began.
        last_period: Number of the last of them, from its deadline; -1 before the first.
        started_s: When the robot was told to start, by `time.monotonic`; infinite if it was not.
        stopped_s: When the loop had stopped it.
    """

    observations: list[npt.NDArray[np.float32]] = field(default_factory=list)
    applied: list[npt.NDArray[np.float32]] = field(default_factory=list)
    outcomes: list[npt.NDArray[np.float32]] = field(default_factory=list)
    commands: int = 0
    ticks: int = 0
    last_period: int = -1
    started_s: float = math.inf
    stopped_s: float = math.inf

    @property
    def skipped(self) -> int:
        """Periods that no tick fell into."""
        return self.last_period + 1 - self.ticks


class Watch:
    """State shared by the watched robot, clock and source of one robot process.

    Attributes:
        trace: Of the running or last episode.
        moving: Whether the loop may command the motors.
        version: Policy version that the client says is pinned for the episode.
        driver_s: Seconds for which the driver let the loop's thread wait since the loop last slept.
    """

    def __init__(self, bounds: Bounds, violations: Violations, heartbeat: Heartbeat | None = None) -> None:
        self.bounds, self.violations, self.heartbeat = bounds, violations, heartbeat
        self.trace = EpisodeTrace()
        self.moving = False
        self.version = ""
        self.driver_s = 0.0
        self.loop_thread = 0

    def is_loop(self) -> bool:
        """Whether the caller is the thread of the control loop."""
        return threading.get_ident() == self.loop_thread

    def is_starved(self, since: float) -> bool:
        """Whether the machine kept this process from running at some time since then."""
        return self.heartbeat is not None and self.heartbeat.starved(since)


class WatchedRobot:
    """A robot between the loop and the real one. Checks each command before it is passed on."""

    def __init__(self, robot: Any, watch: Watch) -> None:
        self._robot, self._watch, self._bounds = robot, watch, watch.bounds
        self._previous = self._before = self._bounds.home
        self._observation: npt.NDArray[np.float32] | None = None
        self._pending: npt.NDArray[np.float32] | None = None
        self._off = "never started"  # who stopped it, or empty
        self._off_since, self._after_off, self._stopping = 0.0, 0, False

    @property
    def spec(self) -> Any:
        return self._robot.spec

    def connect(self) -> None:
        self._robot.connect()

    def disconnect(self) -> None:
        self._robot.disconnect()

    def safe_pose_command(self) -> Any:
        return self._robot.safe_pose_command()

    def start_episode(self, seed: int | None = None) -> Any:
        watch = self._watch
        watch.loop_thread = threading.get_ident()
        watch.violations.event("start_episode")
        watch.trace = EpisodeTrace(started_s=time.monotonic())
        self._previous = self._before = self._bounds.home
        self._pending, self._off, self._after_off, self._stopping = None, "", 0, False
        watch.moving = True
        measurement = self._robot.start_episode(seed)
        self._observation = np.array(measurement.observation, np.float32)
        return measurement

    def read(self) -> Any:
        began = waiting_s()
        measurement = self._robot.read()
        self._watch.driver_s += waiting_s() - began
        outcome = np.array(measurement.observation, np.float32)
        trace = self._watch.trace
        if self._pending is not None and self._observation is not None:
            trace.observations.append(self._observation)
            trace.applied.append(self._pending)
            trace.outcomes.append(outcome)
        self._pending, self._observation = None, outcome
        return measurement

    def send_command(self, command: Any) -> Any:
        sent = np.array(command, np.float64)
        self._watch.violations.event(f"command {np.round(sent, 4).tolist()}")
        self._check_allowed()
        self._check(sent)
        began = waiting_s()
        applied = self._robot.send_command(command)
        self._watch.driver_s += waiting_s() - began
        received = np.array(applied, np.float32)
        self._check_applied(sent, received.astype(np.float64))
        self._before, self._previous = self._previous, received.astype(np.float64)
        self._pending = received
        self._watch.trace.commands += 1
        return applied

    def stop(self) -> None:
        self._stopping = True
        try:
            self._robot.stop()
        finally:
            by = "loop" if self._watch.is_loop() else "another thread"
            if self._off != "loop":
                self._off, self._off_since = by, time.monotonic()
            if by == "loop":
                self._watch.moving = False
                self._watch.trace.stopped_s = min(self._watch.trace.stopped_s, time.monotonic())
            self._watch.violations.event(f"stop by {by}")

    def _check_allowed(self) -> None:
        if not self._off:
            return
        self._after_off += 1
        age = time.monotonic() - self._off_since
        # The other thread may have come between the loop's last look at the e-stop and its call of the driver.
        in_flight = self._off == "another thread" and self._after_off == 1
        if not in_flight or (age > IN_FLIGHT_S and not self._watch.is_starved(self._off_since)):
            self._fail("after_stop", f"command {self._after_off}, {age:.3f} s after a stop by {self._off}")

    def _check(self, sent: Array) -> None:
        bounds, dt = self._bounds, self._bounds.command_dt
        if not np.isfinite(sent).all():
            self._fail("not_finite", f"{sent.tolist()}")
            return
        outside = np.maximum(bounds.low - sent, sent - bounds.high)
        if outside.max() > _ROUNDING:
            self._fail("position", f"beyond by {outside.max():.6g}: {sent.tolist()}")
        change = sent - self._previous
        excess = np.abs(change) - bounds.velocity * dt
        if excess.max() > _ROUNDING:
            self._fail("velocity", f"changed by {change.tolist()}, {excess.max():.6g} too much")
        # Motors that round let the loop come to a position limit a little faster than it could brake for.
        bend = np.abs(change - (self._previous - self._before)) - bounds.acceleration * dt**2
        if bend.max() > _ROUNDING + 2 * bounds.resolution:
            self._fail("acceleration", f"change {change.tolist()} bends by {bend.max():.6g} too much")
        low, high = bounds.ranges.get(self._watch.version, (-np.inf, np.inf))
        if (sent < low).any() or (sent > high).any():
            self._fail("stale_policy", f"{sent.tolist()} is no command of policy {self._watch.version[:12]}")

    def _check_applied(self, sent: Array, applied: Array) -> None:
        if self._stopping:  # a driver that is being stopped applies nothing
            return
        if not np.isfinite(applied).all() or np.abs(applied - sent).max() > self._bounds.resolution + _ROUNDING:
            self._fail("applied", f"sent {sent.tolist()}, the motors got {applied.tolist()}")

    def _fail(self, kind: str, text: str) -> None:
        self._watch.violations.report(kind, text)
