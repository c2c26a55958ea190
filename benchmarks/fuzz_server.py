"""Throw hostile frames at a policy server and see whether it lives, leaks, and still serves an honest robot.

    python benchmarks/fuzz_server.py [--frames 1000000] [--seed 0] [--output FILE]

The server is `mpo-robot serve` in a process of its own, on loopback without keys, with its rate limit off so that every
frame gets to the decoder. Of the frames, 98 % are ZeroMQ messages (mutated msgpack, damaged bytes, several parts, up
to 1 MiB), 2 % are connections that write damaged ZMTP. Between bursts an honest client asks for an action. Prints what
happened, writes JSON, and exits with 1 if the server died, reported an internal error, grew by more than
--max-growth-mb, left files open or missed an honest request.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import socket as sockets
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import zmq

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from deploy import protocol  # noqa: E402 (the repository root has to be on the path first)
from deploy.client import PolicyClient  # noqa: E402
from deploy.registry import PolicyRegistry  # noqa: E402
from mpo_robot.errors import ProtocolError  # noqa: E402
from tests.support.fuzzing import FrameFuzzer, StreamFuzzer  # noqa: E402
from tests.support.onnx_files import small_spec, write_linear_policy  # noqa: E402
from tests.support.serving import ServerProcess  # noqa: E402

SPEC = small_spec()
BURST = 500  # frames between two honest requests
CONNECTIONS = 4
RECONNECT_EVERY = 20  # bursts
STREAM_SHARE = 0.02
HONEST_DEADLINE_NS = 5_000_000_000
OUTPUT = ROOT / "benchmarks" / "results" / "fuzz_server.json"


@dataclass
class FuzzResult:
    """What happened.

    Attributes:
        frames: Hostile ZeroMQ messages sent.
        streams: Connections that wrote damaged ZMTP.
        replies: Replies read by the hostile clients.
        undecodable: Of them, those that are no message; must be 0.
        honest: Requests of the honest client, and `honest_missed` of them without an action.
        honest_p50_ms, honest_max_ms: Their round trip, in the middle of the flood.
        rss_start_mb, rss_end_mb: Resident memory of the server after a tenth of the run, and after all of it.
        files_start, files_end: Its open files before and after.
        exit_code: Of the server, asked to stop at the end; `internal_errors` is what it counted itself.
    """

    frames: int = 0
    streams: int = 0
    seconds: float = 0.0
    replies: int = 0
    undecodable: int = 0
    honest: int = 0
    honest_missed: int = 0
    honest_p50_ms: float = 0.0
    honest_max_ms: float = 0.0
    rss_start_mb: float = 0.0
    rss_end_mb: float = 0.0
    files_start: int = 0
    files_end: int = 0
    exit_code: int | None = None
    internal_errors: int | None = None
    honest_ns: list[int] = field(default_factory=list, repr=False)

    def problems(self, max_growth_mb: float) -> list[str]:
        """Why this is no pass; empty if it is one."""
        checks = {
            f"the server ended with {self.exit_code}": self.exit_code != 0,
            f"{self.internal_errors} internal errors": self.internal_errors != 0,
            f"{self.undecodable} replies were no messages": self.undecodable > 0,
            f"{self.honest_missed} of {self.honest} honest requests missed": self.honest_missed > 0 or not self.honest,
            f"memory grew from {self.rss_start_mb:.1f} to {self.rss_end_mb:.1f} MB": (
                self.rss_end_mb - self.rss_start_mb > max_growth_mb
            ),
            f"open files: {self.files_start} before, {self.files_end} after": self.files_end > self.files_start + 4,
        }
        return [text for text, is_wrong in checks.items() if is_wrong]


class Attack:
    """Hostile clients of one server."""

    def __init__(self, endpoint: str, fuzzer: FrameFuzzer, streams: StreamFuzzer, result: FuzzResult) -> None:
        self._endpoint, self._fuzzer, self._streams, self._result = endpoint, fuzzer, streams, result
        self._address = (str(urlsplit(endpoint).hostname), int(urlsplit(endpoint).port or 0))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets = [self._connect() for _ in range(CONNECTIONS)]

    def burst(self, number: int) -> None:
        """One burst over all connections; now and then one of them is new."""
        if number % RECONNECT_EVERY == RECONNECT_EVERY - 1:
            index = number // RECONNECT_EVERY % CONNECTIONS
            self._sockets[index].close()
            self._sockets[index] = self._connect()
        for index in range(BURST):
            with contextlib.suppress(zmq.Again):
                self._sockets[index % CONNECTIONS].send_multipart(self._fuzzer.next())
                self._result.frames += 1
        for _ in range(int(BURST * STREAM_SHARE)):
            self._write_stream()
        for socket in self._sockets:
            self._drain(socket)

    def close(self) -> None:
        """Close all connections."""
        self._context.destroy(linger=0)

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger, socket.sndtimeo = 0, 10_000
        socket.connect(self._endpoint)
        return socket

    def _write_stream(self) -> None:
        with contextlib.suppress(OSError), sockets.create_connection(self._address, timeout=5.0) as connection:
            connection.sendall(self._streams.next())
            self._result.streams += 1

    def _drain(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._result.replies += 1
            try:
                protocol.decode(parts[0])
            except ProtocolError:
                self._result.undecodable += 1


def run(frames: int, seed: int, folder: Path, max_seconds: float = float("inf")) -> FuzzResult:
    """Send `frames` hostile frames, or as many as `max_seconds` allow, to a server made in `folder`."""
    policy = write_linear_policy(folder / "policy.onnx", SPEC)
    registry = PolicyRegistry(folder / "policy.onnx.versions")
    version = registry.publish(policy)
    result = FuzzResult()
    with ServerProcess(policy, "max_rate_hz=0", "max_sessions=1000") as server:
        pid = server.process.pid
        attack = Attack(server.endpoint, FrameFuzzer(seed, SPEC, version), StreamFuzzer(seed), result)
        try:
            with PolicyClient(server.endpoint, SPEC) as honest:
                honest.begin_episode("honest", 20.0)
                result.files_start = _open_files(pid)
                start = time.monotonic()
                for number in itertools.count():
                    attack.burst(number)
                    _ask(honest, number, result)
                    seconds = time.monotonic() - start
                    progress = max(result.frames / frames, seconds / max_seconds)
                    if result.rss_start_mb == 0.0 and progress >= 0.1:
                        result.rss_start_mb = _resident_mb(pid)
                    if progress >= 1.0:
                        break
                    if server.process.poll() is not None:
                        break
                result.seconds = time.monotonic() - start
        finally:
            attack.close()
        if server.process.poll() is None:
            time.sleep(1.0)  # let it see that the connections are gone
            result.rss_end_mb, result.files_end = _resident_mb(pid), _open_files(pid)
            server.process.send_signal(signal.SIGTERM)
        result.exit_code = server.finish()
        result.internal_errors = _internal_errors(server.output)
    if result.honest_ns:
        result.honest_p50_ms = float(np.median(result.honest_ns)) / 1e6
        result.honest_max_ms = max(result.honest_ns) / 1e6
    return result


def _ask(honest: PolicyClient, number: int, result: FuzzResult) -> None:
    """One honest request; the deadline is generous, as the question is whether there is an answer at all."""
    honest.reconnect_if_needed()
    start_ns = time.monotonic_ns()
    reply = honest.act(np.zeros(SPEC.observation_size, np.float32), number, start_ns + HONEST_DEADLINE_NS)
    result.honest += 1
    result.honest_missed += reply is None
    result.honest_ns.append(time.monotonic_ns() - start_ns)


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _internal_errors(output: list[str]) -> int | None:
    for line in output:
        if "internal_errors " in line:
            return int(line.partition("internal_errors ")[2].split(",")[0])
    return None


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Throw hostile frames at a policy server.")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="stop earlier")
    parser.add_argument("--max-growth-mb", type=float, default=10.0, help="of resident memory that is still a pass")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(args.frames, args.seed, Path(folder), args.max_seconds)
    problems = result.problems(args.max_growth_mb)
    facts = {key: value for key, value in asdict(result).items() if key != "honest_ns"}
    for key, value in facts.items():
        print(f"{key:<16} {value:,}" if isinstance(value, (int, float)) else f"{key:<16} {value}")
    print("\n".join(problems) or "passed")
    from _record import write_record

    write_record(args.output, "fuzz_server", seed=args.seed, result=facts, problems=problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
