"""What goes wrong on a real day, with real processes. Triggers are step numbers, not times."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zmq

from deploy.action_source import LocalSource, ServerSource
from deploy.client import PolicyClient
from deploy.control_loop import ControlLoop, EpisodeResult
from deploy.fallback import FallbackConfig, Rung
from deploy.log_reader import LogContents, is_being_written, read_log
from deploy.log_writer import EpisodeLogWriter
from deploy.loop_parts import EndReason, LoopConfig, LoopParts
from deploy.observation_checks import ObservationConfig, StaleCheck
from deploy.onnx_policy import OnnxPolicy, gaussian_log_prob
from deploy.timing import SystemClock
from mpo_robot.cli.main import main
from mpo_robot.episode import Source, StepRecord, episodes_from_records
from tests.support.fake_robot import FakeRobot
from tests.support.onnx_files import small_spec, write_linear_policy
from tests.support.robot_process import RobotProcess, journal, wait_until, write_config
from tests.support.serving import ServerProcess

SPEC = small_spec(control_dt=0.05)  # slow, so that a busy machine still answers in time now and then
HOLD = FallbackConfig((Rung("hold", ticks=0), Rung("stop")))
REAL_TIME = LoopConfig(deadline=0.8, watchdog_s=0.0, max_steps=1000)
FAST = LoopConfig(pace="fast", fast_timeout_s=30.0)
NO_AGE_CHECK = ObservationConfig(stale=StaleCheck("off"))  # a busy machine may suspend the test between two lines
RECOVERED = 5  # good actions after a fault that end a test


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return write_linear_policy(tmp_path / "policy.onnx", SPEC)


class Recorder:
    """Ends the episode after `RECOVERED` actions of the policy from step `after` on."""

    def __init__(self, source: ServerSource, after: int) -> None:
        self.good, self.after = 0, after
        self._act = source.act
        source.act = self.act  # type: ignore[method-assign]

    def act(self, observation: np.ndarray, step_index: int, deadline_ns: int):  # type: ignore[no-untyped-def]
        action = self._act(observation, step_index, deadline_ns)
        self.good += action is not None and step_index >= self.after
        return action

    def done(self) -> bool:
        return self.good >= RECOVERED


def run_loop(
    directory: Path,
    endpoint: str,
    at_step: Callable[[int], None],
    *,
    after: int,
    loop: LoopConfig = REAL_TIME,
    fallback: FallbackConfig = HOLD,
    local: LocalSource | None = None,
) -> tuple[EpisodeResult, LogContents]:
    """One episode of the fake robot against a server; `at_step` is called while step k's command is being sent."""

    def on_send(k: int, command: np.ndarray) -> None:
        at_step(k)

    robot = FakeRobot(SPEC, length=0, on_send=on_send)
    clock = SystemClock()
    client = PolicyClient(endpoint, SPEC, clock=clock.monotonic_ns)
    source = ServerSource(client, timeout_s=30.0, clock=clock, patient=not loop.is_real_time)
    try:
        recorder = Recorder(source, after)
        parts = LoopParts(
            source=source,
            local=local,
            loop=loop,
            observation=NO_AGE_CHECK,
            fallback=fallback,
            open_log=lambda name: EpisodeLogWriter(directory, SPEC, name),
            should_stop=recorder.done,
            clock=clock,
        )
        result = ControlLoop(robot, parts).run_episode("episode", seed=0)
    finally:
        source.close()
    assert robot.calls[-1] == "stop"
    return result, read_log(directory / "episode.mcap")


def sources(records: tuple[StepRecord, ...]) -> list[bool]:
    return [record.source is Source.POLICY for record in records]


def test_killed_server_is_survived_and_its_successor_picked_up(tmp_path: Path, policy: Path) -> None:
    server = ServerProcess(policy)
    servers = [server]

    def at_step(k: int) -> None:
        if k == 10:
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
        if k == 20:
            servers.append(ServerProcess(policy, endpoint=server.endpoint))

    try:
        result, log = run_loop(tmp_path, server.endpoint, at_step, after=21)
    finally:
        for item in servers:
            item.__exit__(None, None, None)
    assert result.reason is EndReason.OPERATOR
    assert log.complete
    acted = sources(log.records)
    assert not any(acted[11:21]), "nobody can have answered between the kill and the restart"
    assert sum(acted[21:]) == RECOVERED
    for record in log.records[11:21]:
        assert record.deadline_missed
        np.testing.assert_array_equal(record.applied_command, log.records[10].applied_command)
    assert len({record.policy_version for record in log.records} - {""}) == 1
    assert [record.step_index for record in log.records] == list(range(len(log.records)))
    (episode,) = episodes_from_records(log.records, SPEC)
    assert episode.trace_valid.tolist() == acted


def test_frozen_server_is_waited_for_no_longer_than_the_deadline(tmp_path: Path, policy: Path) -> None:
    with ServerProcess(policy) as server:

        def at_step(k: int) -> None:
            if k == 10:
                server.process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, server.process.pid, os.WSTOPPED)
            if k == 25:
                server.process.send_signal(signal.SIGCONT)

        result, log = run_loop(tmp_path, server.endpoint, at_step, after=26)
    assert result.reason is EndReason.OPERATOR
    acted = sources(log.records)
    assert not any(acted[11:26])
    assert all(record.deadline_missed for record in log.records[11:26])
    assert sum(acted[26:]) == RECOVERED
    longest_wait_ns = max(record.latency_ns for record in log.records[11:26])
    assert longest_wait_ns > 0.5 * REAL_TIME.deadline * SPEC.control_dt * 1e9, "given up at once, not at the deadline"


