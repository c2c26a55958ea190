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
from deploy.access import Access, Peer, read_or_make_token
from deploy.allow_list import AllowList
from deploy.approval import ApprovedPolicies
from deploy.guard import PolicyGuard
from deploy.handler import RequestHandler
from deploy.operations import Operations
from deploy.policy_store import PolicyStore
from deploy.protocol import ActRequest, AnyMessage, BeginEpisode, ErrorCode, Hello, Message
from deploy.rate_limit import RateLimiter
from deploy.raw_socket import NOBLOCK, NOBLOCK_MORE, has_input, receive_from, wait_busily
from deploy.registry import PolicyRegistry
from deploy.security import require_safe, secure_server
from deploy.server_config import ServerConfig, ServerStatistics
from deploy.telemetry import Telemetry
from mpo_robot.errors import ConfigError, MpoRobotError, ProtocolError

__all__ = ["PolicyServer", "ServerConfig", "ServerStatistics"]

_log = logging.getLogger(__name__)
_BATCH = 256  # messages read before any is answered with an action
_IDLE_POLL_MS = 100
_LOADING_POLL_MS = 2  # while a client waits for a policy that is being loaded
_HIGH_WATER_MARK = 256
_KEEPALIVE_S = 5
_HANDSHAKE_MS = 5000  # a connection that has not said who it is by then is closed
_COST_OF_SLOW = 24.0  # on top of 1: of what takes longer to answer than an action request
_BYTES_PER_TOKEN = 1 << 14


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
        security = self.config.security
        self._allowed = AllowList(security.allow) if security else None
        self._limiter = RateLimiter(self.config.max_rate_hz, self.config.rate_burst)
        approved = self.config.approved_policies
        self.store = PolicyStore(registry, ApprovedPolicies(approved) if approved else None)
        try:
            self._access = Access(self._allowed, "" if security else read_or_make_token(registry.directory))
            operations = Operations(registry, PolicyGuard(registry, self.config.guard))
            self.handler = RequestHandler(self.store, self.config, self.statistics, clock, operations, self._access)
        except MpoRobotError:
            self.store.close()
            raise
        self._clock = clock
        self._stopping = False
        self._timeout_ms = -1
        self._spin_ns = round(self.config.spin_s * 1e9)
        self._actions = 0  # answered when the server last waited
        self._next_look_ns = 0
        self._key_checker = None
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
        if self._spin_ns and self.statistics.actions != self._actions:
            self._actions = self.statistics.actions
            wait_busily(self._socket, self._spin_ns)
        try:
            first = self._receive()  # waits with less overhead than a poll before it
        except zmq.Again:
            pass
        else:
            self._answer_batch(first)
        for peer, reply in self.handler.finish():
            self._send(peer, reply)
        now_ns = self._clock()
        if now_ns >= self._next_look_ns:
            self._next_look_ns = now_ns + int(self.config.registry_poll_s * 1e9)
            self.store.newest()  # starts loading ahead of the next episode
            self.handler.sessions.expire(now_ns)
            self._limiter.prune(now_ns)
            if self._allowed is not None and self._allowed.refresh():
                self.handler.sessions.keep(self._access.may_talk)
        telemetry = self.handler.telemetry
        if telemetry is not None and now_ns >= telemetry.due_ns:
            self._tell(telemetry, now_ns)

    def _tell(self, telemetry: Telemetry, now_ns: int) -> None:
        telemetry.send(
            now_ns,
            endpoint=self.endpoint,
            policy_version=self.store.current.policy_version,
            stochastic=self.config.stochastic,
            swaps=self.store.swaps,
            failures=self.store.failures,
            statistics=self.statistics,
            sessions=self.handler.sessions,
        )

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
        if self._key_checker is not None:
            self._key_checker.stop()
            self._key_checker = None
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
        # Not by ZeroMQ's heartbeats: libzmq 4.3.5 aborts the process when the timer meets a connection that broke while
        # more than the high-water mark was waiting, which every peer can bring about.
        socket.tcp_keepalive, socket.tcp_keepalive_idle = 1, _KEEPALIVE_S
        socket.tcp_keepalive_intvl, socket.tcp_keepalive_cnt = _KEEPALIVE_S, 3
        socket.handshake_ivl = _HANDSHAKE_MS
        if self.config.security is not None and self._allowed is not None:
            self._key_checker = secure_server(socket, self.config.security, self._allowed)

    def _receive(self, flags: int = 0) -> tuple[Peer, list[bytes]]:
        route, parts, key = receive_from(self._socket, self._allowed is not None, flags)
        return Peer(route, key), parts

    def _answer_batch(self, first: tuple[Peer, list[bytes]]) -> None:
        """Take in what has come, `first` being the first of it, and answer.

        Of several action requests of one client only the newest is worth an answer.
        """
        requests: dict[Peer, tuple[ActRequest, int]] = {}
        peer, parts = first
        for number in range(_BATCH):
            if number:
                if not has_input(self._socket):
                    break
                peer, parts = self._receive(NOBLOCK)
            received_ns = self._clock()
            self.statistics.frames += 1
            message = self._admit(peer, parts, received_ns)
            if message is None:
                continue
            if isinstance(message, (ActRequest, Hello, BeginEpisode)) and requests.pop(peer, None) is not None:
                self.statistics.superseded += 1
            if isinstance(message, ActRequest):
                requests[peer] = message, received_ns
            else:
                self._send(peer, self.handler.handle(peer, message, received_ns))
        for peer, (request, received_ns) in requests.items():
            self._send(peer, self.handler.handle(peer, request, received_ns))

    def _admit(self, peer: Peer, parts: list[bytes], now_ns: int) -> AnyMessage | None:
        """The message of a peer that may send one now; everything else is counted, and answered if that is cheap."""
        account = peer.key or peer.route  # with keys, more connections do not give more messages
        if not self._limiter.allow(account, now_ns):
            self.statistics.limited += 1
            if self._limiter.should_tell(account):
                self._refuse(peer, ErrorCode.TOO_FAST, f"more than {self.config.max_rate_hz:g} messages per second")
            return None
        message = None
        if self._access.may_talk(peer):
            message = self._decode(peer, parts)
        else:
            self.statistics.forbidden += 1
            self._refuse(peer, ErrorCode.FORBIDDEN, "this key was revoked")
        slow = 0.0 if isinstance(message, ActRequest) else _COST_OF_SLOW
        self._limiter.charge(account, 1.0 + slow + sum(map(len, parts)) // _BYTES_PER_TOKEN)
        return message

    def _decode(self, peer: Peer, parts: list[bytes]) -> AnyMessage | None:
        try:
            if len(parts) != 1:
                raise ProtocolError(f"a message has one frame, not {len(parts)}")
            return protocol.decode(parts[0])
        except ProtocolError as error:
            self._note_malformed(peer.route, error)
            self._refuse(peer, ErrorCode.MALFORMED, str(error))
            return None

    def _refuse(self, peer: Peer, code: str, text: str) -> None:
        self._send(peer, self.handler.error(protocol.NO_REQUEST, code, text))

    def _note_malformed(self, identity: bytes, error: ProtocolError) -> None:
        """Count, and log the 1st, 2nd, 4th, 8th...: a flood must be seen, and must not flood the log as well."""
        self.statistics.malformed += 1
        count = self.statistics.malformed
        if count & (count - 1) == 0:
            _log.warning("malformed frame, number %d, from client %s: %s", count, identity.hex()[:16], error)

    def _send(self, peer: Peer, message: Message | None) -> None:
        """A client that does not read loses messages; it never holds up the others."""
        if message is None:
            return
        try:
            frame = protocol.encode(message)  # before the first part is under way
            self._socket.send(peer.route, NOBLOCK_MORE)
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
