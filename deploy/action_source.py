"""Where actions come from: a policy server, or the policy file in this process. One interface for the control loop."""

from __future__ import annotations

import contextlib
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from deploy.client import ClientState, EpisodeOutcome, PolicyClient
from deploy.onnx_policy import OnnxPolicy, PolicyError
from deploy.timing import Clock

FloatArray = npt.NDArray[np.float32]
_POLL_NS = 2_000_000
_REPORT_TIMEOUT_S = 1.0


class Action(NamedTuple):
    """A normalised action [A] as sampled, its log density in nats (NaN if none) and the version that chose it."""

    action: FloatArray
    log_prob: float
    policy_version: str


class ActionSource(Protocol):
    """Something that acts. Used by the thread of the control loop."""

    @property
    def last_error(self) -> str:
        """Why there was no action lately, for people; empty if nothing is known."""
        ...

    @property
    def miss_cause(self) -> str:
        """One word for why the last `act` gave None, for the statistics (docs/safety.md)."""
        ...

    def begin_episode(self, episode_id: str) -> str:
        """Get ready for an episode; returns the policy version that will act. May block, may raise MpoRobotError.

        The policy has been asked once when this returns, so that the first real action is as fast as any other.
        """
        ...

    def act(self, observation: FloatArray, step_index: int, deadline_ns: int) -> Action | None:
        """Action for an observation [O]; None if there is none by the deadline. Never raises for a bad policy."""
        ...

    def maintain(self) -> None:
        """Called once per period after the command was sent: keep or regain the connection. Never blocks."""
        ...

    def end_episode(self, outcome: EpisodeOutcome) -> None:
        """Take note of how the episode ended. May block for a second, never raises; the robot stands still."""
        ...

    def close(self) -> None:
        """Release everything. May be called twice."""
        ...


class LocalSource:
    """Acts with a policy file in this process.

    Args:
        policy: The loaded file.
        stochastic: Sample, and log the density; otherwise act with the mean.
        seed: Of the sampling.

    Raises:
        PolicyError: stochastic, and the policy has no density.
    """

    def __init__(self, policy: OnnxPolicy, stochastic: bool, seed: int | None = None) -> None:
        policy.require_mode(stochastic)
        self._policy = policy
        self._stochastic = stochastic
        self._rng = np.random.default_rng(seed)
        self.last_error = ""
        self.miss_cause = "bad_policy"

    def begin_episode(self, episode_id: str) -> str:
        """The file's version, after a first inference that is thrown away (it draws no random numbers)."""
        with contextlib.suppress(PolicyError):  # it will say so again when it matters
            self._policy.act(np.zeros(self._policy.spec.observation_size, np.float32), stochastic=False)
        return self._policy.policy_version

    def act(self, observation: FloatArray, step_index: int, deadline_ns: int) -> Action | None:
        """Action of the file; inference takes well under a period, so the deadline is not looked at."""
        try:
            result = self._policy.act(observation, self._stochastic, self._rng)
        except PolicyError as error:
            self.last_error = str(error)
            return None
        return Action(result.action, result.log_prob, self._policy.policy_version)

    def maintain(self) -> None:
        """Nothing to do."""

    def end_episode(self, outcome: EpisodeOutcome) -> None:
        """Nothing to do: there is no other version to compare with."""

    def close(self) -> None:
        """Nothing to do."""


class ServerSource:
    """Acts through a policy server.

    Args:
        client: Not yet connected, or connected.
        timeout_s: For the handshake at the start of an episode.
        clock: Of the deadlines.
        patient: Wait for a lost server until the deadline instead of giving up at once. For simulated robots whose
            time stands still meanwhile.
    """

    def __init__(self, client: PolicyClient, timeout_s: float, clock: Clock, patient: bool = False) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._clock = clock
        self._patient = patient
        self._before = (0, 0)

    @property
    def last_error(self) -> str:
        """What the client ran into last."""
        return self._client.last_error

    @property
    def miss_cause(self) -> str:
        """`bad_reply`, `error_reply`, `disconnected`, or `no_reply` by the deadline."""
        statistics = self._client.statistics
        if statistics.bad_replies > self._before[0]:
            return "bad_reply"
        if statistics.error_replies > self._before[1]:
            return "error_reply"
        return "no_reply" if self._client.state is ClientState.READY else "disconnected"

    def begin_episode(self, episode_id: str) -> str:
        """Handshake; the server pins its policy for this episode and runs it once for an answer that is dropped."""
        version = self._client.begin_episode(episode_id, self._timeout_s)
        zeros = np.zeros(self._client.spec.observation_size, np.float32)
        self._client.act(zeros, 0, self._clock.monotonic_ns() + int(self._timeout_s * 1e9))
        return version

    def act(self, observation: FloatArray, step_index: int, deadline_ns: int) -> Action | None:
        """Action of the server, waiting no longer than the deadline."""
        self._before = (self._client.statistics.bad_replies, self._client.statistics.error_replies)
        reply = self._client.act(observation, step_index, deadline_ns)
        while reply is None and self._patient and self._clock.monotonic_ns() < deadline_ns:
            self._clock.sleep_until(min(self._clock.monotonic_ns() + _POLL_NS, deadline_ns))
            if self._client.reconnect_if_needed():
                reply = self._client.act(observation, step_index, deadline_ns)
        if reply is None:
            return None
        return Action(reply.action, reply.log_prob, reply.policy_version)

    def maintain(self) -> None:
        """Answer heartbeats, or try to get a lost server back."""
        self._client.reconnect_if_needed()

    def end_episode(self, outcome: EpisodeOutcome) -> None:
        """Report to the server, for its trials and its guard; a lost server is not waited for."""
        self._client.end_episode(outcome, _REPORT_TIMEOUT_S)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
