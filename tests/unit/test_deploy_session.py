from __future__ import annotations

from pathlib import Path

import pytest

from deploy.action_source import Action
from deploy.client_types import EpisodeOutcome
from deploy.log_writer import EpisodeLogWriter
from deploy.loop_parts import LoopConfig, LoopParts
from deploy.robot import FloatArray
from deploy.session import run_session
from mpo_robot.errors import ConfigError
from tests.support.fake_robot import FakeRobot

FAST = LoopConfig(pace="fast")


class Zero:
    """Action source that always answers with zeros; `fail_at` makes an episode impossible to begin."""

    def __init__(self, fail_at: int = -1) -> None:
        self.episodes: list[str] = []
        self.fail_at = fail_at
        self.closed = False
        self.outcomes: list[EpisodeOutcome] = []
        self.last_error = self.miss_cause = ""

    def begin_episode(self, episode_id: str) -> str:
        if len(self.episodes) == self.fail_at:
            raise ConfigError("server gone")
        self.episodes.append(episode_id)
        return "v1"

    def act(self, observation: FloatArray, step_index: int, deadline_ns: int) -> Action | None:
        return Action(observation[:2] * 0, 0.0, "v1")

    def maintain(self) -> None:
        pass

    def end_episode(self, outcome: EpisodeOutcome) -> None:
        self.outcomes.append(outcome)

    def close(self) -> None:
        self.closed = True


def test_session_runs_its_episodes_and_lets_go() -> None:
    robot, source, seen = FakeRobot(length=3), Zero(), []
    results = run_session(robot, LoopParts(source, loop=FAST), name="arm", episodes=3, seed=5, on_result=seen.append)
    assert results == seen
    assert [result.steps for result in results] == [3, 3, 3]
    assert [(item.steps, item.undiscounted_return, item.fault, item.reason) for item in source.outcomes] == [
        (3, result.undiscounted_return, False, "truncated") for result in results
    ]
    assert len(set(source.episodes)) == 3
    assert all(name.startswith("arm-") for name in source.episodes)
    assert source.closed
    assert robot.calls[0] == "connect"
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_operator_stop_ends_the_session_and_none_begins_afterwards() -> None:
    robot = FakeRobot(length=0)
    parts = LoopParts(Zero(), loop=FAST, should_stop=lambda: len(robot.commands) >= 4)
    assert len(run_session(robot, parts, name="arm", episodes=0)) == 1
    assert run_session(FakeRobot(), LoopParts(Zero(), should_stop=lambda: True), name="arm", episodes=2) == []


def test_failed_log_ends_the_session(tmp_path: Path) -> None:
    def open_log(name: str) -> EpisodeLogWriter:
        writer = EpisodeLogWriter(tmp_path, robot.spec, name)
        writer._error = OSError("disk full")  # what the writer thread would set
        return writer

    robot = FakeRobot(length=3)
    results = run_session(robot, LoopParts(Zero(), loop=FAST, open_log=open_log), name="arm", episodes=5)
    assert len(results) == 1
    assert results[0].log_error == "disk full"


@pytest.mark.parametrize("what", ["connect", "begin"])
def test_robot_is_let_go_when_something_fails_between_episodes(what: str) -> None:
    robot, source = FakeRobot(length=3), Zero(fail_at=1 if what == "begin" else -1)
    if what == "connect":

        def fail() -> None:
            raise ConfigError("no such port")

        robot.connect = fail  # type: ignore[method-assign]
    with pytest.raises(ConfigError):
        run_session(robot, LoopParts(source, loop=FAST), name="arm", episodes=2)
    assert robot.calls[-2:] == ["stop", "disconnect"]
    assert source.closed
