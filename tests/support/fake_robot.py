"""A tiny robot with exact dynamics, scripted faults and a record of every call; also loadable by `run-robot`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploy.robot import FloatArray, Measurement
from mpo_robot.specs import PolicySpec
from tests.support.onnx_files import small_spec

Edit = Callable[[int, Measurement], Measurement]


class FakeRobot:
    """State x of size O: x' = 0.9 x + 0.1 * sum(command); reward -|x|. Counts reads from 0 within an episode.

    Args:
        spec: Any spec.
        clock: Monotonic nanoseconds for the measurements.
        length: The episode is truncated by the robot after this many steps.
        edit: Called with (read index, measurement) to spoil measurements.
        on_send: Called with (command index, command); may raise, sleep, or return another applied command.
        journal: File that gets one line per call, for tests that watch another process.
        homing_s: How long `start_episode` takes.
    """

    def __init__(
        self,
        spec: PolicySpec | None = None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        length: int = 10,
        edit: Edit | None = None,
        on_send: Callable[[int, FloatArray], FloatArray | None] | None = None,
        journal: str | Path | None = None,
        homing_s: float = 0.0,
    ) -> None:
        self._spec = spec or small_spec()
        self._clock, self._length, self._edit, self._on_send = clock, length, edit, on_send
        self._journal = None if journal is None else Path(journal)
        self._homing_s = homing_s
        self.calls: list[str] = []
        self.commands: list[FloatArray] = []
        self.measurements: list[Measurement] = []
        self._x = np.zeros(self._spec.observation_size, np.float32)

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    @property
    def safe_pose(self) -> FloatArray:
        return np.full(self._spec.action_size, 0.25, np.float32)

    def connect(self) -> None:
        self._note("connect")

    def start_episode(self, seed: int | None = None) -> Measurement:
        self._note("start_episode")
        time.sleep(self._homing_s)
        rng = np.random.default_rng(seed)
        self._x = rng.uniform(-1, 1, self._spec.observation_size).astype(np.float32)
        self.commands, self.measurements = [], []
        return self._measure(0.0)

    def send_command(self, command: FloatArray) -> FloatArray:
        self._note("send_command")
        applied = None if self._on_send is None else self._on_send(len(self.commands), command)
        applied = command if applied is None else applied
        self.commands.append(applied.copy())
        self._x = (0.9 * self._x + 0.1 * np.nan_to_num(applied, posinf=0.0, neginf=0.0).sum()).astype(np.float32)
        return applied

    def read(self) -> Measurement:
        self._note("read")
        return self._measure(-float(np.abs(self._x).sum()))

    def safe_pose_command(self) -> FloatArray:
        return self.safe_pose

    def stop(self) -> None:
        self._note("stop")

    def disconnect(self) -> None:
        self._note("disconnect")

    def _measure(self, reward: float) -> Measurement:
        ended = 0 < self._length <= len(self.commands)
        measurement = Measurement(self._x, self._clock(), reward, False, ended, {"randomization": {"mass": 1.5}})
        if self._edit is not None:
            measurement = self._edit(len(self.measurements), measurement)
        self.measurements.append(measurement)
        return measurement

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self._journal is not None:
            with self._journal.open("a") as stream:
                stream.write(call + "\n")


def make_robot(**options: Any) -> FakeRobot:
    """Factory for `robot.module: tests.support.fake_robot:make_robot`; numbers of the spec are options too."""
    sizes = {name: options.pop(name) for name in ("observation_size", "action_size", "control_dt") if name in options}
    return FakeRobot(small_spec(**sizes), **options)
