"""The whole control loop under random faults: no command against the state, beyond a limit, or after a stop."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.control_loop import ControlLoop
from deploy.fallback import FallbackConfig, Rung
from deploy.loop_parts import EndReason, LoopConfig, LoopParts
from deploy.robot import FloatArray, Measurement
from deploy.robot_state import State
from deploy.safety import AccelerationLimit, PositionLimit, RateLimit, SafetyConfig, WatchedTerm
from tests.support.loop_bench import MS, SPEC, Bench

TICKS = 25
COUNT = 2
LADDER = FallbackConfig((Rung("hold", ticks=2), Rung("local", ticks=3), Rung("safe_pose", ticks=2), Rung("stop")))
SAFETY = SafetyConfig(
    PositionLimit(margin=0.05),
    RateLimit(max_per_second={"default": 300.0}),
    AccelerationLimit(max_per_second2={"default": 60_000.0}),
    watch=(WatchedTerm("info.heat", high=50.0, mode="clamp", soft_zone=10.0), WatchedTerm("info.load", max_abs=9.0)),
)
ticks = st.integers(0, TICKS - 1)
faults = st.fixed_dictionaries(
    {
        "missing": st.sets(ticks),
        "nan_action": st.sets(ticks, max_size=5),
        "nan_reading": st.sets(ticks, max_size=5),
        "stale": st.sets(ticks, max_size=5),
        "hot": st.sets(ticks, max_size=8),
        "slow": st.sets(ticks, max_size=3),
        "overload": st.none() | ticks,
        "estop": st.none() | st.integers(0, COUNT * TICKS - 1),
        "crash": st.none() | st.integers(0, COUNT * TICKS - 1),
        "watch_local": st.booleans(),
    }
)


@pytest.fixture(autouse=True, scope="module")
def _small_heap() -> Iterator[None]:
    """Each episode collects garbage once, which takes long in a process as full as a test runner."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Observer:
    """Plays the faults and checks each command as a motor would see it."""

    def __init__(self, bench: Bench, script: dict[str, Any]) -> None:
        self.bench, self.script = bench, script
        self.before = self.previous = bench.robot.safe_pose.astype(np.float64)
        bench.source.missing = tuple(script["missing"])
        for k in script["nan_action"]:
            bench.source.actions[k] = np.nan
        if script["watch_local"]:
            bench.local.actions[:] = np.nan
        bench.robot._edit, bench.robot._on_send = self.edit, self.on_send

    def edit(self, k: int, measurement: Measurement) -> Measurement:
        script = self.script
        observation = measurement.observation * np.float32(np.nan if k in script["nan_reading"] else 1.0)
        info = {"heat": 57.0 if k in script["hot"] else 20.0, "load": 99.0 if k == script["overload"] else 1.0}
        age = 15 * MS if k in script["stale"] else 0
        return measurement._replace(observation=observation, monotonic_ns=measurement.monotonic_ns - age, info=info)

    def on_send(self, k: int, command: FloatArray) -> None:
        assert self.bench.state() in (State.RUN, State.FALLBACK)
        assert "stop" not in self.bench.robot.calls, "a command after the robot was stopped"
        assert not self.bench.parts.estop.tripped, "a command after the e-stop"
        assert np.isfinite(command).all()
        width = SPEC.command_high - SPEC.command_low
        assert (command >= SPEC.command_low + 0.05 * width - 1e-5).all()
        assert (command <= SPEC.command_high - 0.05 * width + 1e-5).all()
        change = command.astype(np.float64) - self.previous
        assert (np.abs(change) <= 300.0 / 200 + 1e-5).all()
        assert (np.abs(change - (self.previous - self.before)) <= 60_000.0 / 200**2 + 1e-5).all()
        self.before, self.previous = self.previous, command.astype(np.float64)
        if k // COUNT in self.script["slow"]:
            self.bench.clock.advance(17 * MS)
        if k == self.script["estop"]:
            self.bench.parts.estop.trip("test")
        if k == self.script["crash"]:
            raise OSError("cable")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=faults)
def test_whatever_fails_commands_stay_within_state_and_limits(
    tmp_path_factory: pytest.TempPathFactory, script: dict[str, Any]
) -> None:
    bench = Bench(
        tmp_path_factory.mktemp("run"),
        length=COUNT * TICKS,
        loop=LoopConfig(command_rate=COUNT / SPEC.control_dt, interpolation="linear", watchdog_s=0.0),
        safety=SAFETY,
        fallback=LADDER,
        open_log=None,
    )
    Observer(bench, script)
    bench.loop = ControlLoop(bench.robot, bench.parts)
    crashed = False
    try:
        result = bench.loop.run_episode("ep", seed=0)
    except OSError:
        crashed = True
    assert bench.robot.calls[-1] == "stop"
    if crashed:
        assert bench.state() is State.FAULT
        return
    assert (bench.state() is State.FAULT) == result.reason.is_fault
    assert result.state is bench.state()
    assert result.steps >= result.statistics.steps - 1
    assert sum(result.statistics.misses.values()) <= result.statistics.steps + 1
    if bench.parts.estop.tripped:
        assert result.reason is EndReason.ESTOP or len(bench.robot.commands) == COUNT * TICKS


class Counting:
    """A log that keeps nothing, so that only the loop's own memory is measured."""

    dropped, error, written = 0, None, 0

    def describe(self, *_: object) -> None:
        pass

    def append(self, record: object) -> bool:
        self.written += 1
        return True

    append_invalid = append

    def close(self, statistics: object = None) -> None:
        pass


def test_memory_of_the_loop_does_not_grow_with_its_ticks(tmp_path: Path) -> None:
    bench, log = Bench(tmp_path, length=0), Counting()
    source, robot = bench.source, bench.robot
    source.actions = np.resize(source.actions, (1500, 2))
    source.missing = tuple(range(7, 1500, 10))  # soon as many changes of state as are kept
    marks, sizes, garbage = iter((400, 1000)), [], []
    mark = next(marks)

    def on_send(k: int, command: FloatArray) -> None:
        nonlocal mark
        for kept in (robot.calls, robot.measurements, source.asked, bench.clock.sleeps):
            kept.clear()  # what the test's own parts keep
        robot.commands[:] = [command]
        if log.written == mark:
            # Collecting empties Python's lists of free tuples, which fill up to a bound. Within an episode nothing is
            # collected, so garbage that only the collector finds would be a leak too.
            garbage.append(gc.collect())
            sizes.append(tracemalloc.get_traced_memory()[0])
            mark = next(marks, -1)

    robot._on_send = on_send
    parts = LoopParts(
        source=source,
        loop=LoopConfig(command_rate=200.0, interpolation="linear", watchdog_s=0.0, max_steps=1010),
        open_log=lambda name: log,  # type: ignore[arg-type, return-value]
        clock=bench.clock,
    )
    tracemalloc.start()
    try:
        ControlLoop(robot, parts).run_episode("long", seed=0)
    finally:
        tracemalloc.stop()
    assert garbage[1] < 100, f"{garbage[1]} objects in reference cycles from 600 ticks"
    assert sizes[1] - sizes[0] < 2_000, f"grew by {sizes[1] - sizes[0]} bytes in 600 ticks"
