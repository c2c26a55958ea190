"""`RequestHandler`: turns a client's message into the reply. No socket, so that every path can be tested directly."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from deploy import protocol
from deploy.onnx_policy import OnnxPolicy, PolicyError
from deploy.policy_store import PolicyStore
from deploy.protocol import (
    ActReply,
    ActRequest,
    AnyMessage,
    BeginEpisode,
    EpisodeReady,
    Error,
    ErrorCode,
    Hello,
    Message,
    Ping,
    Pong,
    Welcome,
)
from deploy.server_config import ServerConfig, ServerStatistics
from deploy.sessions import Session, SessionTable, episode_rng
from mpo_robot.errors import MpoRobotError, ProtocolError, SpecMismatchError

_log = logging.getLogger(__name__)


class _RefusalError(Exception):
    """A request gets an Error with this code and text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class _PendingEpisode:
    request: BeginEpisode
    policy: Future[OnnxPolicy]


class RequestHandler:
    """The server's state and rules. One thread.

    Raises PolicyError when it is made to sample and the policy in force has no density.

    Attributes:
        sessions: The clients.
        statistics: Counters, shared with the server.
    """

    def __init__(
        self, store: PolicyStore, config: ServerConfig, statistics: ServerStatistics, clock: Callable[[], int]
    ) -> None:
        self.statistics = statistics
        self.sessions = SessionTable(config.max_sessions, int(config.session_idle_s * 1e9))
        self._store = store
        self._config = config
        self._clock = clock
        store.current.require_mode(config.stochastic)
        self._spec = store.current.spec
        self._spec_json = protocol.encode_spec(self._spec)
        self._pending: dict[bytes, _PendingEpisode] = {}

    @property
    def waiting(self) -> bool:
        """Whether a client waits for a policy that is being loaded."""
        return bool(self._pending)

    def handle(self, identity: bytes, message: AnyMessage, received_ns: int) -> Message | None:
        """Reply to a message, or None if it comes later, from `finish`. Never raises."""
        return self._guard(message, lambda: self._dispatch(identity, message, received_ns))

    def finish(self) -> Iterator[tuple[bytes, Message]]:
        """Replies to clients whose policy has been loaded in the meantime."""
        for identity, pending in list(self._pending.items()):
            if pending.policy.done():
                del self._pending[identity]
                reply = self._guard(pending.request, lambda who=identity, what=pending: self._start(who, what))
                if reply is not None:
                    yield identity, reply

    def error(self, request_id: int, code: str, text: str) -> Error:
        """An Error message, counted."""
        self.statistics.refused += 1
        return Error(**self._header(request_id), code=code, text=text[:4096])

    def _guard(self, message: Message, make: Callable[[], Message | None]) -> Message | None:
        """Whatever goes wrong with one message becomes an Error to its sender."""
        try:
            return make()
        except _RefusalError as error:
            return self.error(message.request_id, error.code, str(error))
        except SpecMismatchError as error:
            return self.error(message.request_id, ErrorCode.SPEC_MISMATCH, str(error))
        except PolicyError as error:
            return self.error(message.request_id, ErrorCode.POLICY_FAILED, str(error))
        except Exception:
            self.statistics.internal_errors += 1
            if self.statistics.internal_errors.bit_count() == 1:  # 1, 2, 4, ...: a repeated bug must not fill the disk
                _log.exception("internal error %d, in %s", self.statistics.internal_errors, type(message).__name__)
            return self.error(message.request_id, ErrorCode.INTERNAL, "internal error, see the server's log")

    def _dispatch(self, identity: bytes, message: AnyMessage, received_ns: int) -> Message | None:
        if isinstance(message, ActRequest):
            return self._act(identity, message, received_ns)
        if isinstance(message, BeginEpisode):
            return self._begin(identity, message)
        if isinstance(message, Hello):
            return self._welcome(identity, message)
        if isinstance(message, Ping):
            known = self.sessions.get(identity, self._clock()) is not None
            return Pong(**self._header(message.request_id), session=known)
        raise _RefusalError(ErrorCode.MALFORMED, f"{type(message).__name__} is not for a server")

    def _welcome(self, identity: bytes, message: Hello) -> Message:
        try:
            other = protocol.decode_spec(message.spec_json)
        except ProtocolError as error:
            raise _RefusalError(ErrorCode.MALFORMED, str(error)) from error
        self._spec.require_same(other, "the server's policy", "this robot")
        self._require_hash(message)
        self._pending.pop(identity, None)
        if self.sessions.open(identity, message.client_id, self._clock()) is None:
            raise _RefusalError(ErrorCode.BUSY, f"all {self._config.max_sessions} sessions are taken, try again later")
        return Welcome(
            **self._header(message.request_id),
            policy_version=self._store.current.policy_version,
            spec_json=self._spec_json,
            stochastic=self._config.stochastic,
        )

    def _begin(self, identity: bytes, message: BeginEpisode) -> Message | None:
        session = self._session(identity, message)
        session.policy, session.episode_id = None, ""
        if message.resume_policy_version is None:
            policy = self._store.newest()
        else:
            policy = self._store.version(message.resume_policy_version)
        pending = _PendingEpisode(message, policy)
        if policy.done():
            self._pending.pop(identity, None)
            return self._start(identity, pending)
        self._pending[identity] = pending
        return None

    def _start(self, identity: bytes, pending: _PendingEpisode) -> Message:
        """Pin the policy, now that it is loaded."""
        request = pending.request
        session = self._session(identity, request)
        try:
            policy = pending.policy.result(timeout=0)
        except MpoRobotError as error:
            raise _RefusalError(ErrorCode.UNKNOWN_VERSION, str(error)) from error
        policy.require_mode(self._config.stochastic)
        session.policy, session.episode_id = policy, request.episode_id
        session.rng = episode_rng(self._config.seed, request.episode_id, request.step_index)
        self.statistics.episodes += 1
        return EpisodeReady(
            **self._header(request.request_id),
            episode_id=request.episode_id,
            policy_version=policy.policy_version,
            stochastic=self._config.stochastic,
        )

    def _act(self, identity: bytes, message: ActRequest, received_ns: int) -> Message:
        session = self._session(identity, message)
        if session.policy is None:
            raise _RefusalError(ErrorCode.UNKNOWN_SESSION, "no episode was begun: send BeginEpisode first")
        try:
            observation = protocol.decode_array(message.observation, self._spec.observation_size, "observation")
        except ProtocolError as error:
            raise _RefusalError(ErrorCode.BAD_OBSERVATION, str(error)) from error
        start_ns = self._clock()
        result = session.policy.act(observation, self._config.stochastic, session.rng)
        inference_ns = self._clock() - start_ns
        self.statistics.actions += 1
        return ActReply(
            **self._header(message.request_id),
            step_index=message.step_index,
            action=protocol.encode_array(result.action),
            log_prob=None if math.isnan(result.log_prob) else result.log_prob,
            policy_version=session.policy.policy_version,
            inference_ns=max(0, inference_ns),
            received_ns=received_ns,
        )

    def _session(self, identity: bytes, message: Message) -> Session:
        """The client's session; without one it is told to handshake."""
        session = self.sessions.get(identity, self._clock())
        if session is None:
            raise _RefusalError(ErrorCode.UNKNOWN_SESSION, "this server does not know you: send Hello first")
        self._require_hash(message)
        return session

    def _require_hash(self, message: Message) -> None:
        if message.spec_hash != self._spec.spec_hash:
            raise SpecMismatchError(
                f"message for spec {message.spec_hash[:12]}, this server has {self._spec.spec_hash[:12]}"
            )

    def _header(self, request_id: int) -> dict[str, Any]:
        return protocol.header(self._spec.spec_hash, request_id, self._clock())
