"""`PolicyServer`: answers robots over a ROUTER socket. One thread and one poll loop; policies load on a worker thread.

No frame, however malformed, ends the loop: it is counted, and answered with an Error.
"""

from __future__ import annotations

import logging
import socket as sockets
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from deploy import protocol
from deploy.handler import RequestHandler
from deploy.policy_store import PolicyStore
from deploy.protocol import ActRequest, AnyMessage, BeginEpisode, ErrorCode, Hello, Message
from deploy.raw_socket import NOBLOCK, NOBLOCK_MORE, has_input, receive_parts
from deploy.registry import PolicyRegistry
from deploy.security import require_safe, secure_server
from deploy.server_config import ServerConfig, ServerStatistics
from mpo_robot.errors import ConfigError, MpoRobotError, ProtocolError

__all__ = ["PolicyServer", "ServerConfig", "ServerStatistics"]

_log = logging.getLogger(__name__)
_BATCH = 256  # messages read before any is answered with an action
_IDLE_POLL_MS = 100
_LOADING_POLL_MS = 2  # while a client waits for a policy that is being loaded
_HIGH_WATER_MARK = 256


class PolicyServer:
    """Serves the policies of a registry. Everything but `stop` belongs to the thread that runs `serve_forever`.

    Attributes:
        endpoint: Where it is reachable, with the real port; empty once closed.
        statistics: Counters.
        store: The loaded policies.
        handler: Sessions and rules.
    """

    def __init__(
        self,
        registry: PolicyRegistry,
        config: ServerConfig | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Load the policy in force and bind the socket.

        Raises:
            ConfigError, SpecMismatchError: no valid policy, an endpoint that cannot be bound, or one that others can
                reach without keys.
            PolicyError: a stochastic server, and a policy without a density.
        """
        self.config = config or ServerConfig()
        require_safe(self.config.endpoint, self.config.security)
        self.statistics = ServerStatistics()
        self.store = PolicyStore(registry)
        try:
            self.handler = RequestHandler(self.store, self.config, self.statistics, clock)
        except MpoRobotError:
            self.store.close()
            raise
        self._clock = clock
        self._stopping = False
        self._timeout_ms = -1
        self._next_look_ns = 0
        self._authenticator = None
        self.endpoint = ""  # until it is bound
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            self._configure()
            _require_free(self.config.endpoint)
            self._socket.bind(self.config.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"cannot serve on {self.config.endpoint}: {error}") from error
        except MpoRobotError:
            self.close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def serve_forever(self) -> None:
        """Answer until `stop` is called, then close."""
        try:
            while not self._stopping:
                self.serve_once(_LOADING_POLL_MS if self.handler.waiting else _IDLE_POLL_MS)
        finally:
            self.close()

    def serve_once(self, timeout_ms: int) -> None:
        """Wait at most `timeout_ms` for messages, answer what has come, and do what is due."""
        if timeout_ms != self._timeout_ms:
            self._socket.rcvtimeo = self._timeout_ms = timeout_ms
        try:
            first = receive_parts(self._socket)  # waits with less overhead than a poll before it
        except zmq.Again:
            pass
        else:
            self._answer_batch(first)
        for identity, reply in self.handler.finish():
            self._send(identity, reply)
        now_ns = self._clock()
        if now_ns >= self._next_look_ns:
            self._next_look_ns = now_ns + int(self.config.registry_poll_s * 1e9)
            self.store.newest()  # starts loading ahead of the next episode
            self.handler.sessions.expire(now_ns)

    def stop(self) -> None:
        """Make `serve_forever` return soon. May be called from a signal handler or another thread."""
        self._stopping = True

    def close(self) -> None:
        """Close the socket and stop the threads. May be called twice."""
        self._stopping = True
        self._socket.close(linger=0)
        if self.endpoint.startswith("ipc:///"):
            Path(self.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        self.endpoint = ""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.term()
        self.store.close()

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _configure(self) -> None:
        socket = self._socket
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = _HIGH_WATER_MARK
        socket.maxmsgsize = protocol.MAX_FRAME_BYTES  # a larger frame ends that connection
        socket.ipv6 = "[" in self.config.endpoint  # otherwise IPv4 addresses come out in mapped form
        socket.heartbeat_ivl, socket.heartbeat_timeout = 2000, 6000
        if self.config.security is not None:
            self._authenticator = secure_server(socket, self.config.security)

    def _answer_batch(self, parts: list[bytes]) -> None:
        """Take in what has come, `parts` being the first of it, and answer.

        Of several action requests of one client only the newest is worth an answer.
        """
        requests: dict[bytes, tuple[ActRequest, int]] = {}
        for number in range(_BATCH):
            if number:
                if not has_input(self._socket):
                    break
                parts = receive_parts(self._socket, NOBLOCK)
            received_ns = self._clock()
            self.statistics.frames += 1
            identity, message = parts[0], self._decode(parts)
            if message is None:
                continue
            if isinstance(message, (ActRequest, Hello, BeginEpisode)) and requests.pop(identity, None) is not None:
                self.statistics.superseded += 1
            if isinstance(message, ActRequest):
                requests[identity] = message, received_ns
            else:
                self._send(identity, self.handler.handle(identity, message, received_ns))
        for identity, (request, received_ns) in requests.items():
            self._send(identity, self.handler.handle(identity, request, received_ns))

    def _decode(self, parts: list[bytes]) -> AnyMessage | None:
        try:
            if len(parts) != 2:
                raise ProtocolError(f"a message has one frame, not {len(parts) - 1}")
            return protocol.decode(parts[1])
        except ProtocolError as error:
            self._note_malformed(parts[0], error)
            self._send(parts[0], self.handler.error(protocol.NO_REQUEST, ErrorCode.MALFORMED, str(error)))
            return None

    def _note_malformed(self, identity: bytes, error: ProtocolError) -> None:
        """Count, and log the 1st, 2nd, 4th, 8th...: a flood must be seen, and must not flood the log as well."""
        self.statistics.malformed += 1
        count = self.statistics.malformed
        if count & (count - 1) == 0:
            _log.warning("malformed frame, number %d, from client %s: %s", count, identity.hex()[:16], error)

    def _send(self, identity: bytes, message: Message | None) -> None:
        """A client that does not read loses messages; it never holds up the others."""
        if message is None:
            return
        try:
            frame = protocol.encode(message)  # before the first part is under way
            self._socket.send(identity, NOBLOCK_MORE)
            self._socket.send(frame, NOBLOCK)
        except (zmq.ZMQError, ProtocolError) as error:
            _log.debug("could not send: %s", error)


def _require_free(endpoint: str) -> None:
    """ZeroMQ takes an ipc path over from a living server without a word; two servers of one path must not happen.

    Raises:
        ConfigError: something answers on the path, or it is a file that is not a socket.
    """
    path = Path(endpoint.removeprefix("ipc://"))
    if not endpoint.startswith("ipc://") or not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"cannot serve on {endpoint}: {path} exists and is not a socket")
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return  # left behind by a server that died
    raise ConfigError(f"cannot serve on {endpoint}: another server is running there")
