"""The state machine in the control loop: what it says at each moment, and that nothing is sent against it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.control_loop import ControlLoop
from deploy.fallback import FallbackConfig, Rung
from deploy.fault_latch import FaultLatch, RobotFaultError
from deploy.loop_parts import EndReason, LoopConfig, LoopParts
from deploy.observation_checks import NonFiniteCheck, ObservationConfig
from deploy.robot import FloatArray, Measurement
from deploy.robot_state import Event, State, StateError, StateMachine
from deploy.safety import SafetyConfig, WatchedTerm
from deploy.session import run_session
from mpo_robot.errors import ConfigError
from tests.support.fake_robot import FakeRobot
from tests.support.loop_bench import MS, SPEC, Bench
from tests.support.robot_process import wait_until

NO_LOCAL = FallbackConfig((Rung("hold", ticks=2), Rung("stop")))
FAST = LoopConfig(pace="fast")


def path_of(log: Any) -> list[str]:
    """The states an episode went through, by its log."""
    return [change["after"] for change in log.metadata["statistics"]["transitions"]]


def test_states_of_an_episode_are_in_its_log_and_result(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fallback=NO_LOCAL)
    bench.source.missing = (3, 5, 6)
    result, log = bench.run()
    fallen = ["FALLBACK", "RUN"]
    assert path_of(log) == ["STOPPED", "HOMING", "READY", "RUN", *fallen, *fallen, "STOPPED"]
    assert result.state is State.STOPPED
    assert log.metadata["statistics"]["state"] == "STOPPED"
    assert log.metadata["statistics"]["entered"]["FALLBACK"] == 2


def test_state_at_every_command_fits_who_sent_it(tmp_path: Path) -> None:
    ladder = FallbackConfig((Rung("hold", ticks=1), Rung("local", ticks=1), Rung("safe_pose", ticks=1), Rung("stop")))
    bench = Bench(tmp_path, fallback=ladder, length=20)
    bench.source.missing = (2, 3, 4, 7)
    states: list[State] = []
    bench.robot._on_send = lambda k, command: states.append(bench.state())
    bench.run()
    assert states == [State.RUN if k not in (2, 3, 4, 7) else State.FALLBACK for k in range(20)]


def test_homing_and_stopping_happen_in_their_states(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    seen: list[tuple[str, State]] = []
    start, stop, read = bench.robot.start_episode, bench.robot.stop, bench.robot.read

    def spy(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            seen.append((name, bench.state()))
            return function(*arguments)

        return call

    bench.robot.start_episode = spy("start", start)  # type: ignore[method-assign]
    bench.robot.stop = spy("stop", stop)  # type: ignore[method-assign]
    bench.robot.read = spy("read", read)  # type: ignore[method-assign]
    bench.run()
    assert seen[0] == ("start", State.HOMING)
    assert {state for name, state in seen if name == "read"} == {State.RUN}
    assert {state for name, state in seen if name == "stop"} == {State.STOPPED}


@pytest.mark.parametrize(
    ("reason", "parts"),
    [
        (EndReason.SAFETY, {"safety": SafetyConfig(watch=(WatchedTerm("state", 1e-6),))}),
        (EndReason.FALLBACK, {"fallback": FallbackConfig((Rung("stop"),))}),
    ],
)
def test_faults_lead_to_fault_and_only_rearm_leads_on(tmp_path: Path, reason: EndReason, parts: dict) -> None:
    bench = Bench(tmp_path, **parts)
    bench.source.missing = (0,) if reason is EndReason.FALLBACK else ()
    result, log = bench.run()
    assert result.reason is reason
    assert result.state is bench.state() is State.FAULT
    assert log.metadata["statistics"]["state"] == "FAULT"
    before = bench.robot.calls.copy()
    for _ in range(2):
        with pytest.raises(RobotFaultError, match="human"):
            bench.loop.run_episode("again")
    assert bench.robot.calls == before, "the robot was touched"
    bench.loop.rearm()
    assert bench.state() is State.STOPPED
    with pytest.raises(StateError):
        bench.loop.rearm()


def test_estop_before_an_episode_keeps_it_from_beginning(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.parts.estop.trip("too early")
    with pytest.raises(RobotFaultError, match="too early"):
        bench.run()
    assert bench.robot.calls == []
    assert bench.state() is State.FAULT
    bench.loop.rearm()
    assert not bench.parts.estop.tripped
    assert bench.loop.run_episode("now").reason is EndReason.TRUNCATED


@pytest.mark.parametrize("where", ["act", "read", "send"])
def test_estop_in_a_tick_sends_no_further_command(tmp_path: Path, where: str) -> None:
    bench = Bench(tmp_path)

    def trip(k: int) -> None:
        if k == 3:
            bench.parts.estop.trip("test")

    if where == "act":
        act = bench.source.act
        bench.source.act = lambda *arguments: (trip(arguments[1]), act(*arguments))[1]  # type: ignore[method-assign]
    elif where == "read":
        bench.robot._edit = lambda k, measurement: (trip(k), measurement)[1]
    else:
        bench.robot._on_send = lambda k, command: trip(k)
    result, log = bench.run()
    assert (result.reason, result.detail, result.state) == (EndReason.ESTOP, "test", State.FAULT)
    assert len(bench.robot.commands) == (4 if where == "send" else 3)
    assert log.metadata["statistics"]["end_reason"] == "estop"
    steps = [record.step_index for record in (*log.records, *log.invalid_records)]
    assert sorted(steps) == list(range(len(bench.robot.commands))), "a step was lost"
    # The step that the e-stop cut into must not be learned from; during `act` the last one was over already.
    assert len(log.invalid_records) == (0 if where == "act" else 1)


def test_exceptions_are_faults_but_an_interrupt_is_a_stop(tmp_path: Path) -> None:
    for error, state in ((OSError("cable"), State.FAULT), (KeyboardInterrupt(), State.STOPPED)):
        bench = Bench(tmp_path / state.value)

        def fail(k: int, command: FloatArray, error: BaseException = error) -> None:
            if k == 2:
                raise error

        bench.robot._on_send = fail
        with pytest.raises(type(error)):
            bench.run()
        assert bench.state() is state
        assert bench.robot.calls[-1] == "stop"


def test_failed_homing_is_a_fault(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def fail(seed: int | None) -> Measurement:
        raise OSError("no power")

    bench.robot.start_episode = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no power"):
        bench.run()
    assert bench.state() is State.FAULT


def test_policy_server_that_is_gone_before_an_episode_is_no_fault(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def gone(episode_id: str) -> str:
        raise ConfigError("server gone")

    bench.source.begin_episode = gone  # type: ignore[method-assign]
    with pytest.raises(ConfigError):
        bench.run()
    assert bench.state() is State.STOPPED


def test_command_that_the_state_does_not_allow_is_never_sent(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    loop = ControlLoop(bench.robot, bench.parts)
    bench.loop = loop
    # Somebody else's bug: the machine is halted behind the loop's back.
    bench.source.maintain = lambda: loop.machine.fire(Event.STOP) if len(bench.robot.commands) == 3 else None
    with pytest.raises(StateError, match="STOPPED"):
        loop.run_episode("ep", seed=0)
    assert len(bench.robot.commands) == 3
    assert loop.machine.state is State.FAULT


def test_measured_limit_with_mode_clamp_draws_the_command_toward_the_safe_pose(tmp_path: Path) -> None:
    watch = (WatchedTerm("info.temperature", high=60.0, soft_zone=10.0, mode="clamp"),)
    bench = Bench(
        tmp_path,
        edit=lambda k, m: m._replace(info={"temperature": 65.0 if k == 3 else 80.0 if k == 5 else 50.0}),
        safety=SafetyConfig(watch=watch),
    )
    result, log = bench.run()
    assert result.reason is EndReason.TRUNCATED
    assert [record.action_modified for record in log.records] == [k in (3, 5) for k in range(8)]
    safe = bench.robot.safe_pose
    np.testing.assert_allclose(bench.robot.commands[3], (safe + log.records[3].command) / 2, rtol=1e-5)
    np.testing.assert_array_equal(bench.robot.commands[5], safe)
    assert result.statistics.faults["info.temperature"] == 2
    assert not np.array_equal(log.records[5].command, safe), "the log keeps what the policy wanted"


def test_unfit_readings_in_a_row_are_a_fault_before_the_ladder_ends(tmp_path: Path) -> None:
    def spoil(k: int, m: Measurement) -> Measurement:
        return m._replace(observation=m.observation * np.float32(np.nan)) if k >= 4 else m

    forever = FallbackConfig((Rung("hold", ticks=0), Rung("stop")))
    bench = Bench(tmp_path, edit=spoil, length=50, fallback=forever, observation=ObservationConfig(fault_after=6))
    result, _ = bench.run()
    assert result.reason is EndReason.SAFETY
    assert result.detail.startswith("6 unfit readings in a row")
    assert len(bench.robot.commands) == 4 + 5


def test_nan_reading_can_be_a_fault_at_once(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path,
        edit=lambda k, m: m._replace(observation=m.observation * np.float32(np.nan)) if k == 4 else m,
        observation=ObservationConfig(non_finite=NonFiniteCheck("fault")),
    )
    result, _ = bench.run()
    assert (result.reason, result.state) == (EndReason.SAFETY, State.FAULT)
    assert len(bench.robot.commands) == 4


def test_causes_of_missing_actions_are_counted(tmp_path: Path) -> None:
    def spoil(k: int, m: Measurement) -> Measurement:
        return m._replace(observation=m.observation * np.float32(np.inf)) if k == 5 else m

    bench = Bench(
        tmp_path, edit=spoil, length=12, fallback=FallbackConfig((Rung("hold"), Rung("stop")), recover_after=2)
    )
    bench.source.missing = (2,)
    bench.source.actions[8, 0] = np.nan
    act = bench.source.act

    def late(observation: FloatArray, step_index: int, deadline_ns: int) -> Any:
        bench.clock.advance(7 * MS if step_index == 10 else 0)
        return act(observation, step_index, deadline_ns)

    bench.source.act = late  # type: ignore[method-assign]
    result, log = bench.run()
    assert dict(result.statistics.misses) == {
        "no_reply": 1, "unfit_reading": 1, "not_finite": 1, "ladder": 3, "late": 1,
    }  # fmt: skip
    assert log.metadata["statistics"]["misses"] == dict(result.statistics.misses)
    assert len(result.statistics.period) == result.statistics.steps


class Cold:
    """A policy whose first inference takes longer than a period."""

    def __init__(self, bench: Bench, warm_up: bool) -> None:
        self.bench, self.warm_up, self.cold = bench, warm_up, True
        self.inner = bench.source

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def begin_episode(self, episode_id: str) -> str:
        if self.warm_up:
            self.infer()
        return "v1"

    def infer(self) -> bool:
        if self.cold:
            self.bench.clock.advance(30 * MS)
        was_cold, self.cold = self.cold, False
        return was_cold

    def act(self, observation: FloatArray, step_index: int, deadline_ns: int) -> Any:
        return None if self.infer() else self.inner.act(observation, step_index, deadline_ns)


def test_source_that_is_warm_after_begin_episode_misses_nothing(tmp_path: Path) -> None:
    # What LocalSource and ServerSource do in begin_episode, and what would happen if they did not.
    for warm_up, misses in ((True, 0), (False, 1)):
        bench = Bench(tmp_path / str(warm_up), fallback=NO_LOCAL)
        bench.parts = dataclasses.replace(bench.parts, source=Cold(bench, warm_up))
        result, log = bench.run()
        assert result.statistics.deadline_misses == misses
        assert log.records[0].deadline_missed == (misses > 0)


def test_session_remembers_a_fault_and_refuses_the_next_one(tmp_path: Path) -> None:
    latch = FaultLatch(tmp_path / "arm.fault")
    robot = FakeRobot(SPEC, length=5, edit=lambda k, m: m._replace(observation=m.observation + (k == 3) * 99))
    bench = Bench(tmp_path)
    parts = LoopParts(bench.source, loop=FAST, safety=SafetyConfig(watch=(WatchedTerm("state", 50.0),)))
    machines: list[StateMachine] = []
    (result,) = run_session(robot, parts, name="arm", episodes=5, on_machine=machines.append, latch=latch)
    assert result.state is State.FAULT
    assert machines[0].state is State.FAULT
    record = latch.read()
    assert record is not None
    assert (record.reason, record.episode_id) == ("safety", result.episode_id)
    calls = robot.calls.copy()
    with pytest.raises(RobotFaultError, match="arm is in FAULT"):
        run_session(robot, parts, name="arm", episodes=1, latch=latch)
    assert robot.calls == calls
    latch.clear()
    robot._edit = None
    assert len(run_session(robot, parts, name="arm", episodes=2, latch=latch)) == 2


def test_estop_between_episodes_ends_the_session_and_is_remembered(tmp_path: Path) -> None:
    latch, robot, bench = FaultLatch(tmp_path / "arm.fault"), FakeRobot(SPEC, length=3), Bench(tmp_path)
    parts = LoopParts(bench.source, loop=FAST)
    results = run_session(
        robot, parts, name="arm", episodes=5, latch=latch, on_result=lambda result: parts.estop.trip("between")
    )
    assert len(results) == 1
    assert results[0].state is State.STOPPED
    record = latch.read()
    assert record is not None
    assert (record.reason, record.detail) == ("estop", "between")


def test_driver_error_is_remembered_but_a_robot_that_never_connected_is_not(tmp_path: Path) -> None:
    for where in ("send", "connect"):
        latch, robot, bench = FaultLatch(tmp_path / f"{where}.fault"), FakeRobot(SPEC, length=3), Bench(tmp_path)

        def fail(*_: Any) -> None:
            raise OSError("cable")

        if where == "send":
            robot._on_send = fail
        else:
            robot.connect = fail  # type: ignore[method-assign]
        with pytest.raises(OSError, match="cable"):
            run_session(robot, LoopParts(bench.source, loop=FAST), name="arm", episodes=1, latch=latch)
        assert (latch.read() is not None) == (where == "send")
        assert robot.calls[-2:] == ["stop", "disconnect"]


def test_estop_while_the_server_is_waited_for_keeps_the_robot_where_it_is(tmp_path: Path) -> None:
    latch, robot, bench = FaultLatch(tmp_path / "arm.fault"), FakeRobot(SPEC, length=3), Bench(tmp_path)
    parts = dataclasses.replace(bench.parts, loop=FAST)

    def slow(episode_id: str) -> str:
        parts.estop.trip("while waiting")
        return "v1"

    bench.source.begin_episode = slow  # type: ignore[method-assign]
    assert run_session(robot, parts, name="arm", episodes=5, latch=latch) == []
    assert "start_episode" not in robot.calls
    record = latch.read()
    assert record is not None
    assert (record.reason, record.detail) == ("estop", "while waiting")
    assert [path.name for path in tmp_path.iterdir()] == ["arm.fault"], "a log of an episode that never began"


def test_estop_that_makes_homing_fail_is_remembered_as_an_estop(tmp_path: Path) -> None:
    latch, robot, bench = FaultLatch(tmp_path / "arm.fault"), FakeRobot(SPEC), Bench(tmp_path)
    parts = LoopParts(bench.source, loop=FAST)

    def interrupted(seed: int | None) -> Measurement:
        parts.estop.trip("test")
        raise OSError("torque is off")

    robot.start_episode = interrupted  # type: ignore[method-assign]
    (result,) = run_session(robot, parts, name="arm", episodes=5, latch=latch)
    assert (result.reason, result.state, result.steps) == (EndReason.ESTOP, State.FAULT, 0)
    assert "torque is off" in result.detail
    assert bench.source.outcomes == [], "a policy that was never asked has no outcome"
    record = latch.read()
    assert record is not None
    assert (record.reason, record.detail) == ("estop", result.detail)


def test_driver_that_hangs_is_remembered_while_it_hangs(tmp_path: Path) -> None:
    latch, robot, bench = FaultLatch(tmp_path / "arm.fault"), FakeRobot(SPEC, length=0), Bench(tmp_path)
    parts = LoopParts(bench.source, loop=LoopConfig(watchdog_s=0.05))

    def hang(k: int, command: FloatArray) -> None:
        if k == 1:
            wait_until(lambda: "watchdog" in (latch.read() or ()))  # only the second thread can have written it

    robot._on_send = hang
    (result,) = run_session(robot, parts, name="arm", episodes=5, latch=latch)
    assert result.reason is EndReason.WATCHDOG
    record = latch.read()
    assert record is not None
    assert (record.reason, record.episode_id) == ("watchdog", result.episode_id)
