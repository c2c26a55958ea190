"""`ClientChannel`: numbered messages between a robot and its policy server. Knows the wire, nothing of sessions."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy import protocol
from deploy.client_types import ClientStatistics, EpisodeOutcome, ServerTimeoutError
from deploy.link import ClientLink
from deploy.protocol import ActRequest, AnyMessage, BeginEpisode, EndEpisode, Hello, Message, Ping
from deploy.security import ClientSecurity
from mpo_robot.errors import ProtocolError
from mpo_robot.specs import PolicySpec

RESEND_NS = 1_000_000_000  # a blocking call repeats its request after this


class ClientChannel:
    """Sends and receives messages, numbers them and counts what goes wrong.

    Attributes:
        endpoint: Where the server is.
        statistics: Counters, shared with the client.
        last_error: What was wrong with the last bad message or refused request; empty if none was.
        last_id: Number of the newest request.
        last_heard_ns: When the last whole message came.
        unanswered_since_ns: When the oldest request was sent to which nothing has come since; None if there is none.
    """

    def __init__(
        self,
        endpoint: str,
        spec: PolicySpec,
        security: ClientSecurity | None,
        clock: Callable[[], int],
        spin_ns: int = 0,
    ) -> None:
        """Prepare the socket; raises ConfigError like `ClientLink`."""
        self.endpoint = endpoint
        self.statistics = ClientStatistics()
        self.last_error = ""
        # Ids start at a random point: a reply to an earlier life's request never fits.
        self.last_id = secrets.randbits(40) + 1
        self.last_heard_ns = clock()
        self.unanswered_since_ns: int | None = None
        self._clock = clock
        self._spec_hash, self._spec_json = spec.spec_hash, protocol.encode_spec(spec)
        self._client_id = secrets.token_hex(16)
        self._link = ClientLink(endpoint, security, clock, spin_ns)

    def new_id(self) -> int:
        """Number for the next request."""
        self.last_id += 1
        return self.last_id

    def send(self, message: Message) -> bool:
        """Hand a message to the socket; False, at once, if it takes none now."""
        if not self._link.send(message):
            self.statistics.send_failures += 1
            return False
        if self.unanswered_since_ns is None:
            self.unanswered_since_ns = self._clock()
        return True

    def receive(self, deadline_ns: int = 0) -> bytes | None:
        """The next frame, or None if none has come by the absolute `deadline_ns`."""
        return self._link.receive(deadline_ns)

    def decode(self, frame: bytes) -> AnyMessage | None:
        """The message in a frame; None, counted, if it is not one."""
        try:
            message = protocol.decode(frame)
        except ProtocolError as error:
            self.statistics.bad_replies += 1
            self.last_error = str(error)
            return None
        self.last_heard_ns = self._clock()
        self.unanswered_since_ns = None
        return message

    def call(
        self, make: Callable[[int], Message], deadline_ns: int, on_other: Callable[[AnyMessage], None]
    ) -> AnyMessage:
        """Send a request and wait for its answer, repeating it if none comes.

        Args:
            make: Gives the request with the number it gets.
            deadline_ns: Absolute.
            on_other: Called with messages that answer something else.

        Raises:
            ServerTimeoutError: no answer by the deadline.
        """
        while (now_ns := self._clock()) < deadline_ns:
            number = self.new_id()
            if not self.send(make(number)):
                self._link.wait_writable(deadline_ns)
                continue
            until_ns = min(deadline_ns, now_ns + RESEND_NS)
            while (frame := self._link.receive(until_ns)) is not None:
                message = self.decode(frame)
                if message is not None and message.request_id == number:
                    return message
                if message is not None:
                    on_other(message)
                if self._clock() >= until_ns:
                    break
        keys = "are the keys right" if self._link.secure else "does it want keys (server.secret_key, server.server_key)"
        raise ServerTimeoutError(
            f"no answer from a policy server at {self.endpoint}: is `mpo-robot serve` running there, and {keys}?"
        )

    def hello(self, number: int) -> Message:
        """The greeting that opens a session."""
        return Hello(**self._header(number), client_id=self._client_id, spec_json=self._spec_json)

    def begin(self, number: int, episode_id: str, step_index: int = 0, resume: str | None = None) -> Message:
        """The beginning of an episode, or its resumption with policy version `resume`."""
        return BeginEpisode(
            **self._header(number), episode_id=episode_id, step_index=step_index, resume_policy_version=resume
        )

    def act(self, number: int, step_index: int, observation: npt.NDArray[np.float32]) -> Message:
        """The request for an action for an observation [O]."""
        return ActRequest(**self._header(number), step_index=step_index, observation=protocol.encode_array(observation))

    def end(self, number: int, episode_id: str, outcome: EpisodeOutcome) -> Message:
        """The report of an episode's end."""
        total = outcome.undiscounted_return
        return EndEpisode(
            **self._header(number),
            episode_id=episode_id,
            steps=outcome.steps,
            undiscounted_return=total if math.isfinite(total) else None,
            misses=outcome.misses,
            fault=outcome.fault,
            reason=outcome.reason[:256],
        )

    def ping(self, number: int) -> Message:
        """The request for a sign of life."""
        return Ping(**self._header(number))

    def close(self) -> None:
        """Close the socket at once; what is queued is dropped. May be called twice."""
        self._link.close()

    def _header(self, number: int) -> dict[str, Any]:
        return protocol.header(self._spec_hash, number, self._clock())
