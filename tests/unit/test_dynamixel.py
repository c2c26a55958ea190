"""The driver for Dynamixel servos: units, partial answers, errors, switching on and off. No terminal, no waiting."""

import logging
import math
import sys
import threading

import numpy as np
import pytest

from deploy.dynamixel import BusError, DynamixelConfig, make_robot
from deploy.dynamixel.bus import Bus
from deploy.dynamixel.control_table import MODELS, describe_hardware_error
from deploy.robot import RobotError
from mpo_robot.config import build
from mpo_robot.errors import ConfigError
from sim.servo_bus.packets import Instruction, encode_status
from sim.servo_bus.servo import EmulatedServo, ShaftState, to_pulse
from sim.servo_bus.servo_table import ITEMS, OVERLOAD, VELOCITY_UNIT
from tests.support import servo_wire
from tests.support.servo_wire import JOINTS, Wire

HOME = [0.25, 0.5, 0.0]
IDS = (3, 1, 7)  # of the joints, in order


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def make(wire, monkeypatch):
    return lambda **settings: servo_wire.make_robot(wire, monkeypatch, **settings)


@pytest.fixture
def robot(make):
    robot = make(observe=["joint_position", "joint_velocity", "joint_effort"])
    robot.connect()
    return robot


def put(servo, name, value):
    item = ITEMS[name]
    assert servo.write(item.address, value.to_bytes(item.size, "little")) == 0


def test_spec_names_joints_and_units(make):
    spec = make(observe=["joint_effort", "joint_position"]).spec
    assert [(term.name, term.size, term.unit) for term in spec.observation] == [
        ("joint_effort", 3, "A"),
        ("joint_position", 3, "rad"),
    ]
    assert [(term.name, term.unit) for term in spec.command] == [("hip", "rad"), ("knee", "rad"), ("ankle", "rad")]
    assert spec.command_low.tolist() == pytest.approx([-1.0, -0.5, -1.0])
    assert spec.control_dt == 0.02
    assert make(model="xl430-w250", observe=["joint_effort"]).spec.observation[0].unit == "1"


def test_readings_are_in_the_joints_units_and_directions(robot, wire):
    wire.servos[3].sense(0.0, ShaftState(0.5, 1.0, 0.25))
    wire.servos[1].sense(0.0, ShaftState(0.5, 1.0, 0.25))
    wire.servos[7].sense(0.0, ShaftState(-1.2, -2.0, -0.5))
    wire.servos[7].temperature, wire.servos[7].voltage = 41.0, 11.8
    wire.servos[7].sense(0.0, ShaftState(-1.2, -2.0, -0.5))
    position, velocity, effort = np.split(robot.read().observation, 3)
    assert position == pytest.approx([0.5, -(0.5 - 0.3), -1.2 + 0.2], abs=2 * math.pi / 4096)
    assert velocity == pytest.approx([1.0, -1.0, -2.0], abs=VELOCITY_UNIT)
    assert effort == pytest.approx([0.25, -0.25, -0.5], abs=1e-3)
    info = robot.read().info
    assert info["temperature"] == [30.0, 30.0, 41.0]
    assert info["voltage"] == [11.1, 11.1, 11.8]


def test_a_command_is_clamped_rounded_and_told(robot, wire):
    robot.start_episode()
    applied = robot.send_command(np.array([0.7001, -2.0, 0.1], np.float32))
    assert wire.servos[3].get("goal_position") == to_pulse(0.7001)
    assert wire.servos[1].get("goal_position") == to_pulse(0.5 + 0.3)  # at its low of -0.5, the other way round
    assert applied == pytest.approx([0.7001, -0.5, 0.1], abs=math.pi / 4096 + 1e-6)
    assert not np.array_equal(applied[0], np.float32(0.7001))
    with pytest.raises(ValueError, match="not finite"):
        robot.send_command(np.array([np.nan, 0.0, 0.0], np.float32))


def test_an_episode_starts_at_the_home_pose_slowly_with_the_watchdog_on(make, wire):
    robot = make(bus_watchdog_s=0.1, profile_velocity=3.0, homing_velocity=0.5)
    robot.connect()
    start = wire.now
    first = robot.start_episode(seed=1)
    assert first.observation[:3] == pytest.approx(HOME, abs=0.1)
    assert wire.now - start > (0.25 - 0.1) / 0.5 - 0.05  # the hip's way, at the homing velocity
    assert first.reward == 0.0
    assert math.isnan(robot.read().reward)
    for servo in wire.servos.values():
        assert servo.torque_enabled
        assert servo.get("bus_watchdog") == 5
        assert servo.get("profile_velocity") == math.ceil(3.0 / VELOCITY_UNIT)
    assert robot.safe_pose_command() == pytest.approx(HOME)


