"""What logging costs the control loop per step: making the record and queueing it, while the writer thread writes.

    python benchmarks/log_cost.py [--steps 5000] [--rate 1000] [--output FILE]

Steps come at a fixed rate, as in a control loop and with its settings of the interpreter, because the writer thread
shares the interpreter with it: what is timed is `StepBuilder.complete` and `EpisodeLogWriter.append` in the loop's
thread. The control loop does this after the command was sent, so it delays no command; it is part of the period all the
same. Prints a table, writes JSON, and exits with 1 if the median of the plain log is above the bar.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks._record import write_record  # noqa: E402 (the repository root has to be on the path first)
from deploy.action_source import Action  # noqa: E402
from deploy.log_config import LogConfig  # noqa: E402
from deploy.log_joints import JointStatesConfig  # noqa: E402
from deploy.log_writer import EpisodeLogWriter  # noqa: E402
from deploy.robot import Measurement  # noqa: E402
from deploy.step_builder import Decision, OpenStep, StepBuilder  # noqa: E402
from deploy.timing import steady_interpreter  # noqa: E402
from mpo_robot.specs import PolicySpec, TermSpec  # noqa: E402

OUTPUT = ROOT / "benchmarks" / "results" / "log_cost.json"
BAR_P50_US = 50.0
JOINTS = 8
SPEC = PolicySpec(
    observation=(
        TermSpec("joint_position", JOINTS, "rad"),
        TermSpec("joint_velocity", JOINTS, "rad/s"),
        TermSpec("orientation", 6, "1"),
    ),
    command=(TermSpec("joint_target", JOINTS, "rad", (-1.0,) * JOINTS, (1.0,) * JOINTS),),
    control_dt=0.001,
)
CASES = {
    "step record": LogConfig(),
    "with signals and joint states": LogConfig(signals=True, joint_states=JointStatesConfig(enabled=True)),
    "chunks of 20 ms": LogConfig(flush_interval_s=0.02),
    "parts of 200 kB": LogConfig(max_bytes=200_000),
    "fsync each step": LogConfig(fsync="step"),
}


def measure(config: LogConfig, steps: int, rate_hz: float) -> dict[str, Any]:
    """Microseconds in the loop's thread per step, and what became of the log."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((steps + 1, SPEC.observation_size)).astype(np.float32)
    actions = rng.uniform(-1, 1, (steps, SPEC.action_size)).astype(np.float32)
    times = np.empty(steps, np.int64)
    period_ns = round(1e9 / rate_hz)
    with tempfile.TemporaryDirectory() as folder:
        writer = EpisodeLogWriter(folder, SPEC, "benchmark", config=config)
        builder = StepBuilder(SPEC, "benchmark", time.time_ns() - time.monotonic_ns())
        writer.describe({}, time.monotonic_ns(), time.time_ns())
        due = time.monotonic_ns()
        for index in range(steps):
            due += period_ns
            time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            command = SPEC.to_command(actions[index])
            decision = Decision(command, Action(actions[index], -1.5, "a" * 64), 100_000, False)
            now = time.monotonic_ns()
            after = Measurement(states[index + 1], now, 0.5, False, False, {})
            start = time.perf_counter_ns()
            step = OpenStep(index, states[index], now, True, decision, command, False)
            writer.append(builder.complete(step, after, index == steps - 1))
            times[index] = time.perf_counter_ns() - start
        writer.close()
        size = sum(path.stat().st_size for path in Path(folder).glob("*.mcap"))
    p50, p99 = np.percentile(times, (50, 99)) / 1e3
    return {
        "p50_us": round(float(p50), 2),
        "p99_us": round(float(p99), 2),
        "max_us": round(float(times.max()) / 1e3, 1),
        "bytes_per_step": round(size / steps),
        "dropped": writer.dropped,
        "parts": writer.parts,
    }


def main() -> int:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=1000.0, help="steps per second")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'':32}{'p50 us':>10}{'p99 us':>10}{'max us':>10}{'B/step':>10}{'dropped':>10}")
    for name, config in CASES.items():
        with steady_interpreter():
            row = rows[name] = measure(config, args.steps, args.rate)
        columns = ("p50_us", "p99_us", "max_us", "bytes_per_step", "dropped")
        print(f"{name:32}" + "".join(f"{row[column]:>10}" for column in columns))
    met = rows["step record"]["p50_us"] <= BAR_P50_US
    content = {"steps": args.steps, "rate_hz": args.rate, "observation_size": SPEC.observation_size, "joints": JOINTS}
    write_record(args.output, "log_cost", **content, rows=rows, bar={"p50_us": BAR_P50_US, "met": met})
    print(f"bar: p50 of the step record at most {BAR_P50_US:g} us: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
