"""The control loop of `loop_bench` under the soak's checker, to see what the checker finds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from deploy.log_writer import EpisodeLogWriter, LogConfig
from deploy.safety import AccelerationLimit, PositionLimit, RateLimit, SafetyConfig
from tests.support.loop_bench import SPEC, Bench
from tests.support.soak_audit import Problem, ReadLog, check_episode, read_files
from tests.support.soak_disk import SoakDisk
from tests.support.soak_watch import Bounds, Violations, Watch, WatchedRobot
from tests.support.soak_watch_loop import WatchedSource

LENGTH = 30
VELOCITY, ACCELERATION = 40.0, 2000.0  # per s, per s^2; a period is 0.01 s
SAFETY = SafetyConfig(
    PositionLimit("clamp", margin=0.1),
    RateLimit("clamp", {"default": VELOCITY}),
    AccelerationLimit("clamp", {"default": ACCELERATION}),
)


def make_watch() -> Watch:
    """The checker's own idea of `SAFETY`."""
    inset = 0.1 * 6.0
    bounds = Bounds(
        low=np.full(2, -2.0 + inset),
        high=np.full(2, 4.0 - inset),
        velocity=np.full(2, VELOCITY),
        acceleration=np.full(2, ACCELERATION),
        command_dt=0.01,
        home=np.full(2, 0.25),
    )
    return Watch(bounds, Violations())


class Watched:
    """A bench under the checker: one episode, the violations of its running, and those of its log."""

    def __init__(self, directory: Path, **parts: Any) -> None:
        self.watch = make_watch()
        self.bench = Bench(directory, length=LENGTH, safety=SAFETY, **parts)
        self.fake = self.bench.robot
        self.bench.robot = WatchedRobot(self.fake, self.watch)  # type: ignore[assignment]
        self.writer: EpisodeLogWriter | None = None
        self.begun: dict[str, Any] = {}
        source = WatchedSource(self.bench.parts.source, self.watch, self.begin)
        self.bench.parts = dataclasses.replace(self.bench.parts, source=source, open_log=self.open_log)  # type: ignore[arg-type]
        self.directory = directory

    def begin(self, episode_id: str, before: float, after: float, version: str) -> None:
        self.begun = {"episode_id": episode_id, "asked": before, "answered": after, "version": version}

    def open_log(self, episode_id: str) -> EpisodeLogWriter:
        disk = SoakDisk(self.watch)
        config = LogConfig(fsync="never")
        self.writer = EpisodeLogWriter(self.directory, SPEC, episode_id, config=config, disk=disk)
        return self.writer

    def run(self) -> set[str]:
        """Kinds of violations, the log's included."""
        self.bench.run()
        return self.watch.violations.kinds | {problem.kind for problem in self.audit(self.log())}

    def log(self) -> ReadLog:
        return read_files([self.directory / "ep.mcap"])

    def audit(self, log: ReadLog) -> list[Problem]:
        assert self.writer is not None
        trace = self.watch.trace
        arrays = {"observations": trace.observations, "applied": trace.applied, "outcomes": trace.outcomes}
        return check_episode(
            {"episode_id": "ep", "completed": len(trace.applied), "dropped": self.writer.dropped}, log, arrays
        )
