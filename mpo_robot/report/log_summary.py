"""The numbers that tell how one episode log went."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.episode import Source, StepRecord


@dataclass(frozen=True)
class LogSummary:
    """One episode.

    Attributes:
        name: File name, for messages and tables.
        episode_id: Name of the episode.
        control_dt: Policy period in seconds.
        steps: Usable steps in the file.
        invalid_steps: Steps kept apart because a sensor reading was bad.
        gaps: Places where `step_index` jumps.
        end: `terminated`, `truncated`, `unfinished`, or the reason for which the control loop cut the episode, such as
            `estop`.
        complete: The writer closed the file and all of it was read.
        problem: Why not complete; empty otherwise.
        total_reward: Sum of the known rewards.
        unknown_rewards: Steps without a reward.
        sources: Number of steps by who chose the action.
        deadline_misses: Steps in which no action came by the deadline.
        modified: Steps whose command was changed by safety, a fallback or a human.
        trace_steps: Steps with a behavior log-prob that the learner can use for importance ratios.
        latency_us: [K] microseconds from observation sent to action received, of steps in which the policy acted.
        policy_versions: Number of steps by policy version, in order of appearance.
        started_wall_time_ns: Wall clock of the first step, 0 if there is none.
        metadata: What the log says about itself.
    """

    name: str
    episode_id: str
    control_dt: float
    steps: int
    invalid_steps: int
    gaps: int
    end: str
    complete: bool
    problem: str
    total_reward: float
    unknown_rewards: int
    sources: Mapping[str, int]
    deadline_misses: int
    modified: int
    trace_steps: int
    latency_us: npt.NDArray[np.float64]
    policy_versions: Mapping[str, int]
    started_wall_time_ns: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether the episode came to its own end: its return compares with those of others."""
        return self.end in ("terminated", "truncated", "max_steps")

    @property
    def main_policy_version(self) -> str:
        """Version that took most steps, or an empty text."""
        return max(self.policy_versions, key=lambda version: self.policy_versions[version], default="")


def summarize(
    name: str,
    records: Sequence[StepRecord],
    control_dt: float,
    metadata: Mapping[str, Any],
    problem: str = "",
    invalid_steps: int = 0,
) -> LogSummary:
    """Summary of the records of one log, in file order."""
    rewards = [record.reward for record in records]
    known = [reward for reward in rewards if math.isfinite(reward)]
    return LogSummary(
        name=name,
        episode_id=str(metadata.get("episode_id") or (records[0].episode_id if records else "")),
        control_dt=control_dt,
        steps=len(records),
        invalid_steps=invalid_steps,
        gaps=sum(after.step_index != before.step_index + 1 for before, after in itertools.pairwise(records)),
        end=_end(records, metadata),
        complete=not problem,
        problem=problem,
        total_reward=math.fsum(known),
        unknown_rewards=len(rewards) - len(known),
        sources=dict(Counter(record.source.value for record in records)),
        deadline_misses=sum(record.deadline_missed for record in records),
        modified=sum(record.action_modified for record in records),
        trace_steps=sum(record.trace_valid for record in records),
        latency_us=np.array([r.latency_ns / 1e3 for r in records if r.source is Source.POLICY], np.float64),
        policy_versions=dict(Counter(record.policy_version for record in records if record.policy_version)),
        started_wall_time_ns=records[0].wall_time_ns if records else 0,
        metadata=metadata,
    )


def percentiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """`p50`, `p99` and `max`; empty for no values."""
    if not len(values):
        return {}
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "max": float(values.max())}


def _end(records: Sequence[StepRecord], metadata: Mapping[str, Any]) -> str:
    if not records or not (records[-1].terminated or records[-1].truncated):
        return "unfinished"
    if records[-1].terminated:
        return "terminated"
    return str((metadata.get("statistics") or {}).get("end_reason") or "truncated")
