"""The step schema: what every simulated or real transition carries, and `Episode`, the arrays the replay ingests.

Shapes: T steps, O observation size, A action size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import EpisodeError
from mpo_robot.specs import PolicySpec

STEP_SCHEMA_VERSION = 1


class Source(str, Enum):
    """Who chose the action of a step."""

    POLICY = "policy"
    FALLBACK = "fallback"
    HUMAN = "human"


@dataclass(frozen=True)
class StepRecord:
    """One completed transition, self-contained: it holds the observation before and after the action.

    Attributes:
        episode_id: Unique name of the episode.
        step_index: 0-based position in the episode.
        observation: [O] the policy acted on.
        policy_action: [A] normalised action as sampled, before clipping.
        sent_action: [A] normalised form of `applied_command`; what the critic learns from.
        command: [A] physical command of `policy_action`, before safety.
        applied_command: [A] physical command after safety, as the robot reports it.
        action_modified: Safety, a fallback or a human changed the command: importance ratios do not apply.
        behavior_log_prob: Log density in nats of `policy_action` under the policy that sampled it, in normalised
            action space; NaN where none exists (deterministic policy, fallback, human).
        reward: Reward of this step; NaN if it will be computed later, by the reward function of `learn`.
        terminated: The task ended with this step.
        truncated: The episode was cut after this step.
        next_observation: [O] after the action; the final observation on the last step.
        policy_version: Hash of the policy file that acted, empty if none did.
        spec_hash: `PolicySpec.spec_hash` of the robot.
        source: Who chose the action.
        latency_ns: Time from sending the observation to receiving the action.
        deadline_missed: No action arrived by the deadline of this step.
        monotonic_ns: Robot's monotonic clock when the observation was taken.
        wall_time_ns: Wall clock at the same moment.
    """

    episode_id: str
    step_index: int
    observation: npt.NDArray[np.float32]
    policy_action: npt.NDArray[np.float32]
    sent_action: npt.NDArray[np.float32]
    command: npt.NDArray[np.float32]
    applied_command: npt.NDArray[np.float32]
    action_modified: bool
    behavior_log_prob: float
    reward: float
    terminated: bool
    truncated: bool
    next_observation: npt.NDArray[np.float32]
    policy_version: str
    spec_hash: str
    source: Source
    latency_ns: int = 0
    deadline_missed: bool = False
    monotonic_ns: int = 0
    wall_time_ns: int = 0

    @property
    def trace_valid(self) -> bool:
        """The action is the policy's own sample and its density is known, so importance ratios apply."""
        return self.source is Source.POLICY and not self.action_modified and math.isfinite(self.behavior_log_prob)


@dataclass(frozen=True)
class Episode:
    """Consecutive transitions of one episode (or of an unbroken part of one) as arrays.

    Attributes:
        observations: [T + 1, O]; row T is the final observation.
        actions: [T, A] normalised: as sampled where `trace_valid`, else as sent.
        behavior_log_probs: [T] nats; 0 where not `trace_valid`.
        trace_valid: [T] bool; False cuts the Retrace trace (c = 0) at that step.
        rewards: [T].
        terminated: The last step ended the task. Otherwise the episode was truncated after it.
        spec_hash: Interface the data were recorded with.
        episode_id: Name, for messages.
        policy_versions: [T] policy version of each step, or empty for simulated data.
        info: Anything else worth keeping, for example the drawn randomisation.
    """

    observations: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    behavior_log_probs: npt.NDArray[np.float32]
    trace_valid: npt.NDArray[np.bool_]
    rewards: npt.NDArray[np.float32]
    terminated: bool
    spec_hash: str
    episode_id: str = ""
    policy_versions: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict[str, Any])

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def undiscounted_return(self) -> float:
        """Sum of rewards."""
        return float(self.rewards.sum(dtype=np.float64))

    def validate(self, spec: PolicySpec, first_step: int = 0) -> None:
        """Check shapes, finiteness and the spec hash; `first_step` is the number of the first step, for messages.

        Raises:
            EpisodeError: what is wrong, with the episode's name and the step.
        """
        steps, name = len(self), self.episode_id or "episode"
        if self.spec_hash != spec.spec_hash:
            raise EpisodeError(f"{name}: recorded with spec {self.spec_hash[:12]}, expected {spec.spec_hash[:12]}")
        if steps == 0:
            raise EpisodeError(f"{name}: holds no steps")
        expected = {
            "observations": (steps + 1, spec.observation_size),
            "actions": (steps, spec.action_size),
            "behavior_log_probs": (steps,),
            "trace_valid": (steps,),
            "rewards": (steps,),
        }
        for label, shape in expected.items():
            array = getattr(self, label)
            if array.shape != shape:
                raise EpisodeError(f"{name}: {label} has shape {array.shape}, expected {shape}")
            finite = np.isfinite(array.astype(np.float64)).reshape(len(array), -1).all(axis=1)
            if not finite.all():
                raise EpisodeError(
                    f"{name}: {label} holds NaN or infinity at step {first_step + int(np.argmin(finite))}"
                )


