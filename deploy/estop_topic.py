"""Emergency stop by message: the robot listens, an operator sends. Off loopback only operators' CURVE keys are heard.

A message can stop and ask for the state. It cannot re-arm: that takes a human at the robot. A repeated or replayed
stop is harmless, so messages carry no sequence numbers. A stop acts at once, and is answered when the robot's driver
has confirmed it, or `CONFIRM_S` later; others are answered meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec
import zmq

from deploy.allow_list import AllowList, Role
from deploy.estop import Confirmation, EStop
from deploy.security import ClientSecurity, ServerSecurity, require_safe, secure_client, secure_server
from deploy.timing import give_way
from mpo_robot.errors import ConfigError, MpoRobotError

MAX_BYTES = 1024
CONFIRM_S = 1.0
STOP_WORDS: dict[Confirmation, str] = {
    "": "not stopped",
    "stopped": "stopped",
    "unconfirmed": "NOT KNOWN TO HAVE STOPPED: it was told to, and its driver has not confirmed it. Cut its power now",
    "failed": "COULD NOT BE STOPPED: its driver failed. Cut its power now",
}
_POLL_MS = 200
_WAITING_POLL_MS = 2  # while a stop is to be confirmed
_LINGER_MS = 200  # for the answers of the last moment
_JOIN_S = 2.0


class StopRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What an operator sends: `stop`, or `status` to ask only."""

    verb: Literal["stop", "status"]
    reason: str = ""


class StopReply(msgspec.Struct):
    """What the robot answers.

    Attributes:
        tripped: Whether the e-stop is in force now.
        reason: Why.
        state: Of the robot, as in docs/safety.md. After a stop it may still be the state of a moment ago.
        error: What was wrong with the request, or empty.
        confirmation: Of the stop in force, see `EStop.confirmation`. Robots before this field confirm nothing.
    """

    tripped: bool
    reason: str = ""
    state: str = ""
    error: str = ""
    confirmation: Confirmation = ""

    def __post_init__(self) -> None:
        if self.tripped and not self.confirmation:
            self.confirmation = "unconfirmed"


class _Waiting(NamedTuple):
    """Somebody who waits for a stop to be confirmed: the address to answer to, and until when."""

    address: list[zmq.Frame]
    deadline_s: float


class EStopUnreachableError(MpoRobotError):
    """The robot did not answer an e-stop message: use another way to stop it."""


class TopicEStop:
    """Context that listens for stop messages in a thread of its own. No message, however malformed, ends it."""

    def __init__(
        self, estop: EStop, endpoint: str, security: ServerSecurity | None, state: Callable[[], str] = lambda: ""
    ) -> None:
        """Bind the endpoint.

        Args:
            estop: What to trip.
            endpoint: `tcp://HOST:PORT` (PORT `*` for any free one) or `ipc://PATH`.
            security: CURVE keys and the operators' allow-list; required off loopback.
            state: The robot's state, for replies.

        Raises:
            ConfigError: malformed or used endpoint, off loopback without keys, or unreadable keys.
        """
        require_safe(endpoint, security)
        self._estop, self._state = estop, state
        self._stopping = threading.Event()
        self._context = zmq.Context()
        self._waiting: deque[_Waiting] = deque()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.linger, self._socket.maxmsgsize = 0, MAX_BYTES
        self._authenticator = None
        self._allowed = None if security is None else AllowList(security.allow)
        try:
            if security is not None and self._allowed is not None:
                self._authenticator = secure_server(self._socket, security, self._allowed)
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._close()
            raise ConfigError(f"cannot listen for e-stops on {endpoint}: {error}") from error
        except BaseException:
            self._close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="e-stop topic", daemon=True)

    def __enter__(self) -> TopicEStop:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)
        self._close()

    def _close(self) -> None:
        self._socket.close(_LINGER_MS)
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.term()

    def _run(self) -> None:
        give_way()
        while not self._stopping.is_set():
            with contextlib.suppress(zmq.ZMQError):  # a peer that vanished; the next poll goes on
                if self._socket.poll(_WAITING_POLL_MS if self._waiting else _POLL_MS):
                    self._take(self._socket.recv_multipart(copy=False))
                self._answer_waiting()
        while self._waiting:
            self._answer(self._waiting.popleft().address)

    def _take(self, frames: list[zmq.Frame]) -> None:
        """Act on a message, and answer it unless it has to wait."""
        address, content = frames[:2], frames[2:]
        if not content or address[1].bytes:  # not from a REQ socket
            return
        error = ""
        try:
            request = msgspec.json.decode(content[0].bytes, type=StopRequest) if len(content) == 1 else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            request = None
        if not self._is_operator(content[0]):
            error = "this takes an operator's key"
        elif request is None:
            error = "not a stop request: expected one frame of JSON with verb stop or status"
        elif request.verb == "stop":
            self._estop.trip(f"message: {request.reason or 'no reason given'}")
            self._waiting.append(_Waiting(address, time.monotonic() + CONFIRM_S))
            return
        self._answer(address, error)

    def _answer_waiting(self) -> None:
        """All of them when the robot has stopped: an older stop needs no other confirmation than a newer one."""
        while self._waiting and (self._estop.stopped or time.monotonic() >= self._waiting[0].deadline_s):
            self._answer(self._waiting.popleft().address)

    def _answer(self, address: list[zmq.Frame], error: str = "") -> None:
        estop = self._estop
        reply = StopReply(estop.tripped, estop.reason, self._state(), error, estop.confirmation)
        self._socket.send_multipart([*address, msgspec.json.encode(reply)])

    def _is_operator(self, frame: zmq.Frame) -> bool:
        """With CURVE the key decides; without, only this machine can reach the endpoint, and a stop does no harm."""
        if self._allowed is None:
            return True
        with contextlib.suppress(Exception):  # a list that cannot be read must not end the thread
            self._allowed.refresh()  # a key may have been revoked since its handshake
        with contextlib.suppress(zmq.ZMQError):
            entry = self._allowed.find(str(frame.get("User-Id")))
            return entry is not None and entry.role is Role.OPERATOR
        return False


def send_estop(
    endpoint: str,
    reason: str = "",
    *,
    verb: Literal["stop", "status"] = "stop",
    security: ClientSecurity | None = None,
    timeout_s: float = 2.0,
) -> StopReply:
    """Stop a robot that listens at `endpoint`, or ask for its state; returns its answer.

    Args:
        endpoint: `estop.endpoint` of the robot.
        reason: For the robot's log; at most some hundred bytes.
        verb: `stop` or `status`.
        security: The operator's secret key and the robot's public key; required off loopback.
        timeout_s: How long to wait for the answer. To a stop it may take `CONFIRM_S` to come.

    Raises:
        EStopUnreachableError: no answer, for example because the robot does not know the operator's key. The stop may
            still have arrived.
        ConfigError: malformed endpoint or keys.
    """
    require_safe(endpoint, security)
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        if security is not None:
            secure_client(socket, security)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"cannot connect to {endpoint}: {error}") from error
        socket.send(msgspec.json.encode(StopRequest(verb, reason[: MAX_BYTES // 8])))
        if not socket.poll(round(timeout_s * 1000)):
            raise EStopUnreachableError(
                f"no answer from {endpoint} within {timeout_s:g} s: use another way to stop the robot now. Is its "
                "run-robot running, with estop.endpoint set, and does it allow this operator's key?"
            )
        try:
            return msgspec.json.decode(socket.recv(), type=StopReply)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EStopUnreachableError(f"{endpoint} answered with something else than a robot's e-stop") from error
