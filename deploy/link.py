"""`ClientLink`: the client's socket. Sends without blocking and receives up to an absolute monotonic deadline."""

from __future__ import annotations

import select
from collections.abc import Callable

import zmq

from deploy.protocol import MAX_FRAME_BYTES, Message, encode
from deploy.raw_socket import NOBLOCK, receive_parts, wait_busily
from deploy.security import ClientSecurity, require_safe, secure_client
from mpo_robot.errors import ConfigError

HIGH_WATER_MARK = 16  # messages; a request that waits behind more than this is useless anyway
# Not reached by any honest server: with a full queue and a heartbeat due, libzmq 4.3.5 aborts when a connection breaks.
_RECEIVE_MARK = 100_000
_SELECT_LIMIT = 1024  # select() is the only wait with better than millisecond resolution, and takes no larger fd
_WRITABLE_POLL_MS = 20
_MAX_WAIT_MS = 1024
_RCVTIMEO = int(zmq.RCVTIMEO)


class ClientLink:
    """A DEALER socket with its own context. One thread.

    Attributes:
        secure: Whether CURVE is on.
    """

    def __init__(
        self, endpoint: str, security: ClientSecurity | None, clock: Callable[[], int], spin_ns: int = 0
    ) -> None:
        """Start connecting in the background.

        Args:
            endpoint: Of the server.
            security: CURVE keys, required off loopback.
            clock: Monotonic nanoseconds.
            spin_ns: Busy-wait this long for a message before sleeping until it comes.

        Raises:
            ConfigError: malformed endpoint, off loopback without keys, unreadable keys, or too many open files.
        """
        require_safe(endpoint, security)
        self.secure = security is not None
        self._clock = clock
        self._spin_ns = spin_ns
        self._timeout_ms = -1
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        try:
            self._configure(endpoint, security)
            self._socket.connect(endpoint)
            self._fd = int(self._socket.fd)
            if self._fd >= _SELECT_LIMIT:
                raise ConfigError("too many open files for the policy client: close some before making it")
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"cannot connect to {endpoint}: {error}") from error
        except ConfigError:
            self.close()
            raise

    def _configure(self, endpoint: str, security: ClientSecurity | None) -> None:
        socket = self._socket
        socket.linger = 0
        socket.sndhwm, socket.rcvhwm = HIGH_WATER_MARK, _RECEIVE_MARK
        socket.maxmsgsize = MAX_FRAME_BYTES
        socket.immediate = True  # no connection -> sending fails at once, instead of queueing stale observations
        socket.ipv6 = "[" in endpoint  # otherwise IPv4 addresses come out in mapped form
        socket.reconnect_ivl, socket.reconnect_ivl_max = 50, 500
        socket.heartbeat_ivl, socket.heartbeat_timeout = 500, 1500  # finds a half-open connection
        socket.handshake_ivl = 2000
        if security is not None:
            secure_client(socket, security)

    def send(self, message: Message) -> bool:
        """Hand a message to the connection; False at once if there is none or its queue is full."""
        try:
            self._socket.send(encode(message), NOBLOCK)
        except zmq.Again:
            return False
        return True

    def wait_writable(self, deadline_ns: int) -> None:
        """Wait until a message may be sent, for a short while and not past the deadline."""
        remaining_ms = (deadline_ns - self._clock()) // 1_000_000
        self._socket.poll(max(0, min(_WRITABLE_POLL_MS, remaining_ms)), zmq.POLLOUT)

    def receive(self, deadline_ns: int = 0) -> bytes | None:
        """The next frame, or None if none has come by the deadline; 0 means do not wait.

        A message of several parts, which this protocol never sends, comes out as an empty frame.
        """
        if self._spin_ns and deadline_ns:
            wait_busily(self._socket, min(self._spin_ns, deadline_ns - self._clock()))
        parts = self._wait(deadline_ns)
        if parts is None:
            return None
        return parts[0] if len(parts) == 1 else b""

    def _wait(self, deadline_ns: int) -> list[bytes] | None:
        """Block in the socket itself as long as its whole milliseconds allow: that wakes up soonest. Then `select`."""
        while (remaining_ms := (deadline_ns - self._clock()) // 1_000_000) >= 1:
            timeout_ms = min(1 << (remaining_ms.bit_length() - 1), _MAX_WAIT_MS)  # a power of two is seldom new
            if timeout_ms != self._timeout_ms:
                self._socket.set(_RCVTIMEO, timeout_ms)
                self._timeout_ms = timeout_ms
            try:
                return receive_parts(self._socket)
            except zmq.Again:
                continue
        while True:
            # The socket's fd only signals changes; trying to receive first, every time, makes that safe.
            try:
                return receive_parts(self._socket, NOBLOCK)
            except zmq.Again:
                remaining_ns = deadline_ns - self._clock()
                if remaining_ns <= 0:
                    return None
                select.select([self._fd], [], [], remaining_ns / 1e9)

    def close(self) -> None:
        """Close at once; what is queued is dropped. May be called twice."""
        self._socket.close(linger=0)
        self._context.term()
