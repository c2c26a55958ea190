from __future__ import annotations

import gc
import os
import sys
import threading
import time

import pytest

from deploy.timing import (
    FastSchedule,
    RateSchedule,
    SystemClock,
    give_way,
    steady_interpreter,
    use_real_time_priority,
)
from tests.support.fake_clock import FakeClock

MS = 1_000_000


def test_ticks_stay_on_the_anchor_however_long_the_work() -> None:
    clock = FakeClock(oversleep_ns=30_000)
    schedule = RateSchedule(clock, 10 * MS)
    anchor = clock.monotonic_ns()
    for k in range(1000):
        tick = schedule.next_tick()
        assert tick.scheduled_ns == anchor + k * 10 * MS
        assert tick.skipped == 0
        assert 0 <= tick.started_ns - tick.scheduled_ns <= 30_000
        clock.advance(k % 9 * MS)


def test_overrun_skips_whole_periods_and_is_counted() -> None:
    clock = FakeClock()
    schedule = RateSchedule(clock, 10 * MS)
    first = schedule.next_tick()
    clock.advance(35 * MS)
    late = schedule.next_tick()
    assert late.period == 4
    assert late.skipped == 3
    assert late.scheduled_ns == late.started_ns == first.scheduled_ns + 40 * MS
    assert schedule.next_tick().period == 5


def test_tick_within_the_tolerance_starts_late_instead_of_skipping() -> None:
    clock = FakeClock()
    schedule = RateSchedule(clock, 10 * MS, tolerance_ns=2 * MS)
    anchor = schedule.next_tick().scheduled_ns
    clock.advance(12 * MS)
    late = schedule.next_tick()
    assert (late.period, late.skipped) == (1, 0)
    assert late.started_ns - late.scheduled_ns == 2 * MS
    assert schedule.next_tick().scheduled_ns == anchor + 20 * MS
    clock.advance(12 * MS + 1)
    assert schedule.next_tick().skipped == 1


def test_work_that_ends_exactly_when_the_next_tick_is_due_is_no_overrun() -> None:
    clock = FakeClock()
    schedule = RateSchedule(clock, 10 * MS)
    schedule.next_tick()
    clock.advance(10 * MS)
    assert schedule.next_tick().skipped == 0


def test_anchor_is_the_first_tick_not_the_construction() -> None:
    clock = FakeClock()
    schedule = RateSchedule(clock, 10 * MS)
    clock.advance(123 * MS)
    tick = schedule.next_tick()
    assert (tick.period, tick.skipped, tick.started_ns - tick.scheduled_ns) == (0, 0, 0)


def test_fast_schedule_never_sleeps() -> None:
    clock = FakeClock()
    schedule = FastSchedule(clock)
    assert [schedule.next_tick().period for _ in range(3)] == [0, 1, 2]
    assert clock.sleeps == []


@pytest.mark.parametrize("spin_ns", [0, 300_000])
def test_system_clock_never_wakes_early(spin_ns: int) -> None:
    clock = SystemClock(spin_ns)
    for _ in range(5):
        deadline = clock.monotonic_ns() + MS
        clock.sleep_until(deadline)
        assert clock.monotonic_ns() >= deadline
    clock.sleep_until(clock.monotonic_ns() - MS)
    assert abs(clock.wall_time_ns() - time.time_ns()) < 60_000_000_000


def test_interpreter_is_steady_inside_and_as_before_outside() -> None:
    interval = sys.getswitchinterval()
    assert gc.isenabled()
    inside: list[bool] = []

    def fail() -> None:
        with steady_interpreter():
            inside.extend((gc.isenabled(), sys.getswitchinterval() < interval))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert inside == [False, True]
    assert gc.isenabled()
    assert sys.getswitchinterval() == pytest.approx(interval)


def test_real_time_priority_is_taken_or_explained_and_helpers_stay_below() -> None:
    seen: list[object] = []

    def use() -> None:  # in a thread of its own: the priority is the thread's, and it would keep it
        problem = use_real_time_priority(7)
        seen.append(problem)
        seen.append("" if problem else os.sched_getparam(0).sched_priority)
        give_way()
        seen.append("" if problem else os.sched_getparam(0).sched_priority)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    if seen[0]:
        assert "real-time" in str(seen[0])
    else:
        assert seen[1:] == [7, 6]


def test_disabled_collector_stays_disabled() -> None:
    gc.disable()
    try:
        with steady_interpreter():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
