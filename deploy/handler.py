"""`RequestHandler`: turns a client's message into the reply. No socket, so that every path can be tested directly."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from deploy import protocol
from deploy.access import Access, Peer
from deploy.onnx_policy import PolicyError
from deploy.operations import COMMANDS, Operations
from deploy.outcomes import Outcome
from deploy.policy_store import PolicyStore, Served
from deploy.protocol import (
    ActReply,
    ActRequest,
    AnyMessage,
    BeginEpisode,
    EndEpisode,
    EpisodeNoted,
    EpisodeReady,
    Error,
    ErrorCode,
    Hello,
    Message,
    Operate,
    Operated,
    Ping,
    Pong,
    Welcome,
)
from deploy.server_config import ServerConfig, ServerStatistics
from deploy.sessions import Session, SessionTable, episode_rng
from deploy.telemetry import Telemetry
from mpo_robot.errors import MpoRobotError, ProtocolError, SpecMismatchError

_log = logging.getLogger(__name__)


class _RefusalError(Exception):
    """A request gets an Error with this code and text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class _Pending:
    """A request that the store's worker is busy with, and how its reply is made then."""

    request: Message
    work: Future[Any]
    reply: Callable[[], Message]


class RequestHandler:
    """The server's state and rules. One thread.

    Raises PolicyError when it is made to sample and the policy in force has no density.

    Attributes:
        sessions: The clients.
        statistics: Counters, shared with the server.
        telemetry: Gets the time of every action, if set.
    """

    def __init__(
        self,
        store: PolicyStore,
        config: ServerConfig,
        statistics: ServerStatistics,
        clock: Callable[[], int],
        operations: Operations | None = None,
        access: Access | None = None,
    ) -> None:
        self.statistics = statistics
        self.sessions = SessionTable(config.max_sessions, int(config.session_idle_s * 1e9), config.sessions_per_key)
        self._store = store
        self._operations = operations
        self._access = access or Access()
        self._config = config
        self._clock = clock
        store.current.require_mode(config.stochastic)
        self._spec = store.current.spec
        self._spec_json = protocol.encode_spec(self._spec)
        self._pending: dict[Peer, _Pending] = {}
        self.telemetry: Telemetry | None = None

    @property
    def waiting(self) -> bool:
        """Whether a client waits for work under way."""
        return bool(self._pending)

    def handle(self, peer: Peer, message: AnyMessage, received_ns: int) -> Message | None:
        """Reply to a message, or None if it comes later, from `finish`. Never raises."""
        return self._guard(message, self._dispatch, peer, message, received_ns)

    def finish(self) -> Iterator[tuple[Peer, Message]]:
        """Replies to clients whose work is done in the meantime."""
        if not self._pending:
            return
        for peer, pending in list(self._pending.items()):
            if pending.work.done():
                del self._pending[peer]
                reply = self._guard(pending.request, pending.reply)
                if reply is not None:
                    yield peer, reply

    def error(self, request_id: int, code: str, text: str) -> Error:
        """An Error message, counted."""
        self.statistics.refused += 1
        return Error(**self._header(request_id), code=code, text=text[:4096])

    def _guard(self, message: Message, make: Callable[..., Message | None], *arguments: Any) -> Message | None:
        """Whatever goes wrong with one message becomes an Error to its sender."""
        try:
            return make(*arguments)
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

    def _dispatch(self, peer: Peer, message: AnyMessage, received_ns: int) -> Message | None:
        if isinstance(message, ActRequest):
            return self._act(peer, message, received_ns)
        if isinstance(message, BeginEpisode):
            return self._begin(peer, message)
        if isinstance(message, EndEpisode):
            return self._end(peer, message)
        if isinstance(message, Hello):
            return self._welcome(peer, message)
        if isinstance(message, Operate):
            return self._operate(peer, message)
        if isinstance(message, Ping):
            known = self.sessions.get(peer, self._clock()) is not None
            return Pong(**self._header(message.request_id), session=known)
        raise _RefusalError(ErrorCode.MALFORMED, f"{type(message).__name__} is not for a server")

    def _welcome(self, peer: Peer, message: Hello) -> Message:
        try:
            other = protocol.decode_spec(message.spec_json)
        except ProtocolError as error:
            raise _RefusalError(ErrorCode.MALFORMED, str(error)) from error
        self._spec.require_same(other, "the server's policy", "this robot")
        self._require_hash(message)
        self._pending.pop(peer, None)
        if self.sessions.open(peer, message.client_id, self._clock()) is None:
            raise _RefusalError(ErrorCode.BUSY, "all sessions are taken, or all of this robot's key: try again later")
        return Welcome(
            **self._header(message.request_id),
            policy_version=self._store.current.policy_version,
            spec_json=self._spec_json,
            stochastic=self._config.stochastic,
            takes_outcomes=self._operations is not None,
        )

    def _begin(self, peer: Peer, message: BeginEpisode) -> Message | None:
        session = self._session(peer, message)
        session.policy, session.under, session.episode_id = None, None, ""
        if message.resume_policy_version is None:
            served = self._store.newest()
        else:
            served = self._store.version(message.resume_policy_version)
        return self._later(peer, message, served, lambda: self._start(peer, message, served))

    def _later(self, peer: Peer, request: Message, work: Future[Any], reply: Callable[[], Message]) -> Message | None:
        """The reply, at once if the work is done already, else by `finish`."""
        self._pending.pop(peer, None)
        if work.done():
            return reply()
        self._pending[peer] = _Pending(request, work, reply)
        return None

    def _start(self, peer: Peer, request: BeginEpisode, work: Future[Served]) -> Message:
        """Pin the policy, now that it is loaded."""
        session = self._session(peer, request)
        try:
            served = work.result(timeout=0)
        except MpoRobotError as error:
            raise _RefusalError(ErrorCode.UNKNOWN_VERSION, str(error)) from error
        policy = served.choose(request.episode_id)
        policy.require_mode(self._config.stochastic)
        session.policy, session.under, session.episode_id = policy, served.under, request.episode_id
        session.step_index = request.step_index
        session.rng = episode_rng(self._config.seed, request.episode_id, request.step_index)
        self.statistics.episodes += 1
        return EpisodeReady(
            **self._header(request.request_id),
            episode_id=request.episode_id,
            policy_version=policy.policy_version,
            stochastic=self._config.stochastic,
        )

    def _end(self, peer: Peer, message: EndEpisode) -> Message | None:
        """Note how an episode ended; the reply comes when a guard has decided, so that the next one knows."""
        session = self._session(peer, message)
        if session.policy is None or session.under is None or session.episode_id != message.episode_id:
            raise _RefusalError(ErrorCode.UNKNOWN_SESSION, "no such episode runs, or its end was reported already")
        if self._operations is None:
            raise _RefusalError(ErrorCode.REFUSED, "this server takes no outcomes")
        total = message.undiscounted_return
        outcome = Outcome(
            policy_version=session.policy.policy_version,
            under=session.under,
            episode_id=message.episode_id,
            steps=message.steps,
            undiscounted_return=total if total is not None and math.isfinite(total) else None,
            misses=min(message.misses, message.steps),
            fault=message.fault,
            reason=message.reason,
        )
        session.under = None
        self.statistics.outcomes += 1
        work = self._store.submit(lambda to=self._operations: to.note(outcome))
        return self._later(peer, message, work, lambda: EpisodeNoted(**self._header(message.request_id)))

    def _operate(self, peer: Peer, message: Operate) -> Message | None:
        who = self._access.operator(peer, message.token)
        if not who or self._operations is None:
            self.statistics.forbidden += 1
            if self.statistics.forbidden.bit_count() == 1:  # a flood must not fill the log
                _log.warning("refused %r to %s, who is no operator", message.command[:32], peer.key or "a local peer")
            raise _RefusalError(
                ErrorCode.FORBIDDEN, "this takes an operator's key, or on loopback the operators' token"
            )
        if message.command not in COMMANDS:
            raise _RefusalError(ErrorCode.REFUSED, f"unknown command; there are {', '.join(COMMANDS)}")
        asked = (message.command, who, message.reason, message.expect)
        work = self._store.submit(lambda to=self._operations: to.operate(*asked))
        return self._later(peer, message, work, lambda: self._operated(message, work))

    def _operated(self, request: Operate, work: Future[dict[str, Any]]) -> Message:
        try:
            state = work.result(timeout=0)
        except MpoRobotError as error:
            raise _RefusalError(ErrorCode.REFUSED, str(error)) from error
        return Operated(**self._header(request.request_id), state_json=json.dumps(state, allow_nan=False))

    def _act(self, peer: Peer, message: ActRequest, received_ns: int) -> Message:
        session = self._session(peer, message)
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
        session.step_index = message.step_index
        reply = ActReply(  # without `_header`: behind the policy every call counts
            protocol_version=protocol.PROTOCOL_VERSION,
            spec_hash=message.spec_hash,
            request_id=message.request_id,
            sent_ns=self._clock(),
            step_index=message.step_index,
            action=protocol.encode_array(result.action),
            log_prob=None if math.isnan(result.log_prob) else result.log_prob,
            policy_version=session.policy.policy_version,
            inference_ns=max(0, inference_ns),
            received_ns=received_ns,
        )
        if self.telemetry is not None:
            self.telemetry.latencies.append(reply.sent_ns - received_ns)
        return reply

    def _session(self, peer: Peer, message: Message) -> Session:
        """The client's session; without one it is told to handshake."""
        session = self.sessions.get(peer, self._clock())
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
