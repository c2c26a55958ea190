"""On the way to the start pose the driver is busy: e-stop, operator and time limit stop the robot all the same."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.action_source import Action
from deploy.client_types import EpisodeOutcome
from deploy.dynamixel import control_table as table
from deploy.estop import EStop
from deploy.fault_latch import FaultLatch
from deploy.loop_parts import EndReason, LoopConfig, LoopParts
from deploy.robot import FloatArray, Measurement
from deploy.robot_state import State
from deploy.session import run_session
from mpo_robot.errors import ConfigError
from sim.servo_bus.packets import Instruction, Packet, Parser
from tests.support import servo_wire
from tests.support.fake_robot import FakeRobot
from tests.support.loop_bench import SPEC, Bench
from tests.support.robot_process import wait_until
from tests.support.servo_wire import Wire

FAST = LoopConfig(pace="fast")


class HomingRobot(FakeRobot):
    """Its way home takes until it is stopped, and it takes earlier stops back only in the middle of it.

    Args:
        on_way: Called on the way, before earlier stops are taken back.
        obeys: Raise when stopped; otherwise arrive, switched on.
    """

    def __init__(self, on_way: Callable[[], None] = lambda: None, obeys: bool = True) -> None:
        super().__init__(SPEC, length=3)
        self.on_way, self.obeys, self.is_on = on_way, obeys, False
        self.stopped_in: list[str] = []

    def start_episode(self, seed: int | None = None) -> Measurement:
        self.on_way()
        self._stop, self.is_on = threading.Event(), True
        assert self._stop.wait(60), "nobody stopped the robot"
        if self.obeys:
            raise OSError("torque is off")
        self.is_on = True
        return super().start_episode(seed)

    def stop(self) -> None:
        super().stop()
        self.stopped_in.append(threading.current_thread().name)
        self.is_on = False
        if "_stop" in vars(self):
            self._stop.set()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.parts = dataclasses.replace(bench.parts, loop=FAST)
    return bench


@pytest.mark.parametrize("obeys", [True, False])
def test_stop_that_the_driver_takes_back_is_repeated(tmp_path: Path, bench: Bench, obeys: bool) -> None:
    latch, confirmations = FaultLatch(tmp_path / "arm.fault"), []

    def trip() -> None:
        before = robot.calls.count("stop")
        bench.parts.estop.trip("test")
        wait_until(lambda: robot.calls.count("stop") > before)  # the guard's, which is about to be forgotten
        bench.parts.estop.stop(robot)
        confirmations.append(bench.parts.estop.confirmation)

    robot = HomingRobot(trip, obeys)
    (result,) = run_session(robot, bench.parts, name="arm", episodes=5, latch=latch)
    assert (result.reason, result.state, result.steps, result.has_begun) == (EndReason.ESTOP, State.FAULT, 0, False)
    assert result.detail.startswith("test")
    assert not robot.is_on
    assert [*confirmations, bench.parts.estop.confirmation] == ["unconfirmed", "stopped"]
    assert "send_command" not in robot.calls
    record = latch.read()
    assert record is not None
    assert record.reason == "estop"
    assert [path.name for path in tmp_path.iterdir()] == ["arm.fault"], "a log of an episode that never began"


@pytest.mark.parametrize("obeys", [True, False])
def test_operator_stops_the_robot_at_once_and_it_is_no_fault(tmp_path: Path, bench: Bench, obeys: bool) -> None:
    latch, asked = FaultLatch(tmp_path / "arm.fault"), threading.Event()
    robot = HomingRobot(asked.set, obeys)
    parts = dataclasses.replace(bench.parts, should_stop=asked.is_set)
    (result,) = run_session(robot, parts, name="arm", episodes=5, latch=latch)
    assert (result.reason, result.state, result.steps) == (EndReason.OPERATOR, State.STOPPED, 0)
    assert "start pose" in result.detail
    assert robot.stopped_in[0] == "homing watch"
    assert not robot.is_on
    assert latch.read() is None
    assert bench.source.outcomes == []


@pytest.mark.parametrize("obeys", [True, False])
def test_homing_that_takes_too_long_is_a_fault_at_once(tmp_path: Path, bench: Bench, obeys: bool) -> None:
    latch = FaultLatch(tmp_path / "arm.fault")
    robot = HomingRobot(obeys=obeys)
    stop = robot.stop

    def stop_after_the_latch() -> None:
        robot.calls.append("stop")
        if "watchdog" in (latch.read() or ()):  # written while the driver still does not come back
            stop()

    robot.stop = stop_after_the_latch  # type: ignore[method-assign]
    parts = dataclasses.replace(bench.parts, loop=LoopConfig(homing_timeout_s=0.05))
    (result,) = run_session(robot, parts, name="arm", episodes=5, latch=latch)
    assert (result.reason, result.state) == (EndReason.WATCHDOG, State.FAULT)
    assert "longer than 0.05 s" in result.detail
    record = latch.read()
    assert record is not None
    assert (record.reason, record.episode_id) == ("watchdog", result.episode_id)


@pytest.mark.parametrize("loop", [LoopConfig(homing_timeout_s=0.0), LoopConfig(pace="fast", homing_timeout_s=0.001)])
def test_homing_has_no_limit_if_none_is_set_or_nothing_is_in_real_time(bench: Bench, loop: LoopConfig) -> None:
    robot = FakeRobot(SPEC, length=3, homing_s=0.05)
    parts = dataclasses.replace(bench.parts, loop=dataclasses.replace(loop, watchdog_s=0.0))
    (result,) = run_session(robot, parts, name="arm", episodes=1)
    assert result.reason is EndReason.TRUNCATED


def test_limit_of_homing_is_not_negative() -> None:
    with pytest.raises(ConfigError, match="homing_timeout_s"):
        LoopConfig(homing_timeout_s=-1.0)


class Zero:
    """Action source that always answers with zeros."""

    last_error = miss_cause = ""

    def begin_episode(self, episode_id: str) -> str:
        return "v1"

    def act(self, observation: FloatArray, step_index: int, deadline_ns: int) -> Action | None:
        return Action(np.zeros(3, np.float32), 0.0, "v1")

    def maintain(self) -> None:
        pass

    def end_episode(self, outcome: EpisodeOutcome) -> None:
        pass

    def close(self) -> None:
        pass


def switches_on(packets: list[Packet]) -> list[Packet]:
    writes = [packet for packet in packets if packet.instruction == Instruction.WRITE]
    address = table.TORQUE_ENABLE.address.to_bytes(2, "little")
    return [packet for packet in writes if packet.parameters == address + b"\x01"]


def session_with_estop(monkeypatch: pytest.MonkeyPatch, at: int) -> tuple[Wire, int, list[Packet]]:
    """A session of one step, tripped in its bus transfer `at`: the bus, all its transfers, what was sent after that."""
    wire, estop = Wire(), EStop()
    robot = servo_wire.make_robot(wire, monkeypatch, homing_velocity=2.0)
    parser, write, transfers = Parser(), wire.write, 0
    after: list[Packet] = []

    def tripped(data: bytes) -> int:
        nonlocal transfers
        transfers += 1
        packets = list(parser.feed(data))
        if estop.tripped:
            after.extend(packets)
        elif transfers == at:
            robot._servos.stopped = False  # as if this was the moment in which a start takes back earlier stops
            estop.trip("test")
            wait_until(lambda: robot._servos.stopped)
        return write(data)

    wire.write = tripped  # type: ignore[method-assign]
    parts = LoopParts(Zero(), loop=LoopConfig(pace="fast", max_steps=1), estop=estop)
    results = run_session(robot, parts, name="arm", episodes=1)
    assert all(result.reason in (EndReason.ESTOP, EndReason.MAX_STEPS) for result in results)
    return wire, transfers, after


def test_estop_in_any_transfer_of_a_session_leaves_the_servos_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """From connecting over homing to the end, with the real guard and loop."""
    _, total, _ = session_with_estop(monkeypatch, at=0)
    assert total > 30
    for at in range(1, total + 1):
        wire, _, after = session_with_estop(monkeypatch, at)
        assert not switches_on(after), f"e-stop in transfer {at}"
        assert not any(servo.torque_enabled for servo in wire.servos.values()), f"e-stop in transfer {at}"


def test_estop_just_before_the_driver_starts_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    wire, estop = Wire(), EStop()
    robot = servo_wire.make_robot(wire, monkeypatch, homing_velocity=2.0)
    wire.stuck = {1}  # it never arrives: only a stop ends the way
    start, stops = robot.start_episode, []
    stop = robot.stop
    monkeypatch.setattr(robot, "stop", lambda: (stop(), stops.append(1)))

    def late(seed: int | None) -> Measurement:
        estop.trip("test")
        wait_until(lambda: bool(stops))  # done, and taken back by what follows
        return start(seed)

    monkeypatch.setattr(robot, "start_episode", late)
    monkeypatch.setattr("time.sleep", lambda seconds: (wire.sleep(seconds / 100), threading.Event().wait(1e-3)))
    (result,) = run_session(robot, LoopParts(Zero(), loop=FAST, estop=estop), name="arm", episodes=1)
    assert result.reason is EndReason.ESTOP
    assert "was stopped" in result.detail
    assert not any(servo.torque_enabled for servo in wire.servos.values())
