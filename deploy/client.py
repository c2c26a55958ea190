"""`PolicyClient`: the robot's side of the wire. One thread; nothing in it blocks past the time it is given.

A lost server is picked up again by `reconnect_if_needed`, called between ticks: it never blocks and never raises.
Until it succeeds, `act` returns None at once and the robot's own fallback is in charge.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from deploy import protocol
from deploy.client_channel import ClientChannel
from deploy.client_types import (
    ActionReply,
    ClientState,
    ClientStatistics,
    EpisodeOutcome,
    ServerRefusedError,
    ServerTimeoutError,
    read_action,
)
from deploy.numeric import all_finite
from deploy.protocol import (
    ActReply,
    AnyMessage,
    EpisodeNoted,
    EpisodeReady,
    Error,
    ErrorCode,
    Message,
    Pong,
    Welcome,
)
from deploy.security import ClientSecurity
from mpo_robot.errors import MpoRobotError, ProtocolError, SpecMismatchError
from mpo_robot.specs import PolicySpec

__all__ = [
    "ActionReply",
    "ClientState",
    "ClientStatistics",
    "EpisodeOutcome",
    "PolicyClient",
    "ServerRefusedError",
    "ServerTimeoutError",
]

HEARTBEAT_INTERVAL_NS = 500_000_000  # silence after which the server is asked for a sign of life
LOST_AFTER_NS = 2_000_000_000  # time without any answer after which it counts as lost
RETRY_INTERVAL_NS = 200_000_000  # before the second handshake attempt; doubles up to LOST_AFTER_NS
REFUSED_INTERVAL_NS = 1_000_000_000  # the same after a refusal
DRAIN_LIMIT = 64  # frames read between two ticks; a flood must not hold up the loop


class PolicyClient:
    """Asks a policy server for actions.

    Typical use: `connect`, then per episode `begin_episode`, then per tick `reconnect_if_needed` and `act`.

    Attributes:
        endpoint: Where the server is.
        spec: The robot's interface.
        statistics: Counters.
        state: Where the client stands with the server.
        policy_version: Version pinned for the running episode; empty before the first one.
    """

    def __init__(
        self,
        endpoint: str,
        spec: PolicySpec,
        *,
        security: ClientSecurity | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        spin_s: float = 0.0,
    ) -> None:
        """Prepare the socket; the connection is made in the background.

        Args:
            endpoint: `tcp://HOST:PORT` or `ipc://PATH` of the server.
            spec: The robot's interface; a server with another one is refused.
            security: CURVE keys, required off loopback.
            clock: Monotonic nanoseconds; deadlines are on this clock.
            spin_s: Busy-wait this long for an answer before sleeping until it comes.

        Raises:
            ConfigError: malformed endpoint, off loopback without keys, or unreadable keys.
        """
        self.endpoint = endpoint
        self.spec = spec
        self.state = ClientState.LOST
        self.policy_version = ""
        self._clock = clock
        self._session_id = 0  # the first request id of the session
        self._waiting_id = protocol.NO_REQUEST  # of the handshake message that `reconnect_if_needed` has under way
        self._episode_id: str | None = None
        self._next_step = 0
        self._takes_outcomes = False  # until a server says so
        self._retry_at_ns, self._retry_interval_ns = 0, RETRY_INTERVAL_NS
        self._channel = ClientChannel(endpoint, spec, security, clock, round(spin_s * 1e9))
        self.statistics = self._channel.statistics

    @property
    def last_error(self) -> str:
        """Why the last handshake or request was refused; empty if none was."""
        return self._channel.last_error

    def connect(self, timeout_s: float) -> Welcome:
        """Handshake, waiting at most `timeout_s`.

        Raises:
            SpecMismatchError: the server's policy has another interface; names the first differing field.
            ServerTimeoutError: no answer in time.
            ServerRefusedError: any other refusal.
        """
        self._episode_id = None
        self.state = ClientState.LOST
        reply = self._call(self._channel.hello, self._clock() + int(timeout_s * 1e9))
        if not isinstance(reply, Welcome):
            self._refuse(reply)
        self._check_spec(reply)
        self._takes_outcomes = reply.takes_outcomes
        self._enter(ClientState.CONNECTED)
        return reply

    def begin_episode(self, episode_id: str, timeout_s: float) -> str:
        """Pin the server's current policy for an episode and return its version; handshakes first if needed.

        Raises:
            SpecMismatchError: the server now has a policy with another interface.
            ServerTimeoutError: no answer in time; no episode is running then.
            ServerRefusedError: any other refusal.
        """
        deadline_ns = self._clock() + int(timeout_s * 1e9)
        self._episode_id, self._next_step = None, 0
        fresh = self.state not in (ClientState.CONNECTED, ClientState.READY)
        if fresh:
            self.connect((deadline_ns - self._clock()) / 1e9)
        self.state = ClientState.CONNECTED
        reply = self._call(lambda number: self._channel.begin(number, episode_id), deadline_ns)
        if isinstance(reply, Error) and reply.code == ErrorCode.UNKNOWN_SESSION and not fresh:
            self.connect((deadline_ns - self._clock()) / 1e9)  # the server was restarted since the last episode
            reply = self._call(lambda number: self._channel.begin(number, episode_id), deadline_ns)
        if not isinstance(reply, EpisodeReady):
            self._refuse(reply)
        self._episode_id, self.policy_version = episode_id, reply.policy_version
        self._enter(ClientState.READY)
        return self.policy_version

    def end_episode(self, outcome: EpisodeOutcome, timeout_s: float) -> bool:
        """Report how the running episode ended, once; returns whether the server has noted it. Never raises.

        Waits at most `timeout_s`: call it when the robot stands still. A lost server is not waited for.
        """
        episode_id, self._episode_id = self._episode_id, None
        if episode_id is None or not self._takes_outcomes or self.state is not ClientState.READY:
            return False
        self.state = ClientState.CONNECTED
        try:
            deadline_ns = self._clock() + int(timeout_s * 1e9)
            reply = self._call(lambda number: self._channel.end(number, episode_id, outcome), deadline_ns)
        except ServerTimeoutError as error:
            self._channel.last_error = str(error)
            return False
        if isinstance(reply, Error):
            self.statistics.error_replies += 1
        return isinstance(reply, EpisodeNoted)

    def act(self, observation: npt.NDArray[np.float32], step_index: int, deadline_ns: int) -> ActionReply | None:
        """Action for an observation [O], or None if no good one has come by the absolute `deadline_ns`.

        None comes at once when there is no session, the connection is down, the observation is not finite, or the
        reply to this very request is bad; the statistics tell which.

        Raises:
            ValueError: wrong observation shape.
        """
        values = np.asarray(observation, np.float32)
        if values.shape != (self.spec.observation_size,):
            raise ValueError(f"observation has shape {values.shape}, expected ({self.spec.observation_size},)")
        self._next_step = step_index + 1
        if self.state is not ClientState.READY:
            self.statistics.not_ready += 1
            return None
        if not all_finite(values):
            self.statistics.bad_observations += 1
            return None
        number, sent_ns = self._channel.new_id(), self._clock()
        if not self._channel.send(self._channel.act(number, step_index, values)):
            self._lose("the connection is down")
            return None
        self.statistics.requests += 1
        reply = self._wait_action(number, step_index, sent_ns, deadline_ns)
        if reply is None:
            self.statistics.deadline_misses += 1
        else:
            self.statistics.replies += 1
        return reply

    def reconnect_if_needed(self) -> bool:
        """Keep the session alive or get it back; never blocks, never raises. Returns whether `act` can work.

        Call it between ticks. A running episode is resumed with its own policy version; if the server no longer has
        that version, the episode stays without actions (see `last_error`) until the next `begin_episode`.
        """
        for _ in range(DRAIN_LIMIT):
            frame = self._channel.receive()
            if frame is None:
                break
            message = self._channel.decode(frame)
            if message is not None and message.request_id == self._waiting_id:
                self._advance(message)
            elif message is not None:
                self._drop(message)
        now_ns = self._clock()
        if self.state in (ClientState.CONNECTED, ClientState.READY):
            self._keep_alive(now_ns)
        elif now_ns >= self._retry_at_ns:
            self._greet(now_ns)
        return self.state is ClientState.READY

    def close(self) -> None:
        """Close the socket at once; what is queued is dropped. May be called twice."""
        self._channel.close()
        self.state = ClientState.LOST

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _wait_action(self, number: int, step_index: int, sent_ns: int, deadline_ns: int) -> ActionReply | None:
        while (frame := self._channel.receive(deadline_ns)) is not None:
            received_ns = self._clock()
            if received_ns > deadline_ns:
                self.statistics.stale_replies += 1
                return None
            message = self._channel.decode(frame)
            if message is None:
                continue
            if message.request_id != number:
                self._drop(message)
            elif isinstance(message, ActReply):
                return self._check_action(message, step_index, received_ns - sent_ns)
            else:
                self._drop(message)
                return None
        return None

    def _check_action(self, message: ActReply, step_index: int, round_trip_ns: int) -> ActionReply | None:
        try:
            return read_action(message, self.spec, step_index, self.policy_version, round_trip_ns)
        except ProtocolError as error:
            self.statistics.bad_replies += 1
            self._channel.last_error = str(error)
            return None

    def _drop(self, message: AnyMessage) -> None:
        """Take note of a message that is not the answer that is being waited for."""
        if isinstance(message, Pong):
            known = message.session
        elif isinstance(message, Error):
            self.statistics.error_replies += 1
            self._channel.last_error = f"{message.text} [{message.code}]"
            known = message.code != ErrorCode.UNKNOWN_SESSION
        else:
            self.statistics.stale_replies += 1
            known = True
        # An answer to a request from before this session began says nothing about this session.
        if not known and message.request_id >= self._session_id:
            self._lose("the server does not know this session")

    def _advance(self, message: AnyMessage) -> None:
        """Next step of the handshake that `reconnect_if_needed` has under way."""
        self._waiting_id = protocol.NO_REQUEST
        if self.state is ClientState.GREETING and isinstance(message, Welcome):
            try:
                self._check_spec(message)
            except MpoRobotError as error:
                self._give_up(str(error))
                return
            self._takes_outcomes = message.takes_outcomes
            if self._episode_id is None:
                self._enter(ClientState.CONNECTED)
                self.statistics.reconnects += 1
                return
            self._waiting_id = self._channel.new_id()
            resume = self._channel.begin(self._waiting_id, self._episode_id, self._next_step, self.policy_version)
            self.state = ClientState.RESUMING if self._channel.send(resume) else ClientState.LOST
            self._retry_at_ns = self._clock() + LOST_AFTER_NS  # the server may have to load that version
        elif self.state is ClientState.RESUMING and isinstance(message, EpisodeReady):
            if message.policy_version != self.policy_version:
                self._give_up("the server resumed the episode with another policy version")
                return
            self._enter(ClientState.READY)
            self.statistics.reconnects += 1
        elif isinstance(message, Error):
            self.statistics.error_replies += 1
            if self.state is ClientState.RESUMING and message.code == ErrorCode.UNKNOWN_VERSION:
                self._episode_id = None
                self.state = ClientState.CONNECTED
                self._channel.last_error = message.text
            else:
                self._give_up(f"{message.text} [{message.code}]")
        else:
            self.statistics.bad_replies += 1
            self._give_up("the server answered a handshake with something else")

    def _greet(self, now_ns: int) -> None:
        self._waiting_id = self._channel.new_id()
        if self._channel.send(self._channel.hello(self._waiting_id)):
            # A slow server must get time to answer: a new attempt makes the answer to the last one worthless.
            self.state, self._retry_at_ns = ClientState.GREETING, now_ns + self._retry_interval_ns
            self._retry_interval_ns = min(2 * self._retry_interval_ns, LOST_AFTER_NS)
        else:
            self.state, self._retry_at_ns = ClientState.LOST, now_ns + RETRY_INTERVAL_NS // 10

    def _enter(self, state: ClientState) -> None:
        self.state = state
        self._session_id = self._channel.last_id
        self._retry_interval_ns = RETRY_INTERVAL_NS

    def _keep_alive(self, now_ns: int) -> None:
        if self._channel.unanswered_since_ns is not None and now_ns - self._channel.unanswered_since_ns > LOST_AFTER_NS:
            self._lose("no sign of life")
        elif (
            self._channel.unanswered_since_ns is None
            and now_ns - self._channel.last_heard_ns > HEARTBEAT_INTERVAL_NS
            and not self._channel.send(self._channel.ping(self._channel.new_id()))
        ):
            self._lose("the connection is down")

    def _lose(self, reason: str) -> None:
        if self.state is not ClientState.LOST:
            self.statistics.losses += 1
        self.state = ClientState.LOST
        self._channel.last_error = reason
        self._retry_at_ns, self._retry_interval_ns = self._clock(), RETRY_INTERVAL_NS
        self._channel.unanswered_since_ns = None

    def _give_up(self, reason: str) -> None:
        self.state = ClientState.LOST
        self._channel.last_error = reason
        self._retry_at_ns = self._clock() + REFUSED_INTERVAL_NS

    def _call(self, make: Callable[[int], Message], deadline_ns: int) -> AnyMessage:
        return self._channel.call(make, deadline_ns, self._drop)

    def _refuse(self, reply: AnyMessage) -> NoReturn:
        if not isinstance(reply, Error):
            self.statistics.bad_replies += 1
            raise ProtocolError(f"the server answered a handshake with {type(reply).__name__}")
        self.statistics.error_replies += 1
        self._channel.last_error = f"{reply.text} [{reply.code}]"
        if reply.code == ErrorCode.SPEC_MISMATCH:
            raise SpecMismatchError(reply.text)
        raise ServerRefusedError(reply.code, reply.text)

    def _check_spec(self, message: Welcome) -> None:
        """The server has compared the specs already; a client does not take its word for it."""
        self.spec.require_same(protocol.decode_spec(message.spec_json), "this robot", "the policy server")
