"""Round trip of an action: our client and server, with and without CURVE, beside three usual ways to serve a policy.

    python benchmarks/round_trip.py [--rounds 100] [--calls 100] [--priority 0] [--output FILE]

Every way has its own server process on tcp loopback, runs the same ONNX policy (17-256-256-6, sampled) through the same
function, and gets the same observations: a plain REQ/REP socket with msgpack, a websocket as openpi uses it, gRPC. The
ways take turns, a short round each; where it is permitted, each once more with CPUs that are kept awake. Needs
`pip install 'mpo-robot[bench]'`. How it is done and why it is fair: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks._peers import CLIENTS, PeerProcess, Policy, require  # noqa: E402 (the repository root comes first)
from benchmarks._record import write_record  # noqa: E402
from benchmarks._rounds import Timings, Way, compare, interleave, summarize  # noqa: E402
from deploy.client import PolicyClient  # noqa: E402
from deploy.key_files import create_keys  # noqa: E402
from deploy.real_time import keep_cpus_awake, let_cpus_sleep  # noqa: E402
from deploy.security import ClientSecurity  # noqa: E402
from deploy.timing import use_real_time_priority  # noqa: E402
from mpo_robot.errors import MpoRobotError  # noqa: E402
from tests.support.onnx_files import small_spec, write_mlp_policy  # noqa: E402
from tests.support.serving import ServerProcess  # noqa: E402

OUTPUT = ROOT / "benchmarks" / "results" / "round_trip.json"
SPEC = small_spec(observation_size=17, action_size=6)
HIDDEN = (256, 256)
DEADLINE_NS = 1_000_000_000
IN_PROCESS = "policy in process"
PLAIN, CURVE = "ours", "ours, CURVE"
SPIN = ", spin_s"  # behind the name of those whose client and server wait busily
SPIN_S = 0.001
AWAKE = ", awake"  # behind the name of those during whose turn no CPU sleeps (`keep_cpus_awake`)
THEIRS = {"zmq": "REQ/REP, msgpack", "websocket": "websocket, msgpack", "grpc": "gRPC unary"}
BAR_P50_US = 200.0
Row = dict[str, Any]


class Misses:
    """Counts calls that gave no action."""

    def __init__(self) -> None:
        self.count = 0

    def counted(self, act: Callable[[int], Any]) -> Callable[[int], None]:
        """`act`, with a None counted."""

        def call(index: int) -> None:
            if act(index) is None:
                self.count += 1

        return call


@contextlib.contextmanager
def open_ways(policy: Path, folder: Path, priority: int, misses: Misses) -> Iterator[dict[str, Way]]:
    """All servers started and all clients connected, for `interleave`."""
    observations = np.random.default_rng(1).standard_normal((256, SPEC.observation_size)).astype(np.float32)
    with contextlib.ExitStack() as stack:
        local = Policy(policy)
        ways: dict[str, Way] = {IN_PROCESS: Way(lambda index: local.answer(observations[index % 256]), os.getpid())}
        keys = _make_keys(folder)
        for name, security, arguments in ((PLAIN, None, ()), (CURVE, *keys)):
            for suffix, spin_s in (("", 0.0), (SPIN, SPIN_S)):
                server = stack.enter_context(_serve(policy, priority, (*arguments, f"spin_s={spin_s}")))
                client = stack.enter_context(PolicyClient(server.endpoint, SPEC, security=security, spin_s=spin_s))
                client.begin_episode("benchmark", 10.0)
                ways[name + suffix] = Way(misses.counted(_act_of(client, observations)), server.process.pid)
        for kind, name in THEIRS.items():
            server = stack.enter_context(PeerProcess(kind, policy, priority))
            client = CLIENTS[kind](server.address)
            stack.callback(client.close)

            def act(index: int, act: Callable[..., Any] = client.act) -> Any:
                return act(observations[index % 256])

            ways[name] = Way(misses.counted(act), server.process.pid)
        yield ways | _awake_too(ways)


def _awake_too(ways: Mapping[str, Way]) -> dict[str, Way]:
    """The same ways once more, with CPUs that do not sleep during their turns; none, with a line, if not permitted."""
    if problem := keep_cpus_awake():
        print(problem, file=sys.stderr)
        return {}
    let_cpus_sleep()
    return {name + AWAKE: way._replace(around=_awake) for name, way in ways.items() if name != IN_PROCESS}


@contextlib.contextmanager
def _awake() -> Iterator[None]:
    keep_cpus_awake()
    try:
        yield
    finally:
        let_cpus_sleep()


def _make_keys(folder: Path) -> tuple[ClientSecurity, tuple[str, ...]]:
    """What client and server need for CURVE."""
    server_public, server_secret = create_keys(folder / "keys", "server")
    _, client_secret = create_keys(folder / "allowed", "robot")
    secret = client_secret.rename(folder / "keys" / client_secret.name)
    arguments = ("--curve-secret-key", str(server_secret), "--curve-allow", str(folder / "allowed"))
    return ClientSecurity(secret, server_public), arguments


def _serve(policy: Path, priority: int, arguments: tuple[str, ...]) -> ServerProcess:
    return ServerProcess(policy, *((f"realtime_priority={priority}",) if priority else ()), *arguments)


def _act_of(client: PolicyClient, observations: npt.NDArray[np.float32]) -> Callable[[int], Any]:
    return lambda index: client.act(observations[index % 256], index, time.monotonic_ns() + DEADLINE_NS)


def table(timings: Mapping[str, Timings]) -> list[Row]:
    """One row per way; ratios are the other's p50 in that of ours with CURVE."""
    return [{"name": name, **summarize(of), **compare(timings[CURVE], of)} for name, of in timings.items()]


