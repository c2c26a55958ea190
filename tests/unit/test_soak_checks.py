"""The soak's checker finds what it is there for: each test breaks the implementation, and the checker says so."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import conclude
from deploy.episode_runner import EpisodeRunner
from deploy.fallback import FallbackConfig, Rung
from deploy.log_writer import EpisodeLogWriter
from deploy.loop_parts import LoopConfig
from deploy.observation_checks import ObservationConfig, StaleCheck
from deploy.safety import (
    CommandLimits,
    Filtered,
    compile_limits,
)
from deploy.timing import RateSchedule, Tick
from tests.support.soak_audit import ReadLog, check_bus
from tests.support.soak_bench import LENGTH, Watched
from tests.support.soak_schedule import KINDS, make_schedule
from tests.support.soak_watch import Heartbeat
from tests.support.soak_watch_loop import WatchedClock


def test_nothing_is_found_where_nothing_is_broken(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert watched.run() == set()
    assert len(watched.log().steps) == len(watched.watch.trace.applied) == LENGTH
    assert watched.watch.trace.commands == LENGTH


@pytest.mark.parametrize(
    ("kind", "breaks"),
    [
        ("position", lambda limits: {"low": limits.low - 3, "high": limits.high + 3}),
        ("velocity", lambda limits: {"rate_mode": "warn"}),
        ("velocity", lambda limits: {"max_change": limits.max_change * np.float32(1.001)}),
        ("acceleration", lambda limits: {"acceleration_mode": "off"}),
        ("acceleration", lambda limits: {"max_change_of_change": limits.max_change_of_change * 1.001}),
    ],
    ids=["position", "velocity", "velocity_by_little", "acceleration", "acceleration_by_little"],
)
def test_a_limit_that_does_not_hold_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, breaks: Callable[[CommandLimits], dict[str, object]]
) -> None:
    def compile_broken(*arguments, **options):  # type: ignore[no-untyped-def]
        limits = compile_limits(*arguments, **options)
        return dataclasses.replace(limits, **breaks(limits))

    monkeypatch.setattr("deploy.loop_parts.compile_limits", compile_broken)
    assert Watched(tmp_path).run() == {kind}


def test_nan_on_its_way_to_the_motors_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.command_sender.filter_command", lambda command, *rest: Filtered(command, False, (), ""))
    monkeypatch.setattr(EpisodeRunner, "_checked", lambda self, action, cause: (action, cause))
    watched = Watched(tmp_path)
    watched.bench.source.actions[5] = np.nan
    assert "not_finite" in watched.run()


def test_a_command_after_a_stop_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(tmp_path)
    estop = watched.bench.parts.estop

    def stop_elsewhere() -> None:
        estop.trip("test")
        thread = threading.Thread(target=watched.bench.robot.stop)
        thread.start()
        thread.join()

    act = watched.bench.source.act
    monkeypatch.setattr(
        watched.bench.source, "act", lambda *arguments: stop_elsewhere() if arguments[1] == 4 else act(*arguments)
    )
    assert watched.run() == set()
    assert watched.watch.trace.commands == 4
    monkeypatch.setattr(type(estop), "tripped", property(lambda self: False))
    blind = Watched(tmp_path / "blind")
    estop, watched = blind.bench.parts.estop, blind
    act = watched.bench.source.act
    monkeypatch.setattr(
        watched.bench.source, "act", lambda *arguments: stop_elsewhere() if arguments[1] == 4 else act(*arguments)
    )
    assert "after_stop" in blind.run()


@pytest.mark.parametrize("counted", [False, True])
def test_a_record_that_is_lost_is_found_unless_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    add = EpisodeLogWriter._add

    def lose(self: EpisodeLogWriter, topic, record):  # type: ignore[no-untyped-def]
        if record.step_index != 7:
            add(self, topic, record)
        elif counted:
            self._lost += 1
        else:
            self._written += 1

    monkeypatch.setattr(EpisodeLogWriter, "_add", lose)
    assert Watched(tmp_path).run() == (set() if counted else {"record_lost"})


def test_records_that_are_invented_or_changed_are_found(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert watched.run() == set()
    steps, dropped = watched.log()
    changed = json.loads(json.dumps(steps))
    changed[3]["applied_command"][1] += 1e-6
    early = json.loads(json.dumps(steps))
    early[2]["wall_time_ns"] += 1
    assert {problem.kind for problem in watched.audit(ReadLog(changed, dropped))} == {"record_invented"}
    assert {problem.kind for problem in watched.audit(ReadLog([*steps, steps[-1]], dropped))} == {"record_invented"}
    surplus = {**steps[-1], "step_index": LENGTH}
    assert {problem.kind for problem in watched.audit(ReadLog([*steps, surplus], dropped))} == {"record_invented"}
    assert {problem.kind for problem in watched.audit(ReadLog(steps[::-1], dropped))} == {"record_order"}
    assert {problem.kind for problem in watched.audit(ReadLog(early, dropped))} == {"wall_time"}
    assert {problem.kind for problem in watched.audit(ReadLog(steps, 2))} == {"statistics"}


def test_a_log_that_writes_in_the_loops_thread_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = EpisodeLogWriter.append

    def eager(self: EpisodeLogWriter, record) -> bool:  # type: ignore[no-untyped-def]
        self._disk.sync(self._part._descriptor)
        return append(self, record)

    monkeypatch.setattr(EpisodeLogWriter, "append", eager)
    assert Watched(tmp_path).run() == {"blocked"}


PERIOD_NS = 10_000_000


def real_time(directory: Path, heartbeat: Heartbeat | None = None) -> Watched:
    watched = Watched(
        directory,
        loop=LoopConfig(watchdog_s=0.0),
        observation=ObservationConfig(stale=StaleCheck("off")),
        fallback=FallbackConfig((Rung("hold"), Rung("stop"))),
    )
    clock = WatchedClock(watched.watch, PERIOD_NS, PERIOD_NS, allowed_s=0.005)
    watched.watch.heartbeat = heartbeat
    watched.bench.parts = dataclasses.replace(watched.bench.parts, clock=clock)
    watched.fake._clock = clock.monotonic_ns
    return watched


def test_a_loop_that_waits_for_its_log_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = EpisodeLogWriter.append

    def slow(self: EpisodeLogWriter, record) -> bool:  # type: ignore[no-untyped-def]
        if record.step_index == 3:
            time.sleep(0.6)
        return append(self, record)

    monkeypatch.setattr(EpisodeLogWriter, "append", slow)
    assert real_time(tmp_path).run() == {"blocked"}


def test_a_schedule_that_lets_lateness_add_up_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = real_time(tmp_path / "anchored")
    heartbeat = Heartbeat()
    try:
        watched.watch.heartbeat = heartbeat
        assert watched.run() == set()
        assert watched.watch.trace.ticks > LENGTH / 2

        def relative(self: RateSchedule) -> Tick:
            scheduled = self._clock.monotonic_ns() + self._period_ns
            self._clock.sleep_until(scheduled)
            return Tick(0, scheduled, self._clock.monotonic_ns(), 0)

        monkeypatch.setattr(RateSchedule, "next_tick", relative)
        assert real_time(tmp_path / "relative", heartbeat).run() == {"schedule"}
    finally:
        heartbeat.stop()


def test_the_wire_shows_goals_beyond_limits_and_motors_on_outside_episodes() -> None:
    lines = [
        {"since": 1.4, "t": 1.5, "event": "on", "id": 1},
        {"since": 2.4, "t": 2.5, "event": "on", "id": 2},
        {"t": 3.0, "event": "off", "id": 2},
    ]
    assert check_bus(lines, [(1.0, 3.0)]) == []
    assert [problem.kind for problem in check_bus(lines, [(1.0, 2.0)])] == ["bus_on"]
    assert [problem.kind for problem in check_bus([{"t": 0.0, "event": "violation", "id": 1, "goal": 9}], [])] == [
        "bus_goal"
    ]


def test_a_schedule_follows_from_its_seed_and_knows_every_fault() -> None:
    schedule = make_schedule(5, 60)
    assert schedule == make_schedule(5, 60) != make_schedule(6, 60)
    assert [int(fault.second) for fault in schedule] == list(range(60))
    assert {fault.kind for fault in schedule[: len(KINDS)]} == set(KINDS)


@pytest.mark.parametrize("violations", [[], [{"kind": "velocity", "text": "0.2 too much", "events": ["1.0 command"]}]])
def test_a_violation_makes_the_exit_code_and_tells_the_seed(
    capsys: pytest.CaptureFixture[str], violations: list[dict[str, object]]
) -> None:
    (fault,) = make_schedule(3, 1)
    code = conclude({"ticks": 10, "violations": violations}, [(1.0, fault)], "python benchmarks/soak.py --seed 3")
    output, errors = capsys.readouterr()
    assert code == len(violations)
    assert "too busy" not in output
    if violations:
        assert "VIOLATION velocity: 0.2 too much" in output
        assert fault.kind in output
        assert "1.0 command" in output
        assert "--seed 3" in errors


def test_a_run_in_which_the_policies_hardly_acted_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"periods": 100, "steps_by_policy": {"policy 1": 4, "policy 2": 5, "local": 50}, "violations": []}
    assert conclude(summary, [], "") == 0
    assert "acted in 9 of 100 periods" in capsys.readouterr().out
    summary["steps_by_policy"] = {"policy 1": 10}
    assert conclude(summary, [], "") == 0
    assert "periods: too busy" not in capsys.readouterr().out
