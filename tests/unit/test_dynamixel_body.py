"""The source of the body's state: newest datagram, its age, and what is passed over."""

import socket
import struct

import numpy as np
import pytest

from deploy.dynamixel.body import DatagramBody
from deploy.robot import RobotError
from sim.servo_bus.emulator import IMU_MESSAGE
from tests.support import servo_wire
from tests.support.servo_wire import Wire

MESSAGE = struct.Struct("<q7f")
VALUES = (1.0, 0.0, 0.0, 0.0, 0.5, -0.5, 0.25)


@pytest.fixture
def body():
    body = DatagramBody(0, clock=lambda: 1000)
    body.open()
    yield body
    body.close()


def send(body, *datagrams):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for datagram in datagrams:
            sender.sendto(datagram, body.address)


def test_the_newest_reading_counts(body):
    assert body.read() is None
    send(body, MESSAGE.pack(5, *VALUES), MESSAGE.pack(7, *(2 * value for value in VALUES)))
    reading = body.read()
    assert reading.monotonic_ns == 7
    assert reading.values.tolist() == [2 * value for value in VALUES]
    assert body.read() is reading


def test_old_future_and_malformed_datagrams_are_passed_over(body):
    good = MESSAGE.pack(5, *VALUES)
    send(body, good, MESSAGE.pack(4, *VALUES), MESSAGE.pack(5, *VALUES), MESSAGE.pack(1001, *VALUES), b"", good + b"x")
    assert body.read().monotonic_ns == 5


def test_terms_fit_the_message_of_the_emulator():
    assert MESSAGE.format == IMU_MESSAGE.format
    assert sum(term.size for term in DatagramBody.terms) == 7


def test_a_taken_port_is_an_error_and_a_closed_source_has_no_address(body):
    with pytest.raises(RobotError, match="cannot listen"):
        DatagramBody(body.address[1]).open()
    closed = DatagramBody(0)
    with pytest.raises(RuntimeError, match="not open"):
        _ = closed.address
    assert closed.read() is None
    closed.close()


def test_a_robot_appends_the_body_and_reads_nan_when_it_is_old(monkeypatch):
    wire = Wire()
    module = {"module": "deploy.dynamixel.body:DatagramBody", "options": {"port": 0, "clock": wire.clock_ns}}
    robot = servo_wire.make_robot(wire, monkeypatch, body=module)
    assert [term.name for term in robot.spec.observation[2:]] == ["orientation", "angular_velocity"]
    robot.connect()
    assert np.isnan(robot.read().observation[6:]).all()
    send(robot._body, MESSAGE.pack(wire.clock_ns(), *VALUES))
    wire.now += 0.04
    assert robot.read().observation[6:].tolist() == list(VALUES)
    wire.now += 0.02
    assert np.isnan(robot.read().observation[6:]).all()
    assert np.isfinite(robot.read().observation[:6]).all()
    robot.disconnect()
