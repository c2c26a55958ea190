"""A stop at any moment of switching on: the servos are told nothing more that could move them, and end up off."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import numpy as np
import pytest

from deploy.dynamixel import BusError, DynamixelRobot
from deploy.dynamixel import control_table as table
from deploy.dynamixel.bus import StoppedError
from sim.servo_bus.packets import Instruction, Packet, Parser
from sim.servo_bus.servo_table import OVERLOAD
from tests.support import servo_wire
from tests.support.servo_wire import Wire

_MOVING = {register.address: register.size for register in (table.TORQUE_ENABLE, table.GOAL_POSITION)}


def could_move(packet: Packet) -> bool:
    """Whether it reboots a servo, switches a motor on or gives it a goal."""
    if packet.instruction == Instruction.REBOOT:
        return True
    if packet.instruction not in (Instruction.WRITE, Instruction.SYNC_WRITE):
        return False
    address = int.from_bytes(packet.parameters[:2], "little")
    if packet.instruction == Instruction.WRITE:
        values = [packet.parameters[2:]]
    else:
        rest, size = packet.parameters[4:], 1 + int.from_bytes(packet.parameters[2:4], "little")
        values = [rest[start + 1 : start + size] for start in range(0, len(rest), size)]
    is_off = address == table.TORQUE_ENABLE.address and not any(any(value) for value in values)
    return address in _MOVING and not is_off


class Trips:
    """Calls `stop` from another thread while transfer number `at` is on the wire, and keeps what is sent afterwards."""

    def __init__(self, wire: Wire, stop: Callable[[], None], has_begun: Callable[[], bool], at: int) -> None:
        self.sent_after: list[Packet] = []
        self.count = 0
        parser, write = Parser(), wire.write
        self._thread: threading.Thread | None = None

        def hooked(data: bytes) -> int:
            packets = list(parser.feed(data))
            self.count += 1
            if self._thread is not None:
                self.sent_after += packets
            elif self.count == at:
                self._thread = threading.Thread(target=stop)
                self._thread.start()
                while not has_begun():
                    threading.Event().wait(1e-4)
            return write(data)

        wire.write = hooked  # type: ignore[method-assign]

    def join(self) -> bool:
        """Wait for the stop to end; whether there was one."""
        if self._thread is not None:
            self._thread.join(60)
        return self._thread is not None


def start(wire: Wire, monkeypatch: pytest.MonkeyPatch, at: int) -> tuple[DynamixelRobot, Trips, BaseException | None]:
    """An episode whose start finds one servo with a hardware error, stopped in transfer `at` of its start."""
    robot = servo_wire.make_robot(wire, monkeypatch, homing_velocity=2.0)
    robot.connect()
    wire.servos[1].fail(OVERLOAD)

    def stop() -> None:
        with contextlib.suppress(BusError):  # not reached if the servo is rebooting; the loop's own stop follows
            robot.stop()

    trips = Trips(wire, stop, lambda: robot._servos.stopped, at)
    try:
        robot.start_episode()
    except Exception as error:
        return robot, trips, error
    return robot, trips, None


def test_a_stop_in_any_transfer_of_the_start_is_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    robot, trips, error = start(wire, monkeypatch, at=0)
    assert error is None
    total = trips.count
    assert total > 30, "recovery, switching on and the way home should be many transfers"
    assert all(servo.torque_enabled for servo in wire.servos.values())
    for at in range(1, total + 1):
        wire = Wire()
        robot, trips, error = start(wire, monkeypatch, at)
        assert trips.join()
        assert not [packet for packet in trips.sent_after if could_move(packet)], f"stopped in transfer {at}"
        if error is None:  # stopped in the last readings
            assert at > total - 3
        else:
            assert isinstance(error, StoppedError), repr(error)
        robot.stop()
        assert not any(servo.torque_enabled for servo in wire.servos.values()), f"stopped in transfer {at}"


def test_a_stop_while_a_command_waits_for_the_bus_keeps_it_from_being_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    robot = servo_wire.make_robot(wire, monkeypatch)
    robot.connect()
    robot.start_episode()
    goals = [servo.get("goal_position") for servo in wire.servos.values()]
    lock, applied = robot._bus._lock, []
    lock.acquire()
    sender = threading.Thread(target=lambda: applied.append(robot.send_command(np.array([-1.0, 0.0, 0.0], np.float32))))
    sender.start()  # past every look at whether the robot is stopped but the one that counts
    robot._servos.stopped = True
    lock.release()
    sender.join(60)
    assert applied[0] == pytest.approx(robot.safe_pose_command())
    assert [servo.get("goal_position") for servo in wire.servos.values()] == goals
    robot.stop()
    assert not any(servo.torque_enabled for servo in wire.servos.values())
