"""How long a robot waits for an action: in process, over ZeroMQ to a server process, and in the whole control loop.

    python benchmarks/policy_latency.py [--calls 20000] [--priorities 0 50] [--awake] [--loop-seconds 10]
                                        [--output FILE]

Measures as a normal program (priority 0) and with real-time priority, where allowed: the second is what a robot
computer should use, and on a busy machine the only one that says something about this program. Prints a table and
writes JSON with the machine, its load, the commit and the date. Times are wall time on a monotonic clock, in
microseconds; nothing is left out of the percentiles but the stated warm-up.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks._record import write_record  # noqa: E402 (the repository root has to be on the path first)
from benchmarks.loop_jitter import measure as measure_jitter  # noqa: E402
from deploy.client import PolicyClient  # noqa: E402
from deploy.onnx_policy import OnnxPolicy  # noqa: E402
from deploy.real_time import keep_cpus_awake  # noqa: E402
from deploy.timing import use_real_time_priority  # noqa: E402
from mpo_robot.specs import PolicySpec  # noqa: E402
from tests.support.onnx_files import small_spec, write_mlp_policy  # noqa: E402
from tests.support.serving import ANY_PORT, ServerProcess  # noqa: E402

HIDDEN = (256, 256)
SPEC = small_spec(observation_size=17, action_size=6)
WARM_UP = 500
TCP = "round trip, tcp loopback"
DEADLINE_NS = 100_000_000
RATES_HZ = (50, 200, 500, 1000)
BAR_ROUND_TRIP_P50_US = 300.0
OUTPUT = ROOT / "benchmarks" / "results" / "policy_latency.json"

Row = dict[str, Any]


def summarize(name: str, times_ns: npt.ArrayLike, **extra: Any) -> Row:
    """Percentiles in microseconds of durations in nanoseconds."""
    values = np.asarray(times_ns, np.float64) / 1e3
    p50, p99 = np.percentile(values, [50, 99])
    return {"name": name, "count": values.size, "p50_us": p50, "p99_us": p99, "max_us": values.max(), **extra}


def time_calls(call: Callable[[int], Any], count: int) -> npt.NDArray[np.int64]:
    """Duration in ns of each of `count` calls, after a warm-up, with the garbage collector as in production: on."""
    for index in range(WARM_UP):
        call(index)
    gc.collect()
    times = np.empty(count, np.int64)
    for index in range(count):
        start = time.perf_counter_ns()
        call(index)
        times[index] = time.perf_counter_ns() - start
    return times


def measure_in_process(policy: Path, count: int) -> list[Row]:
    """`OnnxPolicy.act`, deterministic and stochastic with its log-prob."""
    loaded, rng = OnnxPolicy(policy), np.random.default_rng(0)
    observations = _observations(loaded.spec)
    rows = []
    for name, stochastic in (("in process, mean", False), ("in process, sample and log-prob", True)):

        def call(index: int, stochastic: bool = stochastic) -> Any:
            return loaded.act(observations[index % len(observations)], stochastic, rng)

        rows.append(summarize(name, time_calls(call, count)))
    return rows


def measure_round_trip(policy: Path, endpoint: str, name: str, count: int) -> Row:
    """`PolicyClient.act` against `mpo-robot serve` in another process."""
    with ServerProcess(policy, endpoint=endpoint) as server, PolicyClient(server.endpoint, SPEC) as client:
        client.begin_episode("benchmark", 10.0)
        observations = _observations(SPEC)
        server_ns: list[int] = []
        inference_ns: list[int] = []

        def call(index: int) -> None:
            reply = client.act(observations[index % len(observations)], index, time.monotonic_ns() + DEADLINE_NS)
            if reply is not None:
                server_ns.append(reply.server_ns)
                inference_ns.append(reply.inference_ns)

        times = time_calls(call, count)
        misses = client.statistics.deadline_misses + client.statistics.send_failures
        server.process.terminate()
        server.finish()
    return summarize(
        name,
        times,
        missed=misses,
        server_p50_us=float(np.median(server_ns)) / 1e3,
        inference_p50_us=float(np.median(inference_ns)) / 1e3,
    )


def measure_loop(seconds: float, priority: int, awake: bool) -> list[Row]:
    """Jitter and misses of the control loop, from `loop_jitter.measure`."""
    if seconds <= 0:
        return []
    return measure_jitter(RATES_HZ, seconds, priority, awake=awake)


def measure(calls: int, priority: int) -> list[Row]:
    """Every latency at one priority, which the calling thread and the server process keep; empty if not allowed."""
    if priority and (problem := use_real_time_priority(priority)):
        print(f"skipped: {problem}")
        return []
    with tempfile.TemporaryDirectory() as folder:
        policy = write_mlp_policy(Path(folder) / "policy.onnx", SPEC, HIDDEN)
        rows = measure_in_process(policy, calls)
        rows.append(measure_round_trip(policy, ANY_PORT, TCP, calls))
        rows.append(measure_round_trip(policy, f"ipc://{folder}/s", "round trip, ipc", calls))
    return [{"priority": priority, **row} for row in rows]


def run(calls: int, priorities: Sequence[int], loop_seconds: float, awake: bool = False) -> Row:
    """All measurements, for `write_record`; with `awake` while no CPU of the machine sleeps, if that is permitted."""
    if awake and (problem := keep_cpus_awake()):
        raise SystemExit(problem)
    rows: list[Row] = []
    loop: list[Row] = []
    for priority in sorted(priorities):  # a priority stays, so the normal one comes first
        rows += measure(calls, priority)
        loop += measure_loop(loop_seconds, priority, awake)
    tcp = {row["priority"]: row["p50_us"] for row in rows if row["name"] == TCP}
    return {
        "policy": {"observation_size": 17, "action_size": 6, "hidden": list(HIDDEN)},
        "awake": awake,
        "latency": rows,
        "loop": loop,
        "bar": {
            "round_trip_tcp_p50_us": BAR_ROUND_TRIP_P50_US,
            "met_at_priority": {str(priority): bool(p50 <= BAR_ROUND_TRIP_P50_US) for priority, p50 in tcp.items()},
        },
    }


def print_table(result: Row) -> None:
    """The result for people."""
    print(f"prio  {'':34}{'calls':>8}{'p50':>10}{'p99':>10}{'max':>10}   us")
    for row in result["latency"]:
        times = f"{row['p50_us']:10.1f}{row['p99_us']:10.1f}{row['max_us']:10.1f}"
        inside = (
            f"   p50 in server {row['server_p50_us']:.0f}, in policy {row['inference_p50_us']:.0f}"
            if "missed" in row
            else ""
        )
        print(f"{row['priority']:>4}  {row['name']:34}{row['count']:8d}{times}{inside}")
    for row in result["loop"]:
        jitter = " ".join(f"{row[f'jitter_{key}_us']:.0f}" for key in ("p50", "p99", "max"))
        latency = " ".join(f"{row[f'latency_{key}_us']:.0f}" for key in ("p50", "p99", "max"))
        start = f"{row['priority']:>4}  loop {row['rate_hz']:>4} Hz, {row['source']:6}"
        misses = f"{row['deadline_misses']} of {row['ticks']} missed"
        print(f"{start}  jitter {jitter}, latency {latency} us (p50 p99 max); {misses}")
    bar = result["bar"]
    for priority, met in bar["met_at_priority"].items():
        verdict = "met" if met else "MISSED"
        print(f"bar at priority {priority}: tcp round trip p50 <= {bar['round_trip_tcp_p50_us']:.0f} us: {verdict}")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Latency of policies in process and over the wire, and loop jitter.")
    parser.add_argument("--calls", type=int, default=20_000, help="calls per measurement (default 20000)")
    parser.add_argument(
        "--priorities", type=int, nargs="+", default=[0, 50], metavar="P", help="0 normal, 1 to 99 real time"
    )
    parser.add_argument("--awake", action="store_true", help="keep the CPUs from sleeping (keep_cpus_awake)")
    parser.add_argument("--loop-seconds", type=float, default=10.0, help="seconds per loop rate, 0 skips the loop")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file (default {OUTPUT.relative_to(ROOT)})")
    options = parser.parse_args(arguments)
    result = run(options.calls, options.priorities, options.loop_seconds, options.awake)
    write_record(options.output, "policy_latency", **result)
    print_table(result)
    print(f"written to {options.output}")
    return 0


def _observations(spec: PolicySpec) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((256, spec.observation_size)).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