def test_dead_server_leads_down_the_ladder_to_a_stop(tmp_path: Path, policy: Path) -> None:
    ladder = FallbackConfig((Rung("hold", ticks=2), Rung("safe_pose", ticks=3, recover=False), Rung("stop")))
    with ServerProcess(policy) as server:

        def at_step(k: int) -> None:
            if k == 5:
                server.process.kill()
                server.process.wait()

        result, log = run_loop(tmp_path, server.endpoint, at_step, after=99, fallback=ladder)
    assert result.reason is EndReason.FALLBACK
    assert result.statistics.fallbacks["safe_pose"] == 3
    assert log.complete
    np.testing.assert_array_equal(log.records[-1].applied_command, np.full(2, 0.25, np.float32))


def test_policy_file_in_this_process_takes_over_from_a_dead_server(tmp_path: Path, policy: Path) -> None:
    own = OnnxPolicy(write_linear_policy(tmp_path / "own.onnx", SPEC, bias=0.5, stddev=0.2))
    ladder = FallbackConfig((Rung("hold", ticks=2), Rung("local", ticks=0), Rung("stop")))
    with ServerProcess(policy) as server:

        def at_step(k: int) -> None:
            if k == 5:
                server.process.kill()
                server.process.wait()

        loop = LoopConfig(deadline=0.8, watchdog_s=0.0, max_steps=15)
        local = LocalSource(own, stochastic=True, seed=0)
        result, log = run_loop(tmp_path, server.endpoint, at_step, after=99, loop=loop, fallback=ladder, local=local)
    assert result.reason is EndReason.MAX_STEPS
    taken_over = log.records[8:]
    assert len(taken_over) == 7
    for record in taken_over:
        assert (record.source, record.policy_version) == (Source.POLICY, own.policy_version)
        expected = gaussian_log_prob(record.policy_action, np.full(2, 0.5), np.full(2, 0.2))
        assert record.behavior_log_prob == pytest.approx(expected, abs=1e-4)
        assert record.deadline_missed
        assert not record.action_modified
    (episode,) = episodes_from_records(log.records, SPEC)
    assert episode.trace_valid[8:].all()
    assert own.policy_version not in {record.policy_version for record in log.records[:8]}


def test_garbage_at_the_server_disturbs_no_episode(tmp_path: Path, policy: Path) -> None:
    rng = np.random.default_rng(0)
    with ServerProcess(policy) as server, zmq.Context() as context, context.socket(zmq.DEALER) as intruder:
        intruder.linger = 0
        intruder.connect(server.endpoint)

        def at_step(k: int) -> None:
            for frames in range(1, 4):
                intruder.send_multipart([rng.bytes(int(rng.integers(0, 200))) for _ in range(frames)])

        result, log = run_loop(tmp_path, server.endpoint, at_step, after=40, loop=FAST)
        assert server.process.poll() is None
    assert result.reason is EndReason.OPERATOR
    assert sources(log.records) == [True] * (40 + RECOVERED)
    assert result.statistics.deadline_misses == 0


def test_other_spec_is_refused_with_the_field_named(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServerProcess(policy) as server:
        config = write_config(tmp_path, options={"control_dt": 0.07})
        assert main(["run-robot", "--config", str(config), "--endpoint", server.endpoint]) == 2
    assert "control_dt" in capsys.readouterr().err
    assert journal(tmp_path) == []


def start_local_robot(directory: Path, policy: Path) -> RobotProcess:
    """An endless episode of a robot process with the policy file in it, at 200 Hz."""
    spec_policy = write_linear_policy(policy, small_spec(control_dt=0.005))
    config = write_config(
        directory,
        options={"length": 0, "control_dt": 0.005},
        policy="local",
        policy_path=str(spec_policy),
        observation={"stale": {"mode": "off"}},
        loop={"watchdog_s": 60.0},
    )
    return RobotProcess(config)


def log_of(directory: Path, steps: int) -> Path:
    """The log of a running robot process, once it holds that many steps."""
    folder = directory / "logs"

    def ready() -> bool:
        paths = list(folder.glob("*.mcap")) if folder.is_dir() else []
        return bool(paths) and paths[0].read_bytes().count(b'"step_index"') > steps

    wait_until(ready)
    (path,) = folder.glob("*.mcap")
    return path


def test_log_of_a_killed_robot_process_becomes_an_episode(tmp_path: Path, policy: Path) -> None:
    with start_local_robot(tmp_path, policy) as robot:
        path = log_of(tmp_path, 50)
        assert is_being_written(path)
        before = len(read_log(path).records)
        robot.process.send_signal(signal.SIGKILL)
        robot.process.wait()
    assert not is_being_written(path)
    log = read_log(path)
    assert not log.complete
    assert "no end record" in log.problem or "cut off" in log.problem
    assert len(log.records) >= before >= 50, "a record that was readable before the kill is lost"
    (episode,) = episodes_from_records(log.records, log.spec)
    assert len(episode) == len(log.records)
    assert not episode.terminated
    assert episode.trace_valid.all()
    assert log.metadata["info"] == {"randomization": {"mass": 1.5}}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_stops_the_robot_and_closes_the_log(tmp_path: Path, policy: Path, number: signal.Signals) -> None:
    with start_local_robot(tmp_path, policy) as robot:
        path = log_of(tmp_path, 10)
        robot.process.send_signal(number)
        code, output = robot.finish()
    assert code == 0, output
    calls = journal(tmp_path)
    assert calls[-1] == "disconnect"
    assert "send_command" not in calls[calls.index("stop") :]
    log = read_log(path)
    assert log.complete
    assert log.records[-1].truncated
    assert log.metadata["statistics"]["end_reason"] == "operator"
    # Every command that was sent has its outcome in the log: the loop waited for the next reading.
    assert len(log.records) == calls.count("send_command")
