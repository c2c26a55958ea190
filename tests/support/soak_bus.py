"""The emulated motor bus, whose servos break when told to; it also looks at what arrives on the wire.

    python -m tests.support.soak_bus CONFIG.json REPORT.jsonl      prints the path of its terminal

Orders are lines of JSON on standard input: `{"kind": "servo_noise" | "servo_dead" | ..., "seconds": s, ...}`. The
report gets a line when a servo is switched on or off, and for a goal outside the limits of its joint (a violation).
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mpo_robot.config import build
from sim.servo_bus.emulator import Emulator, EmulatorConfig
from sim.servo_bus.faults import FaultConfig, WireNoise
from sim.servo_bus.servo_table import OVERLOAD

COOL = 30.0
HOT = 68.0  # below the servos' own limit, above the robot's
_TRIPPED = 255  # a bus watchdog that has fired makes the servo's own position its goal
_POLL_S = 0.002


class SoakBus:
    """Serves the bus, follows orders, and keeps watch."""

    def __init__(self, settings: dict[str, Any], report: Path) -> None:
        """Args: `settings` has `emulator` (its YAML) and `goals`: {servo id: [lowest, highest pulse]}."""
        self.emulator = Emulator(build(EmulatorConfig, settings["emulator"]))
        self._goals = {int(key): tuple(value) for key, value in settings["goals"].items()}
        self._report = report.open("a")
        self._orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._over: list[tuple[float, dict[str, Any]]] = []
        self._driven = dict.fromkeys(self._goals, False)
        self._seen = dict.fromkeys(self._goals, 0)
        self._since = self._turn = time.monotonic()  # what is read in a turn was sent in it or in the one before
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self) -> None:
        """Serve until standard input is closed."""
        while True:
            while not self._orders.empty():
                order = self._orders.get()
                if order is None:
                    self._report.close()
                    return
                self._begin(order)
            now = time.monotonic()
            for item in [item for item in self._over if item[0] <= now]:
                self._over.remove(item)
                self._end(item[1], now)
            self.emulator.serve(_POLL_S)
            self._look()
            self._since, self._turn = self._turn, now

    def _listen(self) -> None:
        for line in sys.stdin:
            self._orders.put(json.loads(line))
        self._orders.put(None)

    def _begin(self, order: dict[str, Any]) -> None:
        kind, now = order["kind"], time.monotonic()
        servo = self.emulator.bus.servos.get(order.get("id", 0))
        if kind == "servo_noise":
            noise = FaultConfig(order["bit_error_rate"], order["loss"], seed=order.get("seed", 0))
            self.emulator._noise = WireNoise(noise)
        elif servo is not None and kind == "servo_dead":
            servo.dead = True
        elif servo is not None and kind == "servo_hot":
            servo.temperature = HOT
        elif servo is not None and kind == "servo_overload":
            servo.fail(OVERLOAD)
        if order.get("seconds"):
            self._over.append((now + order["seconds"], order))

    def _end(self, order: dict[str, Any], now: float) -> None:
        servo = self.emulator.bus.servos.get(order.get("id", 0))
        if order["kind"] == "servo_noise":
            self.emulator._noise = WireNoise(FaultConfig())
        elif servo is not None and order["kind"] == "servo_dead":
            servo.dead = False
            servo.reboot(now)  # plugged in again, it starts afresh
        elif servo is not None and order["kind"] == "servo_hot":
            servo.temperature = COOL

    def _look(self) -> None:
        for key, servo in self.emulator.bus.servos.items():
            driven = servo.torque_enabled
            if driven != self._driven[key]:
                self._driven[key] = driven
                self._say(event="on" if driven else "off", id=key)
                self._seen[key] = servo.get("goal_position")  # where it is: nobody has sent that
            low, high = self._goals[key]
            goal = servo.get("goal_position")
            is_new, self._seen[key] = goal != self._seen[key], goal
            if driven and is_new and not low <= goal <= high and servo.get_unsigned("bus_watchdog") != _TRIPPED:
                self._say(event="violation", id=key, goal=goal)

    def _say(self, **content: Any) -> None:
        self._report.write(json.dumps({"since": self._since, "t": time.monotonic(), **content}) + "\n")
        self._report.flush()


if __name__ == "__main__":
    bus = SoakBus(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
    print(bus.emulator.path, flush=True)
    with bus.emulator:
        bus.run()