@pytest.mark.parametrize("call", [lambda robot: robot.read(), lambda robot: robot.send_command(np.float32(HOME))])
def test_a_loop_that_was_silent_for_too_long_is_told_that_the_servos_have_stopped(make, wire, call):
    robot = make(bus_watchdog_s=0.5)
    robot.connect()
    robot.start_episode()
    wire.sleep(0.45)
    call(robot)
    wire.sleep(0.55)
    assert {servo.get_unsigned("bus_watchdog") for servo in wire.servos.values()} == {255}
    with pytest.raises(BusError, match=r"heard nothing for 0\.55 s"):
        call(robot)
    robot.stop()
    wire.sleep(9.0)
    robot.start_episode()
    np.testing.assert_allclose(robot.send_command(np.float32([0.5, 0.5, 0.5])), 0.5, atol=0.01)
    wire.sleep(0.02)
    np.testing.assert_allclose(robot.read().observation[:3], 0.5, atol=0.01)


def test_a_servo_that_falls_silent_reads_its_last_values_then_nan(robot, wire):
    robot.start_episode()
    wire.servos[1].dead = True
    first, readings = robot.read(), []
    for _ in range(4):
        wire.now += 0.02
        readings.append(robot.read())
    assert first.observation[1] == readings[0].observation[1] == pytest.approx(0.5, abs=0.1)
    assert np.isnan(readings[-1].observation[1::3]).all()
    assert np.isfinite(readings[-1].observation[[0, 2, 3, 5, 6, 8]]).all()
    assert math.isnan(readings[-1].info["temperature"][1])
    assert readings[-1].monotonic_ns > readings[0].monotonic_ns > first.monotonic_ns
    wire.servos[1].dead = False
    wire.now += 0.02
    assert np.isfinite(robot.read().observation).all()
    assert robot.bus_errors["missing"] >= 5


def test_no_answer_at_all_keeps_the_old_time(robot, wire):
    robot.start_episode()
    before = robot.read()
    for servo in wire.servos.values():
        servo.dead = True
    wire.now += 0.02
    after = robot.read()
    assert after.monotonic_ns == before.monotonic_ns
    assert after.observation.tolist() == before.observation.tolist()


def test_a_damaged_answer_spoils_no_other(robot, wire):
    robot.start_episode()
    robot.read()
    wire.spoil = lambda data: data[:12] + b"\x55" + data[13:] if data[4] == 3 else data
    for _ in range(4):
        wire.now += 0.02
        reading = robot.read()
    assert np.isnan(reading.observation[0])
    assert np.isfinite(reading.observation[[1, 2]]).all()
    assert robot.bus_errors["damaged"] > 0


def test_a_reading_is_over_at_its_time_out(robot, wire):
    robot.start_episode()
    wire.servos[7].dead = True
    start = wire.now
    robot.read()
    assert wire.now - start <= 0.5 * robot.spec.control_dt


def test_an_answer_to_another_request_is_not_taken_for_a_reading(robot, wire):
    robot.start_episode()
    robot.read()
    # As if each servo answered the question for its condition, late.
    wire.spoil = lambda data: encode_status(data[4], 0, wire.servos[data[4]].read(64, 7)[1])
    for _ in range(4):
        wire.now += 0.02
        reading = robot.read()
    assert np.isnan(reading.observation).all()


def test_a_hardware_error_stops_the_episode_and_names_joint_and_cause(robot, wire):
    robot.start_episode()
    wire.servos[7].fail(OVERLOAD)
    with pytest.raises(BusError, match=r"ankle \(id 7\): overload"):
        robot.read()


def test_the_next_episode_reboots_the_servo(robot, wire, caplog):
    wire.servos[7].fail(OVERLOAD)
    with caplog.at_level(logging.WARNING):
        robot.start_episode()
    assert wire.servos[7].torque_enabled
    assert wire.packets.count(Instruction.REBOOT) == 1
    assert "ankle (id 7): overload; rebooting it" in caplog.text


