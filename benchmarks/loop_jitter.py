"""How exactly the control loop keeps its rate, idle and under CPU load: jitter, latency, misses, and what was applied.

    python benchmarks/loop_jitter.py [--seconds 5] [--rates 50 200 500 1000] [--sources local server] [--loads 0 4]
                                     [--priorities 0 50] [--awake] [--output FILE]

A robot that costs nothing is driven in real time with logging on, by the policy in process and by `mpo-robot serve` in
another process; idle and beside programs of this script that do nothing but compute; as a normal program and with
real-time priority and locked memory (where allowed). In a period without an action in time the last command is held.
The robot takes down every command, and afterwards each is checked: it must be the action for the very reading before
it, or the command before it again. Anything else is a stale action. Jitter is the start of a tick after its scheduled
time. Nothing is left out of the percentiles. Beside it stands what no loop can help: how long the machine takes the CPU
away from a program that only reads the clock. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks._record import write_record  # noqa: E402 (the repository root has to be on the path first)
from deploy.action_source import ActionSource, LocalSource, ServerSource  # noqa: E402
from deploy.client import PolicyClient  # noqa: E402
from deploy.control_loop import ControlLoop  # noqa: E402
from deploy.fallback import FallbackConfig, Rung  # noqa: E402
from deploy.log_writer import EpisodeLogWriter, LogConfig  # noqa: E402
from deploy.loop_parts import LoopConfig, LoopParts  # noqa: E402
from deploy.onnx_policy import OnnxPolicy  # noqa: E402
from deploy.real_time import RealTimeConfig, use_real_time  # noqa: E402
from deploy.robot import FloatArray, Measurement  # noqa: E402
from deploy.timing import SystemClock  # noqa: E402
from mpo_robot.specs import PolicySpec  # noqa: E402
from tests.support.onnx_files import small_spec, write_mlp_policy  # noqa: E402
from tests.support.serving import ServerProcess  # noqa: E402

RATES_HZ = (50, 200, 500, 1000)
SOURCES = ("local", "server")
OUTPUT = ROOT / "benchmarks" / "results" / "loop_jitter.json"
READINGS = 256
GAPS_US = (200, 600)
STDDEV = 1e-6  # sampled and logged like any other, and yet every action tells which reading it is for
TOLERANCE = 1e-4  # of a command
# A child inherits real-time priority, with which it would stop the machine; and it must not outlive this script.
_BUSY = """
import os, sys
if hasattr(os, "SCHED_OTHER"):
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
while os.getppid() == int(sys.argv[1]):
    sum(range(100_000))
