"""`SessionTable`: a bounded number of clients, each with the policy pinned for its episode."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from deploy.onnx_policy import OnnxPolicy


@dataclass
class Session:
    """One client's state.

    Attributes:
        client_id: What the client calls itself; a client that comes again replaces its old session.
        last_seen_ns: Server's monotonic clock at its last message.
        episode_id: Running episode; empty if none.
        policy: Pinned for the running episode; None without one.
        rng: Noise source of the running episode.
    """

    client_id: str
    last_seen_ns: int
    episode_id: str = ""
    policy: OnnxPolicy | None = None
    rng: np.random.Generator = field(default_factory=np.random.default_rng)


class SessionTable:
    """Sessions by connection identity.

    Attributes:
        expired: Sessions dropped because they were idle.
    """

    def __init__(self, max_sessions: int, idle_ns: int) -> None:
        self.expired = 0
        self._max_sessions = max_sessions
        self._idle_ns = idle_ns
        self._sessions: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, identity: bytes, now_ns: int) -> Session | None:
        """The session of a connection, marked as seen; None if there is none."""
        session = self._sessions.get(identity)
        if session is not None:
            session.last_seen_ns = now_ns
        return session

    def open(self, identity: bytes, client_id: str, now_ns: int) -> Session | None:
        """A fresh session in place of the client's old one; None if all are taken."""
        for other, session in list(self._sessions.items()):
            if session.client_id == client_id:
                del self._sessions[other]
        self._sessions.pop(identity, None)
        self.expire(now_ns)
        if len(self._sessions) >= self._max_sessions:
            return None
        session = self._sessions[identity] = Session(client_id, now_ns)
        return session

    def expire(self, now_ns: int) -> None:
        """Drop sessions that were idle for too long; such a client handshakes again and may resume its episode."""
        for identity, session in list(self._sessions.items()):
            if now_ns - session.last_seen_ns > self._idle_ns:
                del self._sessions[identity]
                self.expired += 1


def episode_rng(seed: int | None, episode_id: str, step_index: int) -> np.random.Generator:
    """Noise source of an episode from a step on: fixed by its arguments, whatever other clients do.

    A resumed episode does not repeat the noise it had before. Without a seed it is fresh from the system.
    """
    if seed is None:
        return np.random.default_rng()
    digest = hashlib.sha256(f"{seed}/{step_index}/{episode_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
