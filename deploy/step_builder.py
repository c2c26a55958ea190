"""From decisions to log records: a step is known only when the reading after it has come."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.action_source import Action
from deploy.robot import Measurement
from mpo_robot.episode import Source, StepRecord
from mpo_robot.specs import PolicySpec

FloatArray = npt.NDArray[np.float32]


class Decision(NamedTuple):
    """What was decided in one period, before safety.

    Attributes:
        command: [A] physical command asked for.
        action: The policy's action behind it, None for a fallback.
        latency_ns: Time it took to get the action, or to give up.
        deadline_missed: No action had come by the deadline.
    """

    command: FloatArray
    action: Action | None
    latency_ns: int
    deadline_missed: bool


class OpenStep(NamedTuple):
    """A step whose outcome is not known yet.

    Attributes:
        index: 0-based position in the episode.
        observation: [O] acted on.
        monotonic_ns: When that was read.
        usable: That reading passed the observation checks.
        decision: What was decided.
        applied: [A] command as the robot reports it.
        modified: Safety, a fallback or the robot changed the policy's command.
    """

    index: int
    observation: FloatArray
    monotonic_ns: int
    usable: bool
    decision: Decision
    applied: FloatArray
    modified: bool


class StepBuilder:
    """Makes the records of one episode.

    Args:
        spec: Interface of the robot.
        episode_id: Goes into every record.
        wall_offset_ns: Wall time minus the robot's monotonic time at the start. One offset for the whole episode: a
            clock correction must not make log times jump.
    """

    def __init__(self, spec: PolicySpec, episode_id: str, wall_offset_ns: int) -> None:
        self._spec = spec
        self._episode_id = episode_id
        self._wall_offset_ns = wall_offset_ns

    def complete(self, step: OpenStep, measurement: Measurement, truncated: bool) -> StepRecord:
        """Record of a step that ended with `measurement`; `truncated` says whether the episode was cut after it."""
        decision, action = step.decision, step.decision.action
        return StepRecord(
            episode_id=self._episode_id,
            step_index=step.index,
            observation=step.observation,
            policy_action=self._spec.to_action(decision.command) if action is None else action.action,
            sent_action=self._spec.to_action(step.applied),
            command=decision.command,
            applied_command=step.applied,
            action_modified=step.modified,
            behavior_log_prob=math.nan if action is None else float(action.log_prob),
            reward=float(measurement.reward),
            terminated=bool(measurement.terminated),
            truncated=truncated and not measurement.terminated,
            next_observation=measurement.observation,
            policy_version="" if action is None else action.policy_version,
            spec_hash=self._spec.spec_hash,
            source=Source.FALLBACK if action is None else Source.POLICY,
            latency_ns=decision.latency_ns,
            deadline_missed=decision.deadline_missed,
            monotonic_ns=step.monotonic_ns,
            wall_time_ns=step.monotonic_ns + self._wall_offset_ns,
        )