"""
Row = dict[str, Any]


class Applied(NamedTuple):
    """What the motors got.

    Attributes:
        fresh: Commands that were the action for the reading before them.
        held: Commands that were the one before again.
        stale: All others; `fresh + held + stale` is the number of commands.
    """

    fresh: int
    held: int
    stale: int


def check_commands(
    commands: FloatArray, readings: npt.NDArray[np.int64], expected: FloatArray, start: FloatArray
) -> Applied:
    """Which commands were fresh, held or stale.

    Args:
        commands: [T, A] as sent.
        readings: [T] index of the reading that was the newest when each was sent.
        expected: [R, A] the policy's command for each reading.
        start: [A] what is held if the first period has no action: the safe pose.

    Raises:
        ValueError: two readings have nearly the same command, so that nothing could be told apart.
    """
    distance = np.abs(expected[:, None] - expected[None]).max(-1) + np.eye(len(expected))
    if distance.min() < 10 * TOLERANCE:
        raise ValueError("two readings have nearly the same command")
    fresh = np.abs(commands - expected[readings]).max(-1) < TOLERANCE
    held = ~fresh & (commands == np.concatenate([start[None], commands])[:-1]).all(-1)
    return Applied(int(fresh.sum()), int(held.sum()), int((~fresh & ~held).sum()))


class IdleRobot:
    """Answers at once with random readings, so that only the loop is measured, and takes down what it is told.

    Attributes:
        readings: [R, O] in turn.
        commands: [T, A] received so far, of at most `capacity`.
        newest: [T] index of the reading before each.
    """

    def __init__(self, spec: PolicySpec, capacity: int) -> None:
        self._spec = spec
        self.readings = np.random.default_rng(0).standard_normal((READINGS, spec.observation_size)).astype(np.float32)
        self._commands = np.zeros((capacity, spec.action_size), np.float32)
        self._newest = np.zeros(capacity, np.int64)
        self._received = 0
        self._count = 0

    @property
    def commands(self) -> FloatArray:
        """See the class."""
        return self._commands[: self._received]

    @property
    def newest(self) -> npt.NDArray[np.int64]:
        """See the class."""
        return self._newest[: self._received]

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
        self._commands[self._received] = command
        self._newest[self._received] = self._count % READINGS
        self._received += 1
        return command

    def read(self) -> Measurement:
        """The next random reading."""
        self._count += 1
        return Measurement(self.readings[self._count % READINGS], time.monotonic_ns(), 0.0, False, False, {})

    def safe_pose_command(self) -> FloatArray:
        """Zeros."""
        return np.zeros(self._spec.action_size, np.float32)

    def stop(self) -> None:
        """Nothing to stop."""

    def disconnect(self) -> None:
        """Nothing to disconnect."""


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """`count` normal programs that use all the CPU they can get, while the context is open."""
    command = [sys.executable, "-S", "-c", _BUSY, str(os.getpid())]
    programs = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def measure(
    rates_hz: Sequence[int] = RATES_HZ,
    seconds: float = 10.0,
    priority: int = 0,
    sources: Sequence[str] = SOURCES,
    loads: Sequence[int] = (0,),
    awake: bool = False,
) -> list[Row]:
    """One row per rate, source of actions and load, times in microseconds.

    Args:
        rates_hz: Control rates.
        seconds: Length of each run.
        priority: Real-time priority of loop and server, 0 for none. The calling thread keeps it. Without permission
            there are no rows, and a line says why.
        sources: `local` acts in this process, `server` asks another one.
        loads: Numbers of busy programs beside them.
        awake: Keep the CPUs from sleeping, from now on.
    """
    wanted = RealTimeConfig(priority, lock_memory=priority > 0, keep_cpus_awake=awake)
    if problems := use_real_time(wanted):
        print("skipped: " + "; ".join(problems))
        return []
    rows: list[Row] = []
    for load in loads:
        for rate in rates_hz:
            for source in sources:
                with tempfile.TemporaryDirectory() as folder:
                    row = run_source(source, rate, seconds, Path(folder), priority, load)
                rows.append({"priority": priority, "awake": awake, "load": load, **row})
    return rows


def stolen_ms() -> float:
    """Time that programs of this virtual machine wanted to run and its host did not let them, of all CPUs together.

    In steps of 10 ms, since the start of the machine; 0 where the system does not tell.
    """
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return 1000.0 * int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def machine_gaps(seconds: float) -> Row:
    """How often this thread is kept from computing: by a virtual machine's host, interrupts, others of its priority.

    It reads the clock for 0.9 ms of every millisecond, so that no kernel holds its greed against it. A gap is a time
    of more than `GAPS_US` between two readings; one of the longer kind within a tick is a miss at 1 kHz.
    """
    gaps, computed, end = [], 0, time.perf_counter_ns() + round(seconds * 1e9)
    while (start := time.perf_counter_ns()) < end:
        last = start
        while last < start + 900_000:
            now = time.perf_counter_ns()
            if now - last > 1000 * min(GAPS_US):
                gaps.append((now - last) / 1000)
            last = now
        computed += last - start
        time.sleep(1e-4)
    counts = {f"longer_than_{limit}_us": sum(gap > limit for gap in gaps) for limit in GAPS_US}
    return {"computed_s": computed / 1e9, **counts, "longest_us": max(gaps, default=0.0)}


def run_source(name: str, rate_hz: int, seconds: float, folder: Path, priority: int, load: int) -> Row:
    """One run with one source of actions."""
    spec = small_spec(observation_size=17, action_size=6, control_dt=1.0 / rate_hz)
    path = write_mlp_policy(folder / "policy.onnx", spec, stddev=STDDEV)
    policy = OnnxPolicy(path)
    with contextlib.ExitStack() as stack:
        if name == "local":
            source: ActionSource = LocalSource(policy, stochastic=True, seed=0)
        else:
            settings = (f"realtime_priority={priority}",) if priority else ()
            server = stack.enter_context(ServerProcess(path, *settings))
            source = ServerSource(PolicyClient(server.endpoint, spec), 10.0, SystemClock())
        stack.callback(source.close)
        stack.enter_context(busy_programs(load))
        return run_loop(policy, source, name, rate_hz, seconds, folder)


def run_loop(policy: OnnxPolicy, source: ActionSource, name: str, rate_hz: int, seconds: float, folder: Path) -> Row:
    """One episode of `seconds`, its statistics, and what was applied."""
    spec, steps = policy.spec, round(seconds * rate_hz)
    robot = IdleRobot(spec, steps)
    parts = LoopParts(
        source=source,
        fallback=FallbackConfig((Rung("hold"), Rung("stop"))),  # a slow server must not end the measurement
        loop=LoopConfig(max_steps=steps, deadline=0.8),
        open_log=lambda episode: EpisodeLogWriter(folder, spec, episode, config=LogConfig()),
    )
    before = stolen_ms()
    result = ControlLoop(robot, parts).run_episode(f"{name}-{rate_hz}")
    stolen = stolen_ms() - before
    summary = result.statistics.summary()
    expected = np.stack([spec.to_command(policy.act(reading, stochastic=False).mean) for reading in robot.readings])
    times = {
        f"{label}_{key}_us": value
        for label in ("jitter", "latency", "work")
        for key, value in summary.get(f"{label}_us", {}).items()
    }
    counters = ("deadline_misses", "overruns", "skipped_periods", "log_dropped", "misses", "fallbacks")
    ended = {} if result.reason.value == "max_steps" else {"ended": f"{result.reason.value}: {result.detail}"}
    return {
        "rate_hz": rate_hz,
        "source": name,
        "ticks": result.steps,
        "stolen_ms": stolen,
        **times,
        **{key: summary[key] for key in counters},
        "applied": check_commands(robot.commands, robot.newest, expected, robot.safe_pose_command())._asdict(),
        "histograms_us": {key: summary["histograms_us"][key] for key in ("jitter", "latency")},
        **ended,
    }


def judge(rows: list[Row]) -> Row:
    """The bars that these rows can tell about."""
    full = [row for row in rows if row["source"] == "local" and row["rate_hz"] == 1000 and row["load"] == 0]
    return {
        "stale_actions": sum(row["applied"]["stale"] for row in rows),
        "periods_held_under_load": sum(row["applied"]["held"] for row in rows if row["load"]),
        "misses_of_1_khz_local_idle": {
            str(row["priority"]): {"seconds": row["ticks"] / 1000, "misses": row["deadline_misses"]} for row in full
        },
    }


def print_table(rows: list[Row]) -> None:
    """The rows for people."""
    print(f"{'':31}{'jitter [us]':^30}{'latency [us]':^30}{'':21}stolen")
    columns = f"{'p50':>9}{'p99':>10}{'max':>10} " * 2
    counts = f"{'misses':>8}{'held':>7}{'stale':>6}{'ms':>7}"
    print(f"{'prio':>5}{'load':>5}{'Hz':>6}  {'source':8}{'ticks':>7}{columns}{counts}")
    for row in rows:
        times = "".join(
            f"{row[f'{label}_p50_us']:>9.1f}{row[f'{label}_p99_us']:>10.1f}{row[f'{label}_max_us']:>10.1f} "
            for label in ("jitter", "latency")
        )
        start = f"{row['priority']:>5}{row['load']:>5}{row['rate_hz']:>6}  {row['source']:8}{row['ticks']:>7}"
        applied = row["applied"]
        print(
            f"{start}{times}{row['deadline_misses']:>8}{applied['held']:>7}{applied['stale']:>6}{row['stolen_ms']:>7.0f}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Command line; exit code 1 if a stale action was applied."""
    parser = argparse.ArgumentParser(description="Jitter, latency and misses of the control loop.")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each run (default 5)")
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES_HZ), metavar="HZ", help="control rates")
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=SOURCES, help="where actions come from")
    parser.add_argument("--loads", type=int, nargs="+", default=[0, 4], metavar="N", help="busy programs beside it")
    parser.add_argument(
        "--priorities", type=int, nargs="+", default=[0, 50], metavar="P", help="0 normal, 1 to 99 real time"
    )
    parser.add_argument("--awake", action="store_true", help="keep the CPUs from sleeping (keep_cpus_awake)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file (default {OUTPUT.relative_to(ROOT)})")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    machine: dict[str, Row] = {}
    for priority in sorted(options.priorities):  # a priority stays, so the normal one comes first
        rows += measure(options.rates, options.seconds, priority, options.sources, options.loads, options.awake)
        machine[str(priority)] = machine_gaps(options.seconds)
    result = judge(rows) | {"machine": machine}
    write_record(options.output, "loop_jitter", seconds=options.seconds, rows=rows, result=result)
    print_table(rows)
    for priority, gaps in machine.items():
        print(f"the machine itself at priority {priority}: " + ", ".join(f"{key} {gaps[key]:.6g}" for key in gaps))
    print(f"stale actions applied: {result['stale_actions']}; written to {options.output}")
    return 1 if result["stale_actions"] else 0


if __name__ == "__main__":
    sys.exit(main())
