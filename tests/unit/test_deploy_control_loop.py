from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.action_source import Action
from deploy.fallback import FallbackConfig, Rung
from deploy.frozen_check import FrozenCheck
from deploy.log_reader import read_log
from deploy.log_writer import EpisodeLogWriter
from deploy.loop_parts import EndReason, LoopConfig
from deploy.observation_checks import ObservationConfig, OrderCheck
from deploy.robot import FloatArray, Measurement, RobotError
from deploy.robot_state import State
from deploy.safety import PositionLimit, Range, RateLimit, SafetyConfig, WatchedTerm
from mpo_robot.episode import Source, episodes_from_records
from mpo_robot.errors import ConfigError, EpisodeError
from tests.support.loop_bench import MS, SPEC, Bench

LADDER = FallbackConfig((Rung("hold", ticks=2), Rung("local", ticks=2), Rung("safe_pose", ticks=2), Rung("stop")))
NO_LOCAL = FallbackConfig((Rung("hold", ticks=2), Rung("stop")))


@pytest.fixture(autouse=True, scope="module")
def _small_heap() -> Iterator[None]:
    """Each episode collects garbage once, which takes long in a process as full as a test runner."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_episode_is_logged_exactly(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    result, log = bench.run()
    robot, source = bench.robot, bench.source
    assert result.reason is EndReason.TRUNCATED
    assert result.steps == len(log.records) == len(robot.commands) == 8
    for k, record in enumerate(log.records):
        before, after = robot.measurements[k], robot.measurements[k + 1]
        np.testing.assert_array_equal(record.observation, before.observation)
        np.testing.assert_array_equal(record.next_observation, after.observation)
        np.testing.assert_array_equal(record.policy_action, source.actions[k])
        np.testing.assert_array_equal(record.command, SPEC.to_command(source.actions[k]))
        np.testing.assert_array_equal(record.applied_command, robot.commands[k])
        np.testing.assert_array_equal(record.sent_action, SPEC.to_action(robot.commands[k]))
        assert record.behavior_log_prob == -1.0 - k
        assert record.reward == after.reward
        assert record.monotonic_ns == before.monotonic_ns
        assert record.wall_time_ns - record.monotonic_ns == bench.clock.wall_time_ns() - bench.clock.monotonic_ns()
        assert record.latency_ns == MS
        assert (record.source, record.policy_version, record.spec_hash) == (Source.POLICY, "v1", SPEC.spec_hash)
        assert not record.action_modified, "clipping a sampled action to the bounds is no modification"
        assert not record.deadline_missed
        assert (record.terminated, record.truncated) == (False, k == 7)
    assert any(np.abs(record.policy_action).max() > 1 for record in log.records), "no sample was clipped"
    assert result.undiscounted_return == pytest.approx(sum(record.reward for record in log.records))
    assert log.metadata["info"] == {"randomization": {"mass": 1.5}}
    assert log.metadata["statistics"]["end_reason"] == "truncated"
    assert log.metadata["statistics"]["latency_us"] == {"p50": 1000.0, "p99": 1000.0, "max": 1000.0}
    (episode,) = episodes_from_records(log.records, SPEC)
    assert episode.trace_valid.all()
    assert source.maintained == 8


def test_ticks_and_deadlines_are_absolute(tmp_path: Path) -> None:
    bench = Bench(tmp_path, loop=LoopConfig(deadline=0.4))
    bench.run()
    anchor = 1_000_000_000
    assert bench.source.asked == [(k, anchor + k * 10 * MS + 4 * MS) for k in range(8)]


def test_robot_is_stopped_before_the_log_is_closed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    class Spy(EpisodeLogWriter):
        def close(self, statistics: object = None) -> None:
            bench.robot.calls.append("close_log")
            super().close(statistics)  # type: ignore[arg-type]

    bench.parts = dataclasses.replace(bench.parts, open_log=lambda name: Spy(tmp_path, SPEC, name))
    bench.run()
    calls = bench.robot.calls
    assert calls.index("stop") < calls.index("close_log")
    assert "send_command" not in calls[calls.index("stop") :]


def test_termination_is_not_truncation(tmp_path: Path) -> None:
    bench = Bench(tmp_path, edit=lambda k, m: m._replace(terminated=k == 3, truncated=k == 3))
    result, log = bench.run()
    assert result.reason is EndReason.TERMINATED
    assert [(r.terminated, r.truncated) for r in log.records] == [(False, False)] * 2 + [(True, False)]


def test_max_steps_truncates(tmp_path: Path) -> None:
    result, log = Bench(tmp_path, loop=LoopConfig(max_steps=4)).run()
    assert result.reason is EndReason.MAX_STEPS
    assert len(log.records) == 4
    assert log.records[-1].truncated


def test_operator_stop_keeps_the_outcome_of_the_last_step(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.parts = dataclasses.replace(bench.parts, should_stop=lambda: len(bench.robot.commands) == 5)
    result, log = bench.run()
    assert result.reason is EndReason.OPERATOR
    assert not result.reason.is_fault
    assert len(log.records) == 5
    assert log.records[-1].truncated
    assert log.complete


def test_fallback_ladder_end_to_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, length=20, fallback=LADDER)
    bench.source.missing = tuple(range(3, 99))
    result, log = bench.run()
    robot = bench.robot
    assert result.reason is EndReason.FALLBACK
    assert result.detail.endswith("ladder: scripted")
    assert len(robot.commands) == 3 + 2 + 2 + 2
    policy, hold, local, safe = log.records[:3], log.records[3:5], log.records[5:7], log.records[7:]
    assert len(safe) == 2
    for record in policy:
        assert not record.deadline_missed
    for record in hold:
        np.testing.assert_array_equal(record.applied_command, robot.commands[2])
        assert record.source is Source.FALLBACK
        assert record.policy_version == ""
        assert math.isnan(record.behavior_log_prob)
        assert record.action_modified
    for record in local:
        np.testing.assert_array_equal(record.policy_action, bench.local.actions[record.step_index])
        assert record.source is Source.POLICY
        assert record.policy_version == "local"
        assert record.behavior_log_prob == -1.0 - record.step_index
        assert not record.action_modified
    for record in safe:
        np.testing.assert_array_equal(record.applied_command, robot.safe_pose)
        assert record.source is Source.FALLBACK
    assert all(record.deadline_missed for record in [*hold, *local, *safe])
    assert result.statistics.deadline_misses == 7
    assert dict(result.statistics.fallbacks) == {"hold": 2, "local": 2, "safe_pose": 2, "stop": 1}
    (episode,) = episodes_from_records(log.records, SPEC)
    assert episode.trace_valid.tolist() == [True] * 3 + [False] * 2 + [True] * 2 + [False] * 2
    assert robot.calls[-1] == "stop"


def test_policy_comes_back_after_a_miss(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fallback=NO_LOCAL)
    bench.source.missing = (3, 5, 6)
    result, log = bench.run()
    assert result.reason is EndReason.TRUNCATED
    assert [r.source is Source.POLICY for r in log.records] == [True, True, True, False, True, False, False, True]


def test_first_period_without_action_holds_the_safe_pose(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fallback=NO_LOCAL)
    bench.source.missing = (0,)
    bench.run()
    np.testing.assert_array_equal(bench.robot.commands[0], bench.robot.safe_pose)


def test_nan_action_is_rejected_and_not_a_missed_deadline(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fallback=NO_LOCAL)
    bench.source.actions[2, 1] = np.nan
    result, log = bench.run()
    assert result.statistics.rejected_actions == 1
    np.testing.assert_array_equal(bench.robot.commands[2], bench.robot.commands[1])
    assert log.records[2].source is Source.FALLBACK
    assert not log.records[2].deadline_missed


def test_local_policy_that_gives_nan_is_passed_over(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fallback=LADDER)
    bench.source.missing = tuple(range(99))
    bench.local.actions[:] = np.nan
    result, _ = bench.run()
    assert dict(result.statistics.fallbacks) == {"hold": 2, "safe_pose": 2, "stop": 1}


def test_local_rung_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="policy_path"):
        Bench(tmp_path, fallback=LADDER, local=None).run()


def test_safety_change_is_logged_as_modified(tmp_path: Path) -> None:
    rate = RateLimit(max_per_second={"default": 50.0})
    result, log = Bench(tmp_path, safety=SafetyConfig(rate=rate)).run()
    previous = np.full(2, 0.25, np.float32)
    for record in log.records:
        assert np.abs(record.applied_command - previous).max() <= 0.5 + 1e-5
        assert record.action_modified == (not np.array_equal(record.command, record.applied_command))
        np.testing.assert_array_equal(record.sent_action, SPEC.to_action(record.applied_command))
        previous = record.applied_command
    assert 0 < result.statistics.modified == result.statistics.faults["rate"]


def test_safety_stop_sends_nothing_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path, safety=SafetyConfig(position=PositionLimit(mode="stop", margin=0.2)))
    result, log = bench.run()
    assert result.reason is EndReason.SAFETY
    assert result.reason.is_fault
    assert "position limit" in result.detail
    assert len(log.records) == len(bench.robot.commands) < 8


def test_watched_term_stops(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path,
        edit=lambda k, m: m._replace(observation=m.observation * 0 + (9.0 if k == 4 else 0.1)),
        safety=SafetyConfig(watch=(WatchedTerm("state", 5.0),)),
    )
    result, log = bench.run()
    assert result.reason is EndReason.SAFETY
    assert result.detail == "state is 9, limit 5"
    assert log.records[-1].truncated
    assert len(log.records) == 4


def test_command_changed_by_the_robot_is_modified_beyond_the_tolerance(tmp_path: Path) -> None:
    for tolerance, expected in ((0.0, True), (1e-2, False)):
        directory = tmp_path / str(tolerance)
        bench = Bench(directory, safety=SafetyConfig(applied_tolerance=tolerance))
        bench.robot._on_send = lambda k, command: command * np.float32(0.997)
        _, log = bench.run()
        assert {record.action_modified for record in log.records} == {expected}
        assert not np.array_equal(log.records[0].command, log.records[0].applied_command)


@pytest.mark.parametrize("wild", [50.0, 4.1, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [1, 2])
def test_applied_command_that_cannot_be_is_a_fault_and_no_base_for_another(
    tmp_path: Path, wild: float, count: int
) -> None:
    safety = SafetyConfig(rate=RateLimit(max_per_second={"default": 20.0}), applied_tolerance=0.01)
    bench = Bench(tmp_path, safety=safety, loop=LoopConfig(command_rate=count * 100.0))
    bench.robot._on_send = lambda k, command: np.full(2, wild, np.float32) if k == 3 else command
    result, log = bench.run()
    assert (result.reason, bench.state()) == (EndReason.SAFETY, State.FAULT)
    assert (
        f"the applied command that the robot reports is {wild:.6g} for 'motor', allowed from -2.03 to 4.03"
        in result.detail
    )
    assert len(bench.robot.commands) == 4
    assert result.statistics.faults["applied"] == 1
    assert [record.step_index for record in log.invalid_records] == [3 // count]


def test_applied_command_within_the_tolerance_or_rounding_beyond_the_bounds_is_no_fault(tmp_path: Path) -> None:
    for tolerance, beyond in ((0.01, 0.02), (0.0, 1e-7)):
        bench = Bench(tmp_path / str(tolerance), safety=SafetyConfig(applied_tolerance=tolerance))
        bench.robot._on_send = lambda k, command, e=beyond: np.full(2, 4.0 * (1 + e / 4), np.float32)
        assert bench.run()[0].reason is EndReason.TRUNCATED


def test_robot_whose_safe_pose_no_command_may_reach_gets_none(tmp_path: Path) -> None:
    terms = {"motor": Range(low=0.5)}  # the safe pose is 0.25: a first command within would be a jump
    bench = Bench(tmp_path, safety=SafetyConfig(PositionLimit(terms=terms)))
    result, _ = bench.run()
    assert "the safe pose that the robot reports is 0.25 for 'motor', allowed from 0.5 to 4" in result.detail
    assert not bench.robot.commands


def test_unfit_reading_is_neither_acted_on_nor_learned_from(tmp_path: Path) -> None:
    def spoil(k: int, m: Measurement) -> Measurement:
        return m._replace(observation=m.observation * np.float32(np.nan)) if k == 3 else m

    bench = Bench(tmp_path, edit=spoil, fallback=NO_LOCAL)
    result, log = bench.run()
    assert 3 not in [step for step, _ in bench.source.asked]
    np.testing.assert_array_equal(bench.robot.commands[3], bench.robot.commands[2])
    assert [record.step_index for record in log.records] == [0, 1, 4, 5, 6, 7]
    assert [record.step_index for record in log.invalid_records] == [2, 3]
    assert result.statistics.invalid_steps == 2
    assert result.statistics.faults["non_finite"] == 1
    assert not log.invalid_records[1].deadline_missed
    assert [len(episode) for episode in episodes_from_records(log.records, SPEC)] == [2, 4]


def test_stale_reading_goes_down_the_ladder(tmp_path: Path) -> None:
    bench = Bench(tmp_path, edit=lambda k, m: m._replace(monotonic_ns=m.monotonic_ns - 15 * MS * (k >= 4)), length=20)
    bench.parts = dataclasses.replace(bench.parts, fallback=NO_LOCAL)
    result, _ = bench.run()
    assert result.reason is EndReason.FALLBACK
    assert result.statistics.faults["stale"] == 3


def test_observation_check_can_stop(tmp_path: Path) -> None:
    checks = ObservationConfig(order=OrderCheck("stop"), frozen=FrozenCheck("off"))
    result, _ = Bench(tmp_path, edit=lambda k, m: m._replace(monotonic_ns=5), observation=checks).run()
    assert result.reason is EndReason.SAFETY


def test_overrun_is_counted_and_the_schedule_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def slow(k: int, command: FloatArray) -> None:
        if k == 2:
            bench.clock.advance(24 * MS)

    bench.robot._on_send = slow
    result, log = bench.run()
    assert (result.statistics.overruns, result.statistics.skipped_periods) == (1, 2)
    ticks = [(record.monotonic_ns - 1_000_000_000) / (10 * MS) for record in log.records]
    assert ticks == [0, 1, 2, 5, 6, 7, 8, 9]


def test_late_action_of_a_local_policy_is_used_but_marked(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.source.latency_ns = 6 * MS
    result, log = bench.run()
    assert result.statistics.deadline_misses == 8
    assert all(record.deadline_missed and record.source is Source.POLICY for record in log.records)


def test_fast_pace_does_not_sleep_and_counts_its_deadline_from_asking(tmp_path: Path) -> None:
    bench = Bench(tmp_path, loop=LoopConfig(pace="fast", fast_timeout_s=2.0))
    result, _ = bench.run()
    assert bench.clock.sleeps == []
    assert bench.source.asked == [(k, 1_000_000_000 + k * MS + 2_000_000_000) for k in range(8)]
    assert result.statistics.overruns == 0


@pytest.mark.parametrize("where", ["send", "read", "maintain"])
def test_exception_stops_the_robot_and_closes_the_log(tmp_path: Path, where: str) -> None:
    bench = Bench(tmp_path)

    def fail(k: int, value: object) -> object:
        if k == 4:
            raise OSError("cable")
        return value

    if where == "send":
        bench.robot._on_send = fail  # type: ignore[assignment]
    elif where == "read":
        bench.robot._edit = fail  # type: ignore[assignment]
    else:
        bench.source.maintain = lambda: fail(len(bench.robot.commands) - 1, None)  # type: ignore[method-assign]
    with pytest.raises(OSError, match="cable"):
        bench.run()
    assert bench.robot.calls[-1] == "stop"
    log = read_log(tmp_path / "ep.mcap")
    assert log.complete
    assert log.metadata["statistics"]["end_reason"] == "error"
    assert "cable" in log.metadata["statistics"]["end_detail"]
    assert len(log.records) == {"send": 4, "read": 3, "maintain": 4}[where]
    assert gc.isenabled()


def test_failed_start_stops_the_robot_and_leaves_no_log(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def fail(seed: int | None) -> Measurement:
        raise OSError("no power")

    bench.robot.start_episode = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no power"):
        bench.run()
    assert bench.robot.calls[-1] == "stop"
    assert list(tmp_path.iterdir()) == []


def test_log_that_cannot_be_opened_is_found_before_the_robot_moves(tmp_path: Path) -> None:
    (tmp_path / "ep.mcap").touch()
    bench = Bench(tmp_path)
    with pytest.raises(EpisodeError, match="never overwritten"):
        bench.run()
    assert "start_episode" not in bench.robot.calls


def test_stop_is_tried_again_and_its_failure_reported(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    attempts: list[int] = []

    def broken_stop() -> None:
        attempts.append(1)
        if len(attempts) in (1, 2):
            raise OSError("bus busy")

    bench.robot.stop = broken_stop  # type: ignore[method-assign]
    result, log = bench.run()
    assert result.reason is EndReason.TRUNCATED
    assert log.complete
    assert len(attempts) >= 3


def test_wrong_shapes_from_a_driver_are_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path, edit=lambda k, m: m._replace(observation=m.observation[:2]) if k == 2 else m)
    with pytest.raises(RobotError, match=r"read\(\) returned an observation of shape \(2,\)"):
        bench.run()
    assert bench.robot.calls[-1] == "stop"


def test_buffers_reused_by_a_driver_do_not_change_the_log(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "plain")
    _, expected = bench.run()
    buffer = np.zeros(3, np.float32)

    def reuse(k: int, m: Measurement) -> Measurement:
        buffer[:] = m.observation
        return m._replace(observation=buffer)

    def overwrite(k: int, command: FloatArray) -> FloatArray:
        result = command.copy()
        command[:] = 99
        return result

    bench = Bench(tmp_path / "reused", edit=reuse)
    bench.robot._on_send = overwrite
    _, log = bench.run()
    for left, right in zip(log.records, expected.records, strict=True):
        np.testing.assert_array_equal(left.observation, right.observation)
        np.testing.assert_array_equal(left.next_observation, right.next_observation)
        np.testing.assert_array_equal(left.command, right.command)


def test_nothing_is_sent_after_the_watchdog_has_stopped_the_robot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, loop=LoopConfig(watchdog_s=0.1))
    act = bench.source.act

    def be_suspended(observation: FloatArray, step_index: int, deadline_ns: int) -> Action | None:
        while step_index == 3 and "stop" not in bench.robot.calls:
            time.sleep(0.001)
        return act(observation, step_index, deadline_ns)

    monkeypatch.setattr(bench.source, "act", be_suspended)
    result, log = bench.run()
    assert result.reason is EndReason.WATCHDOG
    assert "send_command" not in bench.robot.calls[bench.robot.calls.index("stop") :]
    assert len(bench.robot.commands) == len(log.records) == 3


def test_too_short_watchdog_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="watchdog_s"):
        Bench(tmp_path, loop=LoopConfig(watchdog_s=0.02)).run()


@pytest.mark.parametrize(
    "settings",
    [
        {"deadline": 0.0},
        {"deadline": 1.1},
        {"late_tolerance": 1.0},
        {"fast_timeout_s": 0},
        {"spin_s": -1},
        {"command_rate": -1.0},
        {"command_rate": 5e6},
        {"command_rate": np.nan},
    ],
)
def test_senseless_loop_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match="loop"):
        LoopConfig(**settings)
