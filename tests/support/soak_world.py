"""The world of a soak: an ant of eight servos, policies that can be told apart by what they do, keys, configurations.

Policy k turns each hip to one side or the other, by the bits of k: a command, or a logged action, shows which policy it
comes from. The ankles get so much noise that every limit has something to do.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.allow_list import AllowList, Role
from deploy.dynamixel import DynamixelConfig
from deploy.key_files import create_keys
from deploy.onnx_policy import OnnxPolicy
from mpo_robot.config import build, read_yaml
from tests.support.onnx_files import write_linear_policy
from tests.support.soak_schedule import VERSIONS

CONFIGS = Path(__file__).parents[2] / "configs" / "robots"
HIPS = [0, 2, 4, 6]
COMMANDS_PER_STEP = 2
MAX_STEPS = 60
MARGIN = 0.02  # fraction of the range
CHANGE, BEND = 0.1, 0.05  # rad; largest change from one motor command to the next, and of that change
RESOLUTION = 2 * np.pi / 4096  # rad, of the servos
SIDE, SIGMA, LOCAL_SIGMA, ANKLE_SIGMA = 0.7, 0.05, 0.01, 0.5  # of normalised actions
SIGMAS = 6.5  # how far a sample can be from its mean
OVERSHOOT = 0.13  # rad; limits on velocity and acceleration carry a hip so far past its goal, with something to spare
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Files and numbers of a run.

    Attributes:
        folder: Everything is in it.
        policies: Files, by number.
        versions: Of these files.
        local: Version of the policy file in the robot's process.
        actions: (low, high) [A] of the normalised actions of each version.
        ranges: (low, high) [A] of the commands, rad, of an episode of each version.
        server_port: Of the policy server.
        control_dt: Policy period in s.
    """

    folder: Path
    policies: tuple[Path, ...]
    versions: tuple[str, ...]
    local: str
    actions: dict[str, tuple[Array, Array]]
    ranges: dict[str, tuple[Array, Array]]
    server_port: int
    control_dt: float

    def write_robot(self, bus_port: str, proxy_port: int) -> Path:
        """Settings of the robot's process (`soak_loop`)."""
        robot = robot_settings(self.control_dt, bus_port)
        keys = self.folder / "keys"
        robot |= {
            "policy": "server",
            "policy_path": str(self.folder / "local.onnx"),
            "server": {
                "endpoint": f"tcp://127.0.0.1:{proxy_port}",
                "timeout_s": 2.0,
                "secret_key": str(keys / "robot.key_secret"),
                "server_key": str(keys / "server.key"),
            },
            "log": {"directory": str(self.folder / "logs"), "close_timeout_s": 60.0},
            "estop": {"key": False, "latch": str(self.folder / "robot.fault")},
        }
        settings = {
            "folder": str(self.folder),
            "robot": robot,
            "bounds": bounds(robot["robot"]["options"]["joints"], self.control_dt),
            "ranges": {key: [low.tolist(), high.tolist()] for key, (low, high) in self.ranges.items()},
        }
        path = self.folder / "robot.json"
        path.write_text(json.dumps(settings))
        return path

    def write_bus(self) -> Path:
        """Settings of the bus's process (`soak_bus`)."""
        joints = read_yaml(CONFIGS / "dynamixel_ant.yaml")["robot"]["options"]["joints"]
        goals: dict[int, list[int]] = {}
        for joint in joints:
            direction, offset = joint.get("direction", 1), joint.get("offset", 0.0)
            pulses = [2048 + (direction * joint[end] + offset) / RESOLUTION for end in ("low", "high")]
            goals[joint["id"]] = [round(min(pulses)) - 1, round(max(pulses)) + 1]
        emulator = {**read_yaml(CONFIGS / "emulated_ant_bus.yaml"), "link": "", "imu_port": 0}
        path = self.folder / "bus.json"
        path.write_text(json.dumps({"emulator": emulator, "goals": goals}))
        return path


