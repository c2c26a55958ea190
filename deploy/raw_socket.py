"""Socket calls of every tick, without pyzmq's conveniences: plain integers and `get` cost a third of them."""

from __future__ import annotations

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
