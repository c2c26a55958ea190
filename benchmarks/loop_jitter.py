"""How exactly the control loop keeps its rate: jitter, latency, missed deadlines and overruns, with logging on.

    python benchmarks/loop_jitter.py [--seconds 10] [--rates 50 200 500 1000] [--priorities 0 50] [--output FILE]

A robot that costs nothing is driven in real time, once with the policy in process and once with `mpo-robot serve` in
another process, first with normal and then with real-time priority (where allowed). Jitter is the start of a tick
after its scheduled time. Nothing is left out of the percentiles.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from deploy.action_source import ActionSource, LocalSource, ServerSource  # noqa: E402 (the root comes first)
from deploy.client import PolicyClient  # noqa: E402
from deploy.control_loop import ControlLoop  # noqa: E402
from deploy.fallback import FallbackConfig, Rung  # noqa: E402
from deploy.log_writer import EpisodeLogWriter, LogConfig  # noqa: E402
from deploy.loop_parts import LoopConfig, LoopParts  # noqa: E402
from deploy.onnx_policy import OnnxPolicy  # noqa: E402
from deploy.robot import FloatArray, Measurement  # noqa: E402
from deploy.timing import SystemClock, use_real_time_priority  # noqa: E402
from mpo_robot.specs import PolicySpec  # noqa: E402
from tests.support.onnx_files import small_spec, write_mlp_policy  # noqa: E402
from tests.support.serving import ServerProcess  # noqa: E402

RATES_HZ = (50, 200, 500, 1000)
OUTPUT = ROOT / "benchmarks" / "results" / "loop_jitter.json"
Row = dict[str, Any]


class IdleRobot:
    """Answers at once with random readings, so that only the loop is measured."""

    def __init__(self, spec: PolicySpec) -> None:
        self._spec = spec
        self._readings = np.random.default_rng(0).standard_normal((256, spec.observation_size)).astype(np.float32)
        self._count = 0

    @property
    def spec(self) -> PolicySpec:
        """Any spec."""
        return self._spec

    def connect(self) -> None:
        """Nothing to connect."""

    def start_episode(self, seed: int | None = None) -> Measurement:
        """A reading."""
        return self.read()

    def send_command(self, command: FloatArray) -> FloatArray:
        """Takes everything."""
        return command

    def read(self) -> Measurement:
        """The next random reading."""
        self._count += 1
        return Measurement(self._readings[self._count % 256], time.monotonic_ns(), 0.0, False, False, {})

    def safe_pose_command(self) -> FloatArray:
        """Zeros."""
        return np.zeros(self._spec.action_size, np.float32)

    def stop(self) -> None:
        """Nothing to stop."""

    def disconnect(self) -> None:
        """Nothing to disconnect."""


def measure(rates_hz: Sequence[int] = RATES_HZ, seconds: float = 10.0, priority: int = 0) -> list[Row]:
    """One row per rate and source of actions (`local`, `server`), times in microseconds.

    Args:
        rates_hz: Control rates.
        seconds: Length of each run.
        priority: Real-time priority of loop and server, 0 for none. The calling thread keeps it. Without permission
            there are no rows, and a line says why.
    """
    if priority and (problem := use_real_time_priority(priority)):
        print(f"skipped: {problem}")
        return []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for rate in rates_hz:
            spec = small_spec(observation_size=17, action_size=6, control_dt=1.0 / rate)
            policy = write_mlp_policy(Path(folder) / f"policy_{rate}.onnx", spec)
            local = LocalSource(OnnxPolicy(policy), stochastic=True, seed=0)
            rows.append({"priority": priority, **run_loop(spec, local, "local", rate, seconds, Path(folder))})
            with ServerProcess(policy) as server:
                source = ServerSource(PolicyClient(server.endpoint, spec), 10.0, SystemClock())
                try:
                    rows.append({"priority": priority, **run_loop(spec, source, "server", rate, seconds, Path(folder))})
                finally:
                    source.close()
    return rows


def run_loop(spec: PolicySpec, source: ActionSource, name: str, rate_hz: int, seconds: float, directory: Path) -> Row:
    """One episode of `seconds` and its statistics."""
    parts = LoopParts(
        source=source,
        fallback=FallbackConfig((Rung("hold"), Rung("stop"))),  # a slow server must not end the measurement
        loop=LoopConfig(max_steps=round(seconds * rate_hz), deadline=0.8),
        open_log=lambda episode: EpisodeLogWriter(directory, spec, episode, config=LogConfig()),
    )
    result = ControlLoop(IdleRobot(spec), parts).run_episode(f"{name}-{rate_hz}")
    summary = result.statistics.summary()
    times = {
        f"{label}_{key}_us": value
        for label in ("jitter", "latency", "work")
        for key, value in summary.get(f"{label}_us", {}).items()
    }
    counters = ("deadline_misses", "overruns", "skipped_periods", "log_dropped")
    ended = {} if result.reason.value == "max_steps" else {"ended": f"{result.reason.value}: {result.detail}"}
    return {
        "rate_hz": rate_hz, "source": name, "ticks": result.steps, **times, **{key: summary[key] for key in counters},
        **ended,
    }  # fmt: skip


def print_table(rows: list[Row]) -> None:
    """The rows for people."""
    print(f"{'':25}{'jitter [us]':^30}{'latency [us]':^30}{'':>8}{'':>9}")
    print(
        f"{'priority':>8} {'Hz':>6} {'source':8} "
        + f"{'p50':>9}{'p99':>10}{'max':>10} " * 2
        + f"{'misses':>9}{'overruns':>10}"
    )
    for row in rows:
        times = "".join(
            f"{row[f'{label}_p50_us']:>9.1f}{row[f'{label}_p99_us']:>10.1f}{row[f'{label}_max_us']:>10.1f} "
            for label in ("jitter", "latency")
        )
        start = f"{row['priority']:>8} {row['rate_hz']:>6} {row['source']:8} "
        print(f"{start}{times}{row['deadline_misses']:>9}{row['overruns']:>10}")


def machine() -> Row:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load_average_1min": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Jitter, latency and misses of the control loop.")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each run (default 10)")
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES_HZ), metavar="HZ", help="control rates")
    parser.add_argument(
        "--priorities", type=int, nargs="+", default=[0, 50], metavar="P", help="0 normal, 1 to 99 real time"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file (default {OUTPUT.relative_to(ROOT)})")
    options = parser.parse_args(arguments)
    before = machine()
    rows: list[Row] = []
    for priority in sorted(options.priorities):  # a priority stays, so the normal one comes first
        rows += measure(options.rates, options.seconds, priority)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    result = {
        "benchmark": "loop_jitter",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": head.stdout.strip() or "unknown",
        "machine": before,
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