@pytest.mark.parametrize(("attempts", "text"), [(0, "overheating$"), (3, "rebooting did not help")])
def test_reboots_are_bounded(make, wire, attempts, text):
    robot = make(reboot_attempts=attempts)
    robot.connect()
    wire.servos[1].temperature = 90.0
    wire.sleep(0.01)
    with pytest.raises(BusError, match=text):
        robot.start_episode()
    assert wire.packets.count(Instruction.REBOOT) == attempts
    assert not any(servo.torque_enabled for servo in wire.servos.values())


def test_a_servo_that_does_not_come_back_from_its_reboot(robot, wire, monkeypatch):
    wire.servos[1].fail(OVERLOAD)
    monkeypatch.setattr("sim.servo_bus.servo.REBOOT_S", 60.0)
    with pytest.raises(BusError, match=r"knee \(id 1\) did not come back"):
        robot.start_episode()


def test_a_joint_that_does_not_arrive_is_named(robot, wire):
    wire.stuck = {1}
    with pytest.raises(BusError, match="knee did not reach the start pose in 5"):
        robot.start_episode()


def test_stop_on_the_way_home_ends_the_start(robot, wire, monkeypatch):
    def sleep(seconds):
        wire.sleep(seconds)
        robot.stop()

    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(BusError, match="the robot was stopped"):
        robot.start_episode()
    robot.stop()
    assert not any(servo.torque_enabled for servo in wire.servos.values())


def test_stop_switches_off_whatever_happens_and_stays(robot, wire):
    robot.start_episode()
    robot.stop()
    robot.stop()
    assert not any(servo.torque_enabled for servo in wire.servos.values())
    goal = wire.servos[3].get("goal_position")
    assert robot.send_command(np.array([-1.0, 0.0, 0.0], np.float32)) == pytest.approx(HOME)
    assert wire.servos[3].get("goal_position") == goal
    robot.disconnect()
    robot.disconnect()
    robot.stop()


def test_stop_reaches_the_servos_although_answers_are_lost(robot, wire, caplog):
    robot.start_episode()
    wire.spoil = lambda data: b""
    with caplog.at_level(logging.WARNING):
        robot.stop()
    assert not any(servo.torque_enabled for servo in wire.servos.values())
    assert "switched off without an answer: knee (id 1), hip (id 3), ankle (id 7)" in caplog.text


def test_stop_says_so_if_a_servo_stays_on(robot, wire, monkeypatch):
    robot.start_episode()
    monkeypatch.setattr(wire.servos[3], "write", lambda address, data: 0)
    with pytest.raises(BusError, match=r"still on .* hip \(id 3\)"):
        robot.stop()
    assert not wire.servos[1].torque_enabled


def test_stop_does_not_wait_for_a_thread_that_hangs_in_a_transfer(robot, wire, monkeypatch):
    robot.start_episode()
    monkeypatch.setattr("deploy.dynamixel.bus._LOCK_S", 0.01)
    lock = robot._bus._lock
    holder = threading.Thread(target=lock.acquire)
    holder.start()
    holder.join()
    with pytest.raises(BusError, match="held by another thread"):  # no check is possible, but the command went out
        robot.stop()
    assert not any(servo.torque_enabled for servo in wire.servos.values())


def test_stop_before_connect_does_nothing(make):
    robot = make()
    robot.stop()
    robot.disconnect()


@pytest.mark.parametrize(
    ("item", "value", "text"),
    [
        ("operating_mode", 1, "operating mode 1"),
        ("drive_mode", 1, "drive mode 1"),
        ("drive_mode", 4, "drive mode 4"),
        ("return_delay_time", 250 * 8, None),
    ],
)
def test_connect_refuses_servos_that_are_set_up_differently(make, wire, item, value, text):
    if text is None:
        for servo in wire.servos.values():
            put(servo, "return_delay_time", 250)
        robot, text = make(read_timeout_s=0.002), "2.5 ms, read_timeout_s allows 2.0 ms"
    else:
        put(wire.servos[1], item, value)
        robot = make()
    with pytest.raises(RobotError, match=text):
        robot.connect()


def test_connect_refuses_another_model_and_reports_a_missing_servo(make, wire):
    with pytest.raises(RobotError, match=r"hip \(id 3\) has model number 1220, and xl430-w250 has 1060"):
        make(model="xl430-w250").connect()
    wire.servos[7].dead = True
    with pytest.raises(BusError, match="from servo 7"):
        make().connect()


