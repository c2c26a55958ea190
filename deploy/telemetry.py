"""What a policy server tells an observer: counters, sessions and the newest times, copied out and sent whole.

The server's thread only appends a number per action; a few times per second it encodes a `Snapshot` (some 10 us) and
hands it on without waiting. Whoever reads it does the arithmetic.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import asdict

import msgspec

from deploy.server_config import ServerStatistics
from deploy.sessions import Session

PERIOD_NS = 500_000_000
MAX_SESSIONS = 64  # shown; more would make a snapshot large


class SessionView(msgspec.Struct, frozen=True, array_like=True):
    """One client's session.

    Attributes:
        client: What the client calls itself.
        episode_id: Running episode; empty if none.
        step_index: Of the last action asked for in it.
        policy_version: Pinned for it; empty without one.
        idle_s: Since the client's last message.
    """

    client: str
    episode_id: str
    step_index: int
    policy_version: str
    idle_s: float


class Snapshot(msgspec.Struct, frozen=True):
    """State of a server at one moment.

    Attributes:
        monotonic_ns: When, on the server's clock.
        endpoint: Where it answers robots.
        policy_version: Given to new episodes, as far as loaded.
        stochastic: Whether it samples actions.
        swaps: Times another version was taken over.
        failures: Times a version could not be loaded.
        counters: `ServerStatistics` by name.
        sessions: The clients, at most `MAX_SESSIONS`.
        latencies: Native int64 each: ns in the server of every action since the snapshot before.
    """

    monotonic_ns: int
    endpoint: str
    policy_version: str
    stochastic: bool
    swaps: int
    failures: int
    counters: dict[str, int]
    sessions: list[SessionView]
    latencies: bytes


class Telemetry:
    """Collects in the server's thread. `publish` gets every encoded snapshot and must not block.

    Attributes:
        latencies: The server appends ns of every action here.
        due_ns: When the next snapshot is.
    """

    def __init__(self, publish: Callable[[bytes], None]) -> None:
        self.latencies = array("q")
        self.due_ns = 0
        self._publish = publish
        self._encoder = msgspec.msgpack.Encoder()

    def send(
        self,
        now_ns: int,
        *,
        endpoint: str,
        policy_version: str,
        stochastic: bool,
        swaps: int,
        failures: int,
        statistics: ServerStatistics,
        sessions: Iterable[Session],
    ) -> None:
        """Publish the state of a server, and begin the next interval."""
        self.due_ns = now_ns + PERIOD_NS
        shown = [
            SessionView(
                session.client_id,
                session.episode_id,
                session.step_index,
                session.policy.policy_version if session.policy else "",
                max(0, now_ns - session.last_seen_ns) / 1e9,
            )
            for session, _ in zip(sessions, range(MAX_SESSIONS))
        ]
        snapshot = Snapshot(
            now_ns,
            endpoint,
            policy_version,
            stochastic,
            swaps,
            failures,
            asdict(statistics),
            shown,
            self.latencies.tobytes(),
        )
        del self.latencies[:]
        self._publish(self._encoder.encode(snapshot))


def decode(data: bytes) -> Snapshot:
    """Inverse of what `Telemetry` publishes; raises msgspec.DecodeError for anything else."""
    return msgspec.msgpack.decode(data, type=Snapshot)


def latencies(snapshot: Snapshot) -> list[int]:
    """Its `latencies`, ns, in the order of the actions."""
    values = array("q")
    values.frombytes(snapshot.latencies)
    return values.tolist()