def judge(rows: list[Row], bar_us: float = BAR_P50_US) -> Row:
    """For each of ours with CURVE: whether p50 is under the bar and under that of the others.

    `met` compares with the others as their users run them, `met_among_equals` with the others under the same conditions
    (CPUs awake or not). The same where ours is under these conditions.
    """
    p50 = {row["name"]: row["p50_us"] for row in rows}
    verdict: Row = {}
    for ours in (name for name in p50 if name.startswith(CURVE)):
        under = bool(p50[ours] <= bar_us)
        suffix = AWAKE if ours.endswith(AWAKE) else ""
        names = list(dict.fromkeys(name + end for end in ("", suffix) for name in THEIRS.values()))
        faster = {name: bool(p50[ours] < p50[name]) for name in names}
        verdict[ours] = {
            "under_bar": under,
            "faster_than": faster,
            "met": under and all(faster[name] for name in THEIRS.values()),
            "met_among_equals": under and all(faster[name + suffix] for name in THEIRS.values()),
        }
    return verdict


def measure(rounds: int, calls: int, warm_up: int, priority: int) -> tuple[list[Row], int]:
    """Rows of `table` and how many calls gave no action."""
    misses = Misses()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = write_mlp_policy(folder / "policy.onnx", SPEC, HIDDEN)
        with open_ways(policy, folder, priority, misses) as ways:
            return table(interleave(ways, rounds, calls, warm_up)), misses.count


def print_table(rows: list[Row], bar: Row) -> None:
    """The result for people."""
    print(f"{'us':27}{'p50':>9}{'p99':>9}{'max':>10}{'min':>9}{'p50 in CURVE':>14}{'CPU client':>12}{'server':>8}")
    for row in rows:
        times = "".join(f"{row[key]:>{width}.1f}" for key, width in
                        (("p50_us", 9), ("p99_us", 9), ("max_us", 10), ("min_us", 9)))  # fmt: skip
        cpu = f"{row['client_cpu_us']:>12.0f}{row['server_cpu_us']:>8.0f}"
        print(f"{row['name']:27}{times}{row['ratio_by_round_p50']:>14.2f}{cpu}")
    for name, verdict in bar.items():
        faster = ", ".join(
            f"{'faster' if yes else 'SLOWER'} than {other}" for other, yes in verdict["faster_than"].items()
        )
        print(f"{name}: p50 <= {BAR_P50_US:.0f} us {'met' if verdict['under_bar'] else 'MISSED'}; {faster}")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Round trip of an action: ours beside REQ/REP, websocket and gRPC.")
    parser.add_argument("--rounds", type=int, default=100, help="turns of each way (default 100)")
    parser.add_argument("--calls", type=int, default=100, help="timed calls per turn (default 100)")
    parser.add_argument("--warm-up", type=int, default=20, help="untimed calls before them (default 20)")
    parser.add_argument("--priority", type=int, default=0, metavar="P", help="real-time priority 1 to 99, of all ways")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file (default {OUTPUT.relative_to(ROOT)})")
    options = parser.parse_args(arguments)
    try:
        for name in ("msgpack", "websockets", "grpc"):
            require(name)
    except MpoRobotError as error:
        print(error, file=sys.stderr)
        return 2
    if options.priority and (problem := use_real_time_priority(options.priority)):
        print(problem, file=sys.stderr)
        return 2
    rows, misses = measure(options.rounds, options.calls, options.warm_up, options.priority)
    bar = judge(rows)
    print_table(rows, bar)
    settings = {"rounds": options.rounds, "calls": options.calls, "warm_up": options.warm_up}
    write_record(
        options.output,
        "round_trip",
        priority=options.priority,
        **settings,
        policy={"observation_size": SPEC.observation_size, "action_size": SPEC.action_size, "hidden": list(HIDDEN)},
        rows=rows,
        misses=misses,
        bar={"p50_us": BAR_P50_US, **bar},
    )
    print(f"{misses} calls without an action; written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