def test_fast_sync_read_gives_the_same_and_falls_back_while_a_servo_is_silent(make, wire):
    robot, plain = make(fast_sync_read=True), make()
    for each in (robot, plain):
        each.connect()
    wire.packets.clear()
    fast = robot.read()
    assert wire.packets == [Instruction.FAST_SYNC_READ]
    assert fast.observation.tolist() == plain.read().observation.tolist()
    wire.servos[1].dead = True
    wire.packets.clear()
    for _ in range(4):
        wire.now += 0.02
        reading = robot.read()
    assert wire.packets == [Instruction.FAST_SYNC_READ, Instruction.SYNC_READ] * 2
    assert np.isfinite(reading.observation[[0, 2]]).all()


def test_a_port_that_fails_is_a_bus_error(robot, wire, monkeypatch):
    robot.start_episode()

    def fail(data):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(wire, "write", lambda data: 0)
    with pytest.raises(BusError, match="does not take"):
        robot.read()
    with pytest.raises(BusError, match="does not take"):
        robot.send_command(np.zeros(3, np.float32))
    monkeypatch.setattr(wire, "write", fail)
    for call in (robot.read, robot.stop, robot.disconnect):
        with pytest.raises(BusError, match="Input/output error"):
            call()


def test_a_closed_bus_and_a_port_that_does_not_exist(tmp_path):
    bus = Bus(str(tmp_path / "nothing"), 1_000_000, 0.01)
    with pytest.raises(BusError, match="not open"):
        bus.sync_read([1], 0, 1)
    with pytest.raises(RobotError, match=r"cannot open the motor bus .*nothing"):
        bus.open()
    with pytest.raises(RobotError, match="no baud rate of 123"):
        Bus("x", 123, 0.01).open()
    bus.close()


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "deploy.dynamixel.sdk", None)
    with pytest.raises(RobotError, match=r"mpo-robot\[dynamixel\]"):
        Bus("x", 1_000_000, 0.01).open()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "ax-12"}, "unknown servo model"),
        ({"joints": []}, "needs joints"),
        ({"observe": ["joint_position", "joint_position"]}, "each once"),
        ({"joints": [JOINTS[0], JOINTS[0]]}, "id of its own"),
        ({"joints": [JOINTS[0], {**JOINTS[1], "name": "hip"}]}, "name of its own"),
        ({"joints": [{**JOINTS[0], "id": 254}]}, "0 to 252"),
        ({"joints": [{**JOINTS[0], "direction": 0}]}, "direction"),
        ({"joints": [{**JOINTS[0], "home": 2.0}]}, "home between"),
        ({"joints": [{**JOINTS[0], "offset": 3.0}]}, "beyond the servo"),
        ({"read_timeout_s": 0.011}, "at most half"),
        ({"bus_watchdog_s": 3.0}, "bus_watchdog_s"),
        ({"bus_watchdog_s": 0.01}, "bus_watchdog_s"),
        ({"homing_velocity": 0.0}, "homing"),
        ({"max_age_s": -1.0}, "negative"),
        ({"body": {"module": "nothing"}}, "package.module:Factory"),
    ],
)
def test_configurations_that_make_no_sense(change, text):
    with pytest.raises(ConfigError, match=text):
        build(DynamixelConfig, {"port": "x", "joints": JOINTS, **change})


def test_factory_checks_options_and_body_source():
    with pytest.raises(ConfigError, match=r"robot\.options\.baud_rate"):
        make_robot(port="x", joints=JOINTS, baudrate=57_600)
    with pytest.raises(RobotError, match="cannot be imported"):
        make_robot(port="x", joints=JOINTS, body={"module": "nowhere:Imu"})
    with pytest.raises(RobotError, match="does not take"):
        make_robot(
            port="x", joints=JOINTS, body={"module": "deploy.dynamixel.body:DatagramBody", "options": {"prt": 1}}
        )


def test_hardware_errors_in_words():
    assert describe_hardware_error(0) == "no hardware error"
    assert describe_hardware_error(0b100101) == "input voltage out of range, overheating, overload"
    assert describe_hardware_error(0b10) == "unknown error bit 1"


def test_the_emulated_servo_is_one_of_the_known_models():
    assert MODELS["xc330-t288"].number == EmulatedServo(1).get("model_number")
