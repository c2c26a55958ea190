"""Clocks and the fixed-rate schedule of the control loop.

Intervals come from the monotonic clock only. The clock is an object so that tests can run the loop on a fake one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

_PR_SET_TIMERSLACK = 29  # Linux prctl: how late the kernel may wake this thread, 50 us by default
_SWITCH_INTERVAL_S = 1e-4  # how long another thread may hold the interpreter when the loop wants to run


class Clock(Protocol):
    """Source of time."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never go backwards."""
        ...

    def wall_time_ns(self) -> int:
        """Nanoseconds since 1970; may jump. For labels only."""
        ...

    def sleep_until(self, deadline_ns: int) -> None:
        """Return at or after this monotonic time; at once if it has passed."""
        ...


class SystemClock:
    """The machine's clocks.

    Args:
        spin_ns: Busy-wait for the last part of each sleep. Wakes up more exactly and costs that much of a core.
    """

    def __init__(self, spin_ns: int = 0) -> None:
        self._spin_ns = spin_ns

    def monotonic_ns(self) -> int:
        """`time.monotonic_ns`."""
        return time.monotonic_ns()

    def wall_time_ns(self) -> int:
        """`time.time_ns`."""
        return time.time_ns()

    def sleep_until(self, deadline_ns: int) -> None:
        """Sleep, then spin for the last `spin_ns`, giving way to other threads."""
        left_ns = deadline_ns - time.monotonic_ns()
        if left_ns > self._spin_ns:
            time.sleep((left_ns - self._spin_ns) / 1e9)
        while time.monotonic_ns() < deadline_ns:
            time.sleep(0)


class Tick(NamedTuple):
    """One turn of the control loop.

    Attributes:
        period: Number of the period on the schedule; grows by more than 1 after an overrun.
        scheduled_ns: When it was due.
        started_ns: When it began; never earlier.
        skipped: Whole periods that passed unused since the previous tick.
    """

    period: int
    scheduled_ns: int
    started_ns: int
    skipped: int


class RateSchedule:
    """Ticks at `anchor + k * period`. Lateness never adds up: each tick is timed from the anchor, not the last tick.

    A tick that ends after the next one is due is an overrun. If the next one is late by no more than `tolerance_ns` it
    still runs; otherwise the loop skips to the next whole period, because two ticks in a rush would send two commands
    within less than a period.
    """

    def __init__(self, clock: Clock, period_ns: int, tolerance_ns: int = 0) -> None:
        self._clock = clock
        self._period_ns = period_ns
        self._tolerance_ns = tolerance_ns
        self._anchor_ns: int | None = None
        self._last = -1

    def next_tick(self) -> Tick:
        """Sleep until the next tick is due. The first is due at once and sets the anchor."""
        now_ns = self._clock.monotonic_ns()
        if self._anchor_ns is None:
            self._anchor_ns = now_ns
        # Smallest period after the last one that is not late by more than the tolerance (ceiling division).
        due = -((self._anchor_ns + self._tolerance_ns - now_ns) // self._period_ns)
        period = max(self._last + 1, due)
        skipped = period - self._last - 1
        self._last = period
        scheduled_ns = self._anchor_ns + period * self._period_ns
        self._clock.sleep_until(scheduled_ns)
        return Tick(period, scheduled_ns, self._clock.monotonic_ns(), skipped)


class FastSchedule:
    """Ticks without waiting, for a simulated robot whose time is its own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._period = -1

    def next_tick(self) -> Tick:
        """The next tick, due now."""
        self._period += 1
        now_ns = self._clock.monotonic_ns()
        return Tick(self._period, now_ns, now_ns, 0)


@contextlib.contextmanager
def steady_interpreter() -> Iterator[None]:
    """Keep the interpreter's own pauses out of an episode; everything is as before afterwards.

    Garbage is collected once on entry and not again; other threads (the log writer) give the interpreter back within
    0.1 ms; and on Linux the kernel wakes this thread without its usual slack. Reference counting still frees memory.
    """
    was_enabled, interval = gc.isenabled(), sys.getswitchinterval()
    gc.collect()
    gc.disable()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _set_timer_slack(1)
    try:
        yield
    finally:
        _set_timer_slack(0)  # 0 restores the default
        sys.setswitchinterval(interval)
        if was_enabled:
            gc.enable()


def use_real_time_priority(priority: int) -> str:
    """Put the calling thread, and threads it starts later, under the real-time scheduler (SCHED_FIFO, Linux).

    Nothing else on its core then delays it, except threads of higher priority.

    Returns:
        Empty if done, else why not: it needs root, CAP_SYS_NICE or an rtprio limit.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except AttributeError:
        return "this system has no real-time scheduler"
    except OSError as error:
        return f"no permission for real-time priority {priority}: {error.strerror}"
    return ""


_helper_cpus: set[int] = set()  # where helper threads go once the loop's thread is pinned


def pin_thread(cpus: Sequence[int]) -> str:
    """Let the calling thread run on these CPUs only; helper threads leave them again (Linux).

    Returns:
        Empty if done, else why not: no such CPU, or none that this process may use.
    """
    global _helper_cpus
    try:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        kept = os.sched_getaffinity(0)
    except AttributeError:
        return "this system cannot pin a thread to a CPU"
    except (OSError, ValueError, OverflowError) as error:
        return f"cannot run on CPU {', '.join(map(str, cpus))}: {error}"
    _helper_cpus = (before | _helper_cpus) - kept or kept
    if not set(cpus) <= kept:
        return f"CPU {', '.join(str(cpu) for cpu in sorted(set(cpus) - kept))} is not there; pinned to {sorted(kept)}"
    return ""


def leave_pinned_cpus() -> None:
    """Let the calling thread run on the CPUs that the control loop is not pinned to, if it is and there are others."""
    if _helper_cpus:
        with contextlib.suppress(OSError, AttributeError):
            os.sched_setaffinity(0, _helper_cpus)


def give_way() -> None:
    """Lower the calling thread's real-time priority, if it has one, below that of the thread it inherited it from.

    It stays under the real-time scheduler: a helper that another program keeps from running while it holds the
    interpreter would hold up the control loop too. It also leaves the CPUs the loop is pinned to.
    """
    leave_pinned_cpus()
    with contextlib.suppress(OSError, AttributeError):
        if os.sched_getscheduler(0) == os.SCHED_FIFO:
            lower = max(1, os.sched_getparam(0).sched_priority - 1)
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(lower))


def _set_timer_slack(nanoseconds: int) -> None:
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # a C library without prctl: wake-ups are a little later
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(nanoseconds), 0, 0, 0)
