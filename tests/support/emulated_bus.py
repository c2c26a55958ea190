"""The emulated ant bus in a thread, and the robot file that drives it. Slow enough for a busy machine."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import yaml

from mpo_robot.config import build, read_yaml
from sim.servo_bus.emulator import Emulator, EmulatorConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "robots"
CONTROL_DT = 0.1


class EmulatedBus:
    """Serves the bus of `configs/robots/emulated_ant_bus.yaml` while the context is open.

    Args:
        imu_port: UDP port for the IMU's readings; 0: none are sent.
        faults: As in its YAML.
    """

    def __init__(self, imu_port: int = 0, **faults: Any) -> None:
        data = {**read_yaml(CONFIGS / "emulated_ant_bus.yaml"), "link": "", "imu_port": imu_port, "faults": faults}
        self.emulator = Emulator(build(EmulatorConfig, data))
        self.servos = self.emulator.bus.servos
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.emulator.run, args=(self._stop.is_set,))

    @property
    def any_motor_on(self) -> bool:
        return any(servo.torque_enabled for servo in self.servos.values())

    def __enter__(self) -> EmulatedBus:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.pull_the_plug()

    def pull_the_plug(self) -> None:
        """End the emulator; its terminal vanishes."""
        self._stop.set()
        self._thread.join()
        self.emulator.close()


def free_udp_port() -> int:
    """A UDP port that nobody uses now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_robot_file(directory: Path, port: str, options: dict[str, Any], **settings: Any) -> Path:
    """`configs/robots/dynamixel_ant.yaml` for this port, at 10 Hz, without a body source; changed by the arguments."""
    data = read_yaml(CONFIGS / "dynamixel_ant.yaml")
    data["robot"]["options"] |= {"port": port, "control_dt": CONTROL_DT, "bus_watchdog_s": 2.0, "body": None, **options}
    data["safety"]["watch"] = [item for item in data["safety"]["watch"] if item["term"] != "orientation"]
    data["safety"]["watch"] = [{**item, "ticks": 1} for item in data["safety"]["watch"]]
    data["observation"]["stale"] = {"mode": "off"}
    data["fallback"] = {"ladder": [{"do": "hold", "ticks": 3}, {"do": "stop"}]}
    data["log"] = {"directory": str(directory / "logs")}
    data |= {"policy": "local", "seed": 0}
    for key, value in settings.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) and isinstance(data.get(key), dict) else value
    path = directory / "robot.yaml"
    path.write_text(yaml.safe_dump(data))
    return path
