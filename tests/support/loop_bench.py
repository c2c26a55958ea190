"""A fake robot in a control loop on a fake clock, with a scripted policy and a log."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from deploy.action_source import Action
from deploy.client_types import EpisodeOutcome
from deploy.control_loop import ControlLoop, EpisodeResult
from deploy.log_reader import LogContents, read_log
from deploy.log_writer import EpisodeLogWriter, LogConfig
from deploy.loop_parts import LoopConfig, LoopParts
from deploy.robot import FloatArray
from deploy.robot_state import State
from tests.support.fake_clock import FakeClock
from tests.support.fake_robot import Edit, FakeRobot
from tests.support.onnx_files import small_spec

SPEC = small_spec(control_dt=0.01)
MS = 1_000_000


class Script:
    """Action source: `missing` step indices get no action; `latency_ns` passes on the clock with each call."""

    def __init__(
        self, clock: FakeClock, missing: tuple[int, ...] = (), latency_ns: int = MS, version: str = "v1"
    ) -> None:
        self.clock, self.missing, self.latency_ns, self.version = clock, missing, latency_ns, version
        self.asked: list[tuple[int, int]] = []
        self.maintained = 0
        self.last_error, self.miss_cause = "scripted", "no_reply"
        self.closed = False
        self.outcomes: list[EpisodeOutcome] = []
        self.actions = np.random.default_rng(1).normal(0, 1.5, (200, 2)).astype(np.float32)

    def begin_episode(self, episode_id: str) -> str:
        return self.version

    def act(self, observation: FloatArray, step_index: int, deadline_ns: int) -> Action | None:
        self.asked.append((step_index, deadline_ns))
        if step_index in self.missing:
            self.clock.now_ns = max(self.clock.now_ns, deadline_ns)
            return None
        self.clock.advance(self.latency_ns)
        return Action(self.actions[step_index], -1.0 - step_index, self.version)

    def maintain(self) -> None:
        self.maintained += 1

    def end_episode(self, outcome: EpisodeOutcome) -> None:
        self.outcomes.append(outcome)

    def close(self) -> None:
        self.closed = True


class Bench:
    """One episode at a time; `loop` is the control loop of the last one."""

    def __init__(self, directory: Path, *, edit: Edit | None = None, length: int = 8, **parts: object) -> None:
        self.clock = FakeClock()
        self.robot = FakeRobot(SPEC, clock=self.clock.monotonic_ns, length=length, edit=edit)
        self.directory = directory
        self.source = Script(self.clock)
        self.local = Script(self.clock, version="local")
        self.parts = LoopParts(source=self.source, local=self.local, open_log=self.open_log, clock=self.clock)
        self.parts = dataclasses.replace(self.parts, **parts)  # type: ignore[arg-type]
        if self.parts.loop.watchdog_s == LoopConfig().watchdog_s:
            # The watchdog has the real clock: a busy machine may suspend a test for longer than its default.
            self.parts = dataclasses.replace(self.parts, loop=dataclasses.replace(self.parts.loop, watchdog_s=0.0))

    def open_log(self, episode_id: str) -> EpisodeLogWriter:
        return EpisodeLogWriter(self.directory, self.robot.spec, episode_id, config=LogConfig(fsync="never"))

    def state(self) -> State:
        """Of the robot, in the running episode."""
        return self.loop.machine.state

    def run(self) -> tuple[EpisodeResult, LogContents]:
        self.loop = ControlLoop(self.robot, self.parts)
        result = self.loop.run_episode("ep", seed=0)
        return result, read_log(self.directory / "ep.mcap")
