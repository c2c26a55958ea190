"""What `PolicyClient` returns, counts and raises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.protocol import ActReply, decode_array
from mpo_robot.errors import MpoRobotError, ProtocolError
from mpo_robot.specs import PolicySpec


class ServerTimeoutError(MpoRobotError):
    """The policy server did not answer in the time given."""


class ServerRefusedError(MpoRobotError):
    """The policy server answered with an error; `code` is one of `protocol.ErrorCode`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"policy server refused: {text} [{code}]")
        self.code = code


class ActionReply(NamedTuple):
    """One action from the server, checked.

    Attributes:
        action: float32 [A] normalised, as sampled, not clipped.
        log_prob: Log density of `action` in nats; NaN where none exists.
        policy_version: Version that acted.
        round_trip_ns: From just before sending to just after receiving, on this side's clock.
        server_ns: Time the request spent in the server, on the server's clock.
        inference_ns: Part of `server_ns` spent in the policy.
    """

    action: npt.NDArray[np.float32]
    log_prob: float
    policy_version: str
    round_trip_ns: int
    server_ns: int
    inference_ns: int


class EpisodeOutcome(NamedTuple):
    """How an episode ended, for the server's statistics of its policies.

    Attributes:
        steps: Its length.
        undiscounted_return: Sum of the rewards; NaN if unknown.
        misses: Steps without an action in time.
        fault: Whether a fault ended it.
        reason: Why it ended.
    """

    steps: int
    undiscounted_return: float
    misses: int
    fault: bool
    reason: str


@dataclass
class ClientStatistics:
    """Counters since the client was made.

    Attributes:
        requests: Observations sent.
        replies: Good actions received in time.
        deadline_misses: Requests without a good action by their deadline.
        stale_replies: Late, duplicate or unasked replies that were dropped.
        bad_replies: Frames that could not be decoded, or replies with a wrong size, version or a non-finite value.
        error_replies: Error messages received.
        send_failures: Messages that could not be sent (no connection, or its queue is full).
        not_ready: Calls of `act` while there was no session with an episode.
        bad_observations: Observations with NaN or infinity, which are never sent.
        losses: Times a session was found lost.
        reconnects: Times a lost session was picked up again by `reconnect_if_needed`.
    """

    requests: int = 0
    replies: int = 0
    deadline_misses: int = 0
    stale_replies: int = 0
    bad_replies: int = 0
    error_replies: int = 0
    send_failures: int = 0
    not_ready: int = 0
    bad_observations: int = 0
    losses: int = 0
    reconnects: int = 0


class ClientState(str, Enum):
    """Where the client stands with the server."""

    LOST = "lost"  # no session: handshake wanted
    GREETING = "greeting"  # Hello sent
    CONNECTED = "connected"  # session, no episode
    RESUMING = "resuming"  # BeginEpisode sent to pick up a running episode again
    READY = "ready"  # session with an episode: `act` works


def read_action(
    message: ActReply, spec: PolicySpec, step_index: int, policy_version: str, round_trip_ns: int
) -> ActionReply:
    """The action in a reply, checked against what was asked for.

    Raises:
        ProtocolError: a wrong size, a value that is not finite, another spec or step, or a policy version that was
            not pinned for the episode.
    """
    action = decode_array(message.action, spec.action_size, "action")
    if message.log_prob is not None and not math.isfinite(message.log_prob):
        raise ProtocolError("log_prob is not finite")
    if message.spec_hash != spec.spec_hash or message.step_index != step_index:
        raise ProtocolError("the action is for another spec or step")
    if message.policy_version != policy_version:
        raise ProtocolError("the action is from a policy that was not pinned for this episode")
    return ActionReply(
        action=action,
        log_prob=math.nan if message.log_prob is None else message.log_prob,
        policy_version=message.policy_version,
        round_trip_ns=round_trip_ns,
        server_ns=max(0, message.sent_ns - message.received_ns),
        inference_ns=message.inference_ns,
    )
