"""The driver's bus on emulated servos without terminal, threads and waiting: time passes when somebody waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deploy.dynamixel.sdk as sdk
from deploy.dynamixel import DynamixelConfig, DynamixelRobot
from mpo_robot.config import build
from sim.servo_bus.bus import ServoBus
from sim.servo_bus.packets import Parser
from sim.servo_bus.servo import EmulatedServo, ShaftState

JOINTS = [
    {"name": "hip", "id": 3, "low": -1.0, "high": 1.0, "home": 0.25},
    {"name": "knee", "id": 1, "low": -0.5, "high": 1.5, "home": 0.5, "direction": -1, "offset": 0.3},
    {"name": "ankle", "id": 7, "low": -1.0, "high": 1.0, "home": 0.0, "offset": -0.2},
]


class Wire:
    """Servos whose shafts are always where they aim, and a clock.

    Attributes:
        servos: By id.
        now: Seconds.
        spoil: Applied to each answer; may return anything, also nothing.
        packets: Instructions of all packets heard.
        stuck: Ids of servos whose shaft does not move.
    """

    def __init__(self) -> None:
        self.bus = ServoBus([EmulatedServo(key) for key in (1, 3, 7)])
        self.servos = self.bus.servos
        self.now = 100.0
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self.packets: list[int] = []
        self.stuck: set[int] = set()
        self._parser = Parser()
        self.buffer = bytearray()

    def clock_ns(self) -> int:
        return round(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for key, servo in self.servos.items():
            servo.follow(seconds)
            angle = 0.0 if key in self.stuck else servo.target
            servo.sense(self.now, ShaftState(angle, 0.0, 0.0))

    def write(self, data: bytes) -> int:
        for packet in self._parser.feed(data):
            self.packets.append(packet.instruction)
            for answer in self.bus.handle(packet, self.now):
                self.buffer += self.spoil(answer)
        return len(data)


def make_robot(wire: Wire, monkeypatch: Any, **settings: Any) -> DynamixelRobot:
    """A robot of three joints on the wire; `settings` as in a robot file."""

    class WirePort(sdk.DeadlinePort):
        def setupPort(self, cflag_baud: int) -> bool:
            self.is_open = True
            return True

        def closePort(self) -> None:
            self.is_open = False

        def clearPort(self) -> None:
            wire.buffer.clear()

        def getCurrentTime(self) -> float:
            return wire.now * 1e3

        def writePort(self, packet: list[int]) -> int:
            return wire.write(bytes(packet))

        def readPort(self, length: int) -> bytes:
            data = bytes(wire.buffer[:length])
            del wire.buffer[:length]
            if not data and length:
                wire.now += 1.001 * self.timeout_s
            return data

    monkeypatch.setattr("deploy.dynamixel.sdk.DeadlinePort", WirePort)
    monkeypatch.setattr("time.sleep", wire.sleep)
    options = {"port": "wire", "joints": JOINTS, "model": "xc330-t288", **settings}
    return DynamixelRobot(build(DynamixelConfig, options), clock=wire.clock_ns)
