"""`ClientLink`: how it waits, with both ends of the connection in this thread."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from deploy import raw_socket
from deploy.link import ClientLink
from deploy.protocol import Ping, encode, header

PING = Ping(**header("a" * 64, 1, 2))
LONG_NS = 60_000_000_000  # never reached by a passing test


@pytest.fixture
def server() -> Iterator[Any]:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.linger, socket.rcvtimeo = 0, 20_000
    socket.bind("tcp://127.0.0.1:*")
    yield socket
    socket.close()
    context.term()


def connect(server: Any, spin_ns: int) -> tuple[ClientLink, bytes]:
    """A link whose first message has arrived, and its name at the server."""
    link = ClientLink(server.getsockopt_string(zmq.LAST_ENDPOINT), None, time.monotonic_ns, spin_ns)
    deadline_ns = time.monotonic_ns() + LONG_NS
    while not link.send(PING):
        link.wait_writable(deadline_ns)
    route, frame = server.recv_multipart()
    assert frame == encode(PING)
    return link, route


def test_a_message_ends_the_busy_wait(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    link, route = connect(server, LONG_NS)
    turns: list[int] = []

    def others_turn() -> None:
        turns.append(len(turns))
        if len(turns) == 3:
            server.send_multipart([route, b"answer"])

    monkeypatch.setattr(os, "sched_yield", others_turn)
    assert link.receive(time.monotonic_ns() + LONG_NS) == b"answer"
    assert len(turns) >= 3
    link.close()


def test_without_the_setting_it_sleeps_at_once(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("it spins")

    monkeypatch.setattr(os, "sched_yield", never)
    link, route = connect(server, 0)
    server.send_multipart([route, b"answer"])
    assert link.receive(time.monotonic_ns() + LONG_NS) == b"answer"
    link.close()


@pytest.mark.parametrize(
    ("spin_ns", "wait_ns", "turns"),
    [(1_000, 1_000_000, 10), (1_000_000, 700, 7), (1_000_000, 0, 0), (1_000_000, -5, 0)],
    ids=["then it sleeps", "deadline first", "no wait asked for", "deadline has passed"],
)
def test_the_busy_wait_ends_after_its_time_and_never_outlasts_the_deadline(
    server: Any, monkeypatch: pytest.MonkeyPatch, spin_ns: int, wait_ns: int, turns: int
) -> None:
    link, _ = connect(server, spin_ns)
    link._clock = lambda: 0  # deadlines are on the caller's clock, which stands still here
    looks = itertools.count(0, 100)  # the system's: 100 ns pass from look to look
    monkeypatch.setattr(raw_socket, "time", SimpleNamespace(monotonic_ns=lambda: next(looks)))
    seen: list[int] = []
    monkeypatch.setattr(os, "sched_yield", lambda: seen.append(1))
    monkeypatch.setattr(link, "_wait", lambda deadline_ns: None)
    assert link.receive(wait_ns) is None
    assert abs(len(seen) - turns) <= 1
    link.close()
