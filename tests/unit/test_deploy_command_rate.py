"""Motor commands faster than the policy: their times, values, limits, and what the log says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.interpolation import command_at
from deploy.log_reader import LogContents
from deploy.loop_parts import EndReason, LoopConfig
from deploy.robot import FloatArray
from deploy.robot_state import State
from deploy.safety import AccelerationLimit, PositionLimit, RateLimit, SafetyConfig
from mpo_robot.episode import episodes_from_records
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec
from tests.support.loop_bench import MS, SPEC, Bench

COUNT = 4  # 400 Hz commands of a 100 Hz policy
STEPS = 6


def loop(**settings: Any) -> LoopConfig:
    return LoopConfig(**{"command_rate": 400.0, "interpolation": "linear", **settings})


def bench(directory: Path, config: LoopConfig, **parts: Any) -> Bench:
    return Bench(directory, length=COUNT * STEPS, loop=config, **parts)


def targets(log: LogContents) -> list[FloatArray]:
    return [record.command for record in log.records]


def test_commands_are_sent_when_due_whatever_the_policy_takes(tmp_path: Path) -> None:
    setup = bench(tmp_path, loop())
    times: list[int] = []
    setup.robot._on_send = lambda k, command: times.append(setup.clock.now_ns)
    result, _ = setup.run()
    anchor = 1_000_000_000
    expected = [
        anchor + k * 10 * MS + (MS if j == 0 else round(j * 2.5 * MS)) for k in range(STEPS) for j in range(COUNT)
    ]
    assert times == expected, "the first command waits for the policy, the others for nobody"
    assert (result.statistics.steps, result.statistics.commands) == (STEPS, COUNT * STEPS)
    assert result.statistics.skipped_commands == 0


def test_linear_commands_lead_from_one_action_to_the_next_and_one_step_is_logged_per_action(tmp_path: Path) -> None:
    setup = bench(tmp_path, loop())
    result, log = setup.run()
    assert result.reason is EndReason.TRUNCATED
    assert len(log.records) == STEPS
    start = setup.robot.safe_pose
    for k, record in enumerate(log.records):
        sent = setup.robot.commands[COUNT * k : COUNT * (k + 1)]
        for j, command in enumerate(sent):
            np.testing.assert_array_equal(command, command_at(start, record.command, j, COUNT, "linear"))
        np.testing.assert_array_equal(record.applied_command, sent[-1])
        np.testing.assert_array_equal(record.applied_command, SPEC.to_command(setup.source.actions[k]))
        assert not record.action_modified
        start = record.applied_command
    assert log.metadata["info"]["commands"] == {"per_step": COUNT, "interpolation": "linear"}
    (episode,) = episodes_from_records(log.records, SPEC)
    assert episode.trace_valid.all()


def test_first_command_of_an_episode_is_a_small_step_from_the_start_pose(tmp_path: Path) -> None:
    setup = bench(tmp_path, loop())
    setup.source.actions[0] = (5.0, -5.0)
    setup.run()
    first, target = setup.robot.commands[0], SPEC.to_command(setup.source.actions[0])
    np.testing.assert_allclose(first - setup.robot.safe_pose, (target - setup.robot.safe_pose) / COUNT, rtol=1e-5)


def test_hold_repeats_the_command(tmp_path: Path) -> None:
    setup = bench(tmp_path, loop(interpolation="hold"))
    _, log = setup.run()
    for k, target in enumerate(targets(log)):
        for command in setup.robot.commands[COUNT * k : COUNT * (k + 1)]:
            np.testing.assert_array_equal(command, target)
    assert not any(record.action_modified for record in log.records)


@pytest.mark.parametrize("interpolation", ["hold", "linear"])
def test_limits_hold_for_every_motor_command(tmp_path: Path, interpolation: str) -> None:
    safety = SafetyConfig(
        PositionLimit(margin=0.1),
        RateLimit(max_per_second={"default": 60.0}),
        AccelerationLimit(max_per_second2={"default": 20_000.0}),
    )
    setup = bench(tmp_path, loop(interpolation=interpolation), safety=safety)
    result, log = setup.run()
    commands = np.stack([setup.robot.safe_pose, *setup.robot.commands]).astype(np.float64)
    changes = np.diff(commands, axis=0)
    assert (np.abs(changes) <= 60.0 / 400 + 1e-5).all()
    assert (np.abs(np.diff(changes, axis=0)) <= 20_000.0 / 400**2 + 1e-5).all()
    low, high = SPEC.command_low, SPEC.command_high
    assert (commands[1:] >= low + 0.1 * (high - low) - 1e-6).all()
    assert (commands[1:] <= high - 0.1 * (high - low) + 1e-6).all()
    altered = [not np.array_equal(record.applied_command, record.command) for record in log.records]
    assert any(altered)
    for record, was_altered in zip(log.records, altered, strict=True):
        assert record.action_modified or not was_altered
    assert result.statistics.modified == sum(record.action_modified for record in log.records)


def test_late_action_shares_what_is_left_of_its_period(tmp_path: Path) -> None:
    setup = bench(tmp_path, loop())
    setup.source.latency_ns = 6 * MS  # two of four commands are due by then
    result, log = setup.run()
    assert result.statistics.skipped_commands == 2 * result.statistics.steps
    start = setup.robot.safe_pose
    for k, record in enumerate(log.records):
        one, two = setup.robot.commands[2 * k : 2 * k + 2]
        np.testing.assert_array_equal(one, command_at(start, record.command, 2, COUNT, "linear", first=2))
        np.testing.assert_array_equal(two, record.command)
        assert not record.action_modified
        start = two


def test_command_whose_time_has_passed_is_left_out_and_the_step_marked(tmp_path: Path) -> None:
    setup = bench(tmp_path, loop())

    def slow(k: int, command: FloatArray) -> None:
        if k == 5:  # second command of the second period
            setup.clock.advance(9 * MS)

    setup.robot._on_send = slow
    result, log = setup.run()
    assert result.statistics.skipped_commands == 2
    assert [record.action_modified for record in log.records] == [False, True] + [False] * (len(log.records) - 2)
    np.testing.assert_array_equal(log.records[1].applied_command, setup.robot.commands[5])


def test_estop_between_two_commands_stops_before_the_next_one(tmp_path: Path) -> None:
    setup = bench(tmp_path, loop())

    def press(k: int, command: FloatArray) -> None:
        if k == 5:
            setup.parts.estop.trip("test")

    setup.robot._on_send = press
    result, log = setup.run()
    assert (result.reason, result.detail, result.state) == (EndReason.ESTOP, "test", State.FAULT)
    assert len(setup.robot.commands) == 6
    after = setup.robot.calls[setup.robot.calls.index("stop") :]
    assert "send_command" not in after
    assert setup.clock.now_ns <= 1_000_000_000 + 20 * MS, "the stop waited for more than the running period"
    assert [record.step_index for record in log.records] == [0]
    (cut,) = log.invalid_records
    assert (cut.step_index, cut.action_modified, cut.truncated) == (1, True, True)


def test_limit_with_mode_fault_breaks_a_period_off(tmp_path: Path) -> None:
    setup = bench(tmp_path, loop(), safety=SafetyConfig(PositionLimit("fault", margin=0.25)))
    setup.source.actions[:] = 0.0
    setup.source.actions[2] = (0.9, 0.0)  # beyond the margin, but not on the first commands of its period
    result, log = setup.run()
    assert result.reason is EndReason.SAFETY
    assert "position limit" in result.detail
    assert 2 * COUNT < len(setup.robot.commands) < 3 * COUNT
    assert [record.step_index for record in log.invalid_records] == [2]


def test_fast_pace_sends_all_commands_without_waiting(tmp_path: Path) -> None:
    setup = bench(tmp_path, loop(pace="fast"))
    result, log = setup.run()
    assert setup.clock.sleeps == []
    assert len(setup.robot.commands) == COUNT * STEPS
    assert len(log.records) == STEPS
    assert result.statistics.skipped_commands == 0


@pytest.mark.parametrize("rate", [100.0, 0.0])
def test_one_command_per_action_says_nothing_in_the_log(tmp_path: Path, rate: float) -> None:
    setup = Bench(tmp_path, loop=LoopConfig(command_rate=rate, interpolation="linear"))
    result, log = setup.run()
    assert result.statistics.commands == result.statistics.steps == 8
    assert "commands" not in log.metadata["info"]
    for record, command in zip(log.records, setup.robot.commands, strict=True):
        np.testing.assert_array_equal(record.command, command)


@pytest.mark.parametrize(("rate", "text"), [(150.0, "for example 200"), (50.0, "for example 100"), (1.0, "multiple")])
def test_rate_that_is_no_multiple_is_refused(tmp_path: Path, rate: float, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Bench(tmp_path, loop=LoopConfig(command_rate=rate)).run()


def test_interpolation_between_choices_is_refused() -> None:
    discrete = PolicySpec((TermSpec("x", 1),), (TermSpec.discrete("key", 4),), 0.01)
    with pytest.raises(ConfigError, match="discrete"):
        LoopConfig(interpolation="linear").commands_per_period(discrete)
    assert LoopConfig(command_rate=300.0).commands_per_period(discrete) == 3
    with pytest.raises(ConfigError, match="negative"):
        LoopConfig(command_rate=-1.0)
