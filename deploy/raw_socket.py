"""Socket calls of every tick, without pyzmq's conveniences: plain integers and `get` cost a third of them."""

from __future__ import annotations

import os
import time

import zmq

NOBLOCK = int(zmq.NOBLOCK)
NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS, _RCVMORE, _POLLIN = int(zmq.EVENTS), int(zmq.RCVMORE), int(zmq.POLLIN)


def receive_parts(socket: zmq.Socket[bytes], flags: int = 0) -> list[bytes]:
    """All parts of the next message.

    Raises:
        zmq.Again: there is none, or none in the socket's `rcvtimeo`.
    """
    parts = [socket.recv(flags)]
    while socket.get(_RCVMORE):
        parts.append(socket.recv(flags))  # the parts of a message arrive together
    return parts


def has_input(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message is there to be received."""
    return bool(int(socket.get(_EVENTS)) & _POLLIN)


def wait_busily(socket: zmq.Socket[bytes], duration_ns: int) -> None:
    """Look for a message again and again, for so long: a thread that sleeps takes tens of microseconds to wake up.

    Always on the system's clock, so that it ends. Threads of the same priority on this CPU, the transport's own among
    them, get their turn in between.
    """
    until_ns = time.monotonic_ns() + duration_ns
    while not has_input(socket) and time.monotonic_ns() < until_ns:
        os.sched_yield()


def receive_from(socket: zmq.Socket[bytes], with_key: bool, flags: int = 0) -> tuple[bytes, list[bytes], str]:
    """Connection, parts and proven public key (Z85; empty if not `with_key`) of the next message to a ROUTER.

    Raises:
        zmq.Again: as `receive_parts`.
    """
    route = socket.recv(flags)
    if not with_key:
        parts = [socket.recv(flags)]  # a message has at least one part
        while socket.get(_RCVMORE):
            parts.append(socket.recv(flags))
        return route, parts, ""
    frames = [socket.recv(flags, copy=False)]
    while socket.get(_RCVMORE):
        frames.append(socket.recv(flags, copy=False))
    return route, [frame.bytes for frame in frames], _key_of(frames)


def _key_of(frames: list[zmq.Frame]) -> str:
    """What ZAP noted for this very connection; the sender has no say in it. Empty, which no key is, without."""
    try:
        return str(frames[0].get("User-Id"))
    except (IndexError, zmq.ZMQError):
        return ""
