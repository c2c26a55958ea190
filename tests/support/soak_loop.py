"""The robot process of a soak: sessions of the control loop, one after the other, under a checker.

    python -m tests.support.soak_loop SETTINGS.json

Orders are lines of JSON on standard input (`disk_slow`, `disk_full`, `disk_stuck`, `wall_jump`); its end ends the
process cleanly. SIGUSR1 and SIGTERM mean what they mean to `run-robot`. What was seen goes to files in the folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploy.control_loop import EpisodeResult
from deploy.dynamixel.bus import BusError
from deploy.estop import EStop
from deploy.estop_sources import SignalEStop
from deploy.fault_latch import RobotFaultError
from deploy.log_writer import EpisodeLogWriter
from deploy.robot_config import RobotConfig, build_parts, fault_latch, load_driver
from deploy.session import run_session
from deploy.stopping import StopSignals
from mpo_robot.config import build
from mpo_robot.errors import MpoRobotError
from mpo_robot.specs import PolicySpec
from tests.support.soak_disk import SoakDisk
from tests.support.soak_watch import Bounds, Heartbeat, Violations, Watch, WatchedRobot
from tests.support.soak_watch_loop import WatchedClock, WatchedSource

_PAUSE_S = 0.05  # of a human between two sessions
_LATEST_NS = 1_000_000_000 * 10**9  # of wall time off the true one: neither before 1970 nor beyond what MCAP holds
_KEPT = ("steps", "commands", "overruns", "skipped_periods", "skipped_commands", "modified", "invalid_steps",
         "deadline_misses", "misses", "fallbacks", "faults")  # fmt: skip
_EXPECTED = (MpoRobotError, BusError, KeyboardInterrupt)


class SoakLoop:
    """Runs sessions until standard input ends."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Args: `folder`; `robot`, as in a robot's YAML; `bounds`; `ranges`: version -> [low, high]."""
        self._folder = Path(settings["folder"])
        self._config = build(RobotConfig, settings["robot"])
        self._latch = fault_latch(self._config)
        arrays = {name: np.array(value, np.float64) for name, value in settings["bounds"].items()}
        bounds = Bounds(
            **{name: arrays[name] for name in ("low", "high", "velocity", "acceleration", "home")},
            command_dt=float(arrays["command_dt"]),
            resolution=float(arrays["resolution"]),
            ranges={key: (np.array(low), np.array(high)) for key, (low, high) in settings["ranges"].items()},
        )
        violations = Violations(self._folder / "violations.jsonl")
        self._watch = Watch(bounds, violations, Heartbeat())
        self._disk = SoakDisk(self._watch)
        control_dt = float(self._config.robot.options["control_dt"])
        period_ns, command_ns = round(control_dt * 1e9), round(bounds.command_dt * 1e9)
        self._clock = WatchedClock(self._watch, period_ns, command_ns, self._config.loop.deadline * control_dt)
        self._finished = threading.Event()
        self._log: EpisodeLogWriter | None = None
        self._begun: dict[str, Any] | None = None
        self._episodes = 0
        self._detail = ""
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self) -> None:
        """Sessions, each ended by a fault, an operator or a full disk; then the next."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # outside sessions
        while not self._finished.is_set():
            in_fault, begun = self._latch.read() is not None, self._episodes
            outcome = self._session()
            if in_fault and self._episodes > begun:
                self._watch.violations.report("fault_ignored", f"an episode began in FAULT; outcome {outcome}")
            rearmed = in_fault and outcome == RobotFaultError.__name__
            if rearmed:
                self._latch.clear()  # the human
            detail, self._detail = self._detail, ""
            content = {"t": time.monotonic(), "outcome": outcome, "rearmed": rearmed, "detail": detail}
            self._write("sessions.jsonl", content)
            self._finished.wait(_PAUSE_S)
        disk = {"refused": self._disk.refused, "delayed": self._disk.delayed}
        self._write("sessions.jsonl", {"t": time.monotonic(), "outcome": "finished", "disk": disk})

    def _session(self) -> str:
        """One session as `run-robot` would run it; returns how it ended."""
        estop = EStop()
        try:
            with StopSignals() as signals, SignalEStop(estop, self._config.estop.signal):
                robot = WatchedRobot(load_driver(self._config.robot), self._watch)
                stop = self._asked(signals.requested)
                parts, _ = build_parts(self._config, robot.spec, stop, estop)
                parts = dataclasses.replace(
                    parts,
                    source=WatchedSource(parts.source, self._watch, self._on_begin),
                    open_log=self._open_log(robot.spec),
                    clock=self._clock,
                )
                name = self._config.robot.name
                run_session(robot, parts, name=name, episodes=0, on_result=self._on_result, latch=self._latch)
            return "ended"
        except _EXPECTED as error:
            self._detail = repr(error)
            self._watch.violations.event(f"session: {error!r}")
            self._save(None, repr(error))
            return type(error).__name__
        except Exception as error:
            self._watch.violations.report("unexpected_error", repr(error))
            self._save(None, repr(error))
            return type(error).__name__

    def _asked(self, requested: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: self._finished.is_set() or requested()

    def _open_log(self, spec: PolicySpec) -> Callable[[str], EpisodeLogWriter]:
        def open_log(episode_id: str) -> EpisodeLogWriter:
            config = self._config.log
            self._log = EpisodeLogWriter(config.directory, spec, episode_id, config=config, disk=self._disk)
            return self._log

        return open_log

    def _on_begin(self, episode_id: str, before: float, after: float, version: str) -> None:
        self._begun = {"episode_id": episode_id, "asked": before, "answered": after, "version": version}
        self._log = None
        self._episodes += 1

    def _on_result(self, result: EpisodeResult) -> None:
        self._save(result, result.detail)

    def _save(self, result: EpisodeResult | None, detail: str) -> None:
        """Write down what was seen of the episode that has just ended, if one had begun."""
        begun, self._begun = self._begun, None
        if begun is None:
            return
        trace, statistics = self._watch.trace, {}
        if result is not None:
            summary = result.statistics.summary()
            statistics = {name: summary[name] for name in _KEPT}
            if statistics["skipped_periods"] != trace.skipped:
                self._watch.violations.report(
                    "schedule", f"{trace.skipped} periods skipped, counted {statistics['skipped_periods']}"
                )
        np.savez(
            self._folder / "traces" / begun["episode_id"],
            observations=np.array(trace.observations, np.float32),
            applied=np.array(trace.applied, np.float32),
            outcomes=np.array(trace.outcomes, np.float32),
        )
        log = self._log
        self._write(
            "episodes.jsonl",
            {
                **begun,
                "reason": "error" if result is None else result.reason.value,
                "detail": detail,
                "window": [trace.started_s, trace.stopped_s] if trace.started_s < math.inf else None,
                "commands": trace.commands,
                "ticks": trace.ticks,
                "completed": len(trace.applied),
                "dropped": 0 if log is None else log.dropped,
                "logged": log is not None,
                "log_error": "" if log is None or log.error is None else repr(log.error),
                "statistics": statistics,
            },
        )

    def _write(self, name: str, content: dict[str, Any]) -> None:
        with (self._folder / name).open("a") as stream:
            stream.write(json.dumps(content) + "\n")

    def _listen(self) -> None:
        for line in sys.stdin:
            order = json.loads(line)
            if order["kind"] == "wall_jump":
                offset_ns = self._clock.wall_offset_ns + round(order["jump_s"] * 1e9)
                self._clock.wall_offset_ns = max(-_LATEST_NS, min(_LATEST_NS, offset_ns))
            else:
                self._disk.become(order["kind"].removeprefix("disk_"), order["seconds"], order.get("delay_s", 0.0))
        self._finished.set()


if __name__ == "__main__":
    SoakLoop(json.loads(Path(sys.argv[1]).read_text())).run()
