"""`SessionTable`: a bounded number of clients, each with the policy pinned for its episode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from deploy.access import Peer
from deploy.onnx_policy import OnnxPolicy

YIELDS_AFTER_NS = 2_000_000_000  # a client in the middle of an episode is never silent for so long


@dataclass
class Session:
    """One client's state.

    Attributes:
        client_id: What the client calls itself; a client that comes again replaces its old session.
        last_seen_ns: Server's monotonic clock at its last message.
        episode_id: Running episode; empty if none.
        policy: Pinned for the running episode; None without one.
        under: Audit hash of the registry's state that gave it this policy; None once the episode's end was reported.
        rng: Noise source of the running episode.
        step_index: Of the last action asked for in it.
    """

    client_id: str
    last_seen_ns: int
    episode_id: str = ""
    policy: OnnxPolicy | None = None
    under: str | None = None
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    step_index: int = 0


class SessionTable:
    """Sessions by connection and key: a connection that takes over another's name does not get its session.

    Attributes:
        expired: Sessions dropped because they were idle.
    """

    def __init__(self, max_sessions: int, idle_ns: int, per_key: int) -> None:
        self.expired = 0
        self._max_sessions = max_sessions
        self._per_key = per_key
        self._idle_ns = idle_ns
        self._sessions: dict[Peer, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, peer: Peer, now_ns: int) -> Session | None:
        """The session of a connection, marked as seen; None if there is none."""
        session = self._sessions.get(peer)
        if session is not None:
            session.last_seen_ns = now_ns
        return session

    def open(self, peer: Peer, client_id: str, now_ns: int) -> Session | None:
        """A fresh session in place of the client's old one; None if all are taken, or all that its key may have.

        Of a key that has all its own, the session that was silent for longest makes room, if that is some time: it may
        belong to a program that has ended. A client that still wants it handshakes again.
        """
        for other, session in list(self._sessions.items()):
            if session.client_id == client_id and other.key == peer.key:
                del self._sessions[other]
        self._sessions.pop(peer, None)
        self.expire(now_ns)
        of_key = [other for other in self._sessions if other.key == peer.key] if peer.key else []
        if len(of_key) >= self._per_key:
            silent = min(of_key, key=lambda other: self._sessions[other].last_seen_ns)
            if now_ns - self._sessions[silent].last_seen_ns <= YIELDS_AFTER_NS:
                return None
            del self._sessions[silent]
        if len(self._sessions) >= self._max_sessions:
            return None
        session = self._sessions[peer] = Session(client_id, now_ns)
        return session

    def keep(self, may_stay: Callable[[Peer], bool]) -> None:
        """Drop the sessions of peers that may not stay."""
        for peer in [peer for peer in self._sessions if not may_stay(peer)]:
            del self._sessions[peer]

    def expire(self, now_ns: int) -> None:
        """Drop sessions that were idle for too long; such a client handshakes again and may resume its episode."""
        for peer, session in list(self._sessions.items()):
            if now_ns - session.last_seen_ns > self._idle_ns:
                del self._sessions[peer]
                self.expired += 1


def episode_rng(seed: int | None, episode_id: str, step_index: int) -> np.random.Generator:
    """Noise source of an episode from a step on: fixed by its arguments, whatever other clients do.

    A resumed episode does not repeat the noise it had before. Without a seed it is fresh from the system.
    """
    if seed is None:
        return np.random.default_rng()
    digest = hashlib.sha256(f"{seed}/{step_index}/{episode_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
