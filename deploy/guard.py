"""`PolicyGuard`: takes a version back when its episodes are worse than those of the version before it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.outcomes import REMEMBERED, Outcome, OutcomeLog, summarize
from deploy.registry import PolicyRegistry
from mpo_robot.errors import ConfigError, MpoRobotError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GuardConfig:
    """When a new version is taken back without anybody asking. Compared with the version before it, or, for the
    candidate of a trial, with the one in force.

    Attributes:
        episodes: Of its first so many episodes the new version is judged, at most 999; 0 turns the guard off.
        return_drop: Mean return lower by more than this share of the other's magnitude ...
        return_errors: ... and by more than this many standard errors of the difference.
        fault_rise: Share of episodes ended by a fault higher by more than this.
        miss_rise: Share of steps without an action in time higher by more than this.
    """

    episodes: int = 0
    return_drop: float = 0.2
    return_errors: float = 2.0
    fault_rise: float = 0.2
    miss_rise: float = 0.02

    def __post_init__(self) -> None:
        if self.episodes < 0:
            raise ConfigError(f"guard.episodes must not be negative, got {self.episodes}; 0 turns the guard off")
        if self.episodes >= REMEMBERED:  # the first of them would be forgotten, and it never be seen to have passed
            raise ConfigError(f"guard.episodes must be less than {REMEMBERED}, got {self.episodes}")
        for name in ("return_drop", "return_errors", "fault_rise", "miss_rise"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"guard.{name} must not be negative, got {getattr(self, name)}")


def judge(new: Sequence[Outcome], old: Sequence[Outcome], config: GuardConfig) -> str:
    """Why the new version has to go; empty if it may stay.

    Faults are judged as soon as even faultless episodes could not save it; return and misses after all episodes. A
    version without a reference is judged by its faults alone, against none.

    Args:
        new: Its first episodes, at most `config.episodes` of them count.
        old: Of the version before; the last `config.episodes` count.
        config: Thresholds.
    """
    new, old = new[: config.episodes], old[-config.episodes :] if config.episodes else ()
    if not new:
        return ""
    ours, theirs = summarize(new), summarize(old)
    faults, reference = sum(item.fault for item in new), theirs.fault_rate if old else 0.0
    if _exceeds(faults / config.episodes, reference + config.fault_rise):
        return f"{faults} of {len(new)} episodes ended in a fault, {reference:.0%} before"
    if len(new) < config.episodes or not old:
        return ""
    drop = theirs.mean_return - ours.mean_return
    margin = config.return_drop * abs(theirs.mean_return)
    noise = config.return_errors * math.hypot(ours.return_error, theirs.return_error)
    if _exceeds(drop, margin) and _exceeds(drop, noise):
        return f"mean return {ours.mean_return:.6g}, {theirs.mean_return:.6g} before"
    if _exceeds(ours.miss_rate, theirs.miss_rate + config.miss_rise):
        return f"{ours.miss_rate:.1%} of steps without an action in time, {theirs.miss_rate:.1%} before"
    return ""


def _exceeds(value: float, limit: float) -> bool:
    """Whether it is more than the limit, and not by rounding: 0.9 is not more than 0.7 + 0.2."""
    return value > limit and not math.isclose(value, limit)


class PolicyGuard:
    """Notes outcomes and acts on them. One thread.

    Args:
        registry: Where versions are taken back.
        config: Thresholds.
    """

    def __init__(self, registry: PolicyRegistry, config: GuardConfig) -> None:
        self.outcomes = OutcomeLog(registry.directory)
        self._registry = registry
        self._config = config

    def note(self, outcome: Outcome) -> str:
        """Take in an outcome; returns why a version was taken back because of it, or an empty text."""
        try:
            self.outcomes.append(outcome)
        except OSError as error:
            _log.error("outcome of episode %s could not be written: %s", outcome.episode_id, error)
        if self._config.episodes == 0:
            return ""
        try:
            return self._act(outcome)
        except MpoRobotError as error:  # nothing before it, or somebody was faster
            _log.error("guard: %s", error)
            return ""

    def _act(self, outcome: Outcome) -> str:
        pointer = self._registry.pointer()
        version = outcome.policy_version
        in_trial = pointer.trial is not None and pointer.trial.version == version
        if outcome.under != pointer.audit or not (in_trial or version == pointer.current):
            return ""  # it says nothing about what is in force now
        if not in_trial and len(pointer.versions) < 2:
            return ""
        before = pointer.current if in_trial else pointer.versions[-2]
        new = [item for item in self.outcomes.of(version) if item.under == pointer.audit]
        if len(new) > self._config.episodes:
            return ""  # it has passed
        reason = judge(new, self.outcomes.of(before), self._config)
        if not reason:
            return ""
        if in_trial:
            self._registry.end_trial(promote=False, by="guard", reason=reason, expect=version)
        else:
            self._registry.rollback(by="guard", reason=reason, expect=version)
        _log.warning("guard took back policy %s: %s", version[:12], reason)
        return reason