def make_world(folder: Path, rate_hz: float) -> World:
    """Make everything that must be there before the first process starts."""
    for name in ("logs", "traces"):
        (folder / name).mkdir(parents=True)
    control_dt = 1.0 / rate_hz
    spec = build(DynamixelConfig, robot_settings(control_dt, "none")["robot"]["options"]).spec()
    count = spec.action_size
    weight = np.zeros((spec.observation_size, count))
    actions: dict[str, tuple[Array, Array]] = {}
    ranges: dict[str, tuple[Array, Array]] = {}
    versions: list[str] = []
    paths = [folder / f"policy_{number}.onnx" for number in range(VERSIONS)] + [folder / "local.onnx"]
    reach = spec.command_half_range.astype(np.float64)
    for number, path in enumerate(paths):
        is_local = path.name == "local.onnx"
        mean, stddev = np.zeros(count), np.full(count, ANKLE_SIGMA)
        stddev[HIPS] = LOCAL_SIGMA if is_local else SIGMA
        if not is_local:
            mean[HIPS] = SIDE * np.array(_sides(number))
        version = OnnxPolicy(write_linear_policy(path, spec, weight, mean, stddev)).policy_version
        versions.append(version)
        low, high = np.full(count, -np.inf), np.full(count, np.inf)
        low[HIPS], high[HIPS] = (mean - SIGMAS * stddev)[HIPS], (mean + SIGMAS * stddev)[HIPS]
        actions[version] = (low, high)
        # Home and the local policy are near 0, and what lies between is passed on the way.
        slack = OVERSHOOT + SIGMAS * LOCAL_SIGMA * reach
        ranges[version] = (np.minimum(low * reach, 0.0) - slack, np.maximum(high * reach, 0.0) + slack)
    keys = folder / "keys"
    allowed = AllowList(folder / "allowed")
    for name in ("server", "robot", "intruder"):
        public, _ = create_keys(keys, name)
        if name != "server":
            allowed.allow(public, Role.ROBOT)
    return World(
        folder, tuple(paths[:-1]), tuple(versions[:-1]), versions[-1], actions, ranges, free_port(), control_dt
    )


def robot_settings(control_dt: float, bus_port: str) -> dict[str, Any]:
    """`configs/robots/dynamixel_ant.yaml` with tighter limits, two motor commands per step, and a longer ladder."""
    data = read_yaml(CONFIGS / "dynamixel_ant.yaml")
    data["robot"]["options"] |= {"port": bus_port, "control_dt": control_dt, "bus_watchdog_s": 2.0, "body": None}
    data["robot"]["options"]["homing_velocity"] = 3.0
    command_dt = control_dt / COMMANDS_PER_STEP
    data["loop"] = {
        "pace": "real_time",
        "deadline": 0.9,
        "max_steps": MAX_STEPS,
        "command_rate": 1.0 / command_dt,
        "interpolation": "linear",
    }
    data["safety"] = {
        "position": {"mode": "clamp", "margin": MARGIN},
        "rate": {"mode": "clamp", "max_per_second": {"default": CHANGE / command_dt}},
        "acceleration": {"mode": "clamp", "max_per_second2": {"default": BEND / command_dt**2}},
        "applied_tolerance": 0.003,
        "watch": [
            {"term": "joint_velocity", "max_abs": 30.0, "mode": "fault", "ticks": 5},
            {"term": "info.temperature", "high": 65, "mode": "fault", "ticks": 5},
        ],
    }
    data["observation"] = {"stale": {"mode": "fallback", "max_age_s": 3 * control_dt}, "frozen": {"mode": "warn"}}
    data["fallback"] = {
        "recover_after": 1,
        "ladder": [
            {"do": "hold", "ticks": 8},
            {"do": "local", "ticks": 30},
            {"do": "safe_pose", "ticks": 60},
            {"do": "stop"},
        ],
    }
    return data


def bounds(joints: list[dict[str, Any]], control_dt: float) -> dict[str, Any]:
    """The checker's limits, worked out from the joints' numbers alone."""
    low, high, home = (np.array([joint[name] for joint in joints], np.float64) for name in ("low", "high", "home"))
    inset, command_dt = MARGIN * (high - low), control_dt / COMMANDS_PER_STEP
    return {
        "low": (low + inset).tolist(),
        "high": (high - inset).tolist(),
        "velocity": [CHANGE / command_dt] * len(joints),
        "acceleration": [BEND / command_dt**2] * len(joints),
        "home": home.tolist(),
        "command_dt": command_dt,
        "resolution": RESOLUTION,
    }


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _sides(number: int) -> list[float]:
    bits = [number >> bit & 1 for bit in range(3)]
    return [1.0 if bit else -1.0 for bit in [*bits, sum(bits) % 2]]