def episodes_from_records(records: Sequence[StepRecord], spec: PolicySpec) -> list[Episode]:
    """Turn the records of one log, in file order, into validated episodes.

    Each part holds transitions that really followed each other. A new one starts where `step_index` does not grow by
    one, where the observation is not, bit for bit, the `next_observation` of the step before, and behind a step
    without a reward, which is left out. A part that does not end in `terminated` counts as truncated and bootstraps
    from its last `next_observation`.

    Raises:
        EpisodeError: spec hash, shape, finiteness or order is wrong; steps after `terminated`.
    """
    parts: list[list[StepRecord]] = []
    previous: StepRecord | None = None
    for record in records:
        continues = previous is not None and _follows(record, previous)
        if math.isnan(record.reward):
            previous = record
            continue
        # A part can only go on behind its own last step: one without a reward may have come between.
        if continues and parts and parts[-1][-1] is previous:
            parts[-1].append(record)
        else:
            parts.append([record])
        previous = record
    episodes = [_episode_from_part(part, spec) for part in parts]
    for episode, part in zip(episodes, parts):
        episode.validate(spec, part[0].step_index)
    return episodes


def unbroken_runs(records: Sequence[StepRecord]) -> list[list[StepRecord]]:
    """Records of a log, in file order, split wherever one does not go on from where the one before it ended.

    Raises:
        EpisodeError: order is wrong; steps after `terminated`.
    """
    runs: list[list[StepRecord]] = []
    for record in records:
        if runs and _follows(record, runs[-1][-1]):
            runs[-1].append(record)
        else:
            runs.append([record])
    return runs


def _follows(record: StepRecord, previous: StepRecord) -> bool:
    """Whether a record goes on from the state that the one before it ended in.

    Raises:
        EpisodeError: it cannot come behind it.
    """
    if record.episode_id != previous.episode_id:
        return False
    if record.step_index <= previous.step_index:
        raise EpisodeError(
            f"{record.episode_id}: step {record.step_index} follows step {previous.step_index}: "
            "records are out of order or repeated"
        )
    if previous.terminated:
        raise EpisodeError(f"{record.episode_id}: step {record.step_index} follows a terminated step")
    same_state = record.observation.tobytes() == previous.next_observation.tobytes()
    return record.step_index == previous.step_index + 1 and not previous.truncated and same_state


def _episode_from_part(part: list[StepRecord], spec: PolicySpec) -> Episode:
    name = part[0].episode_id
    for record in part:
        check_record(record, spec)
    valid = np.array([record.trace_valid for record in part], np.bool_)
    return Episode(
        observations=np.stack([record.observation for record in part] + [part[-1].next_observation]),
        actions=np.stack(
            [record.policy_action if ok else record.sent_action for record, ok in zip(part, valid)]
        ).astype(np.float32),
        behavior_log_probs=np.array(
            [record.behavior_log_prob if ok else 0.0 for record, ok in zip(part, valid)], np.float32
        ),
        trace_valid=valid,
        rewards=np.array([record.reward for record in part], np.float32),
        terminated=part[-1].terminated,
        spec_hash=spec.spec_hash,
        episode_id=name,
        policy_versions=tuple(record.policy_version for record in part),
    )


def check_record(record: StepRecord, spec: PolicySpec) -> None:
    """Check the shapes and the spec hash of one step.

    Raises:
        EpisodeError: what is wrong, with the episode's name and the step.
    """
    where = f"{record.episode_id}: step {record.step_index}"
    for label, size in (
        ("observation", spec.observation_size),
        ("next_observation", spec.observation_size),
        ("policy_action", spec.action_size),
        ("sent_action", spec.action_size),
        ("applied_command", spec.action_size),
    ):
        shape = getattr(record, label).shape
        if shape != (size,):
            raise EpisodeError(f"{where}: {label} has shape {shape}, expected ({size},)")
    if record.spec_hash != spec.spec_hash:
        raise EpisodeError(f"{where} was recorded with spec {record.spec_hash[:12]}, expected {spec.spec_hash[:12]}")
