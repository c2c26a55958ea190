"""How episodes ended, per policy version: what trials and guards are decided on."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.durable import ends_with_newline

_ROTATE_BYTES = 16 << 20
REMEMBERED = 1000  # newest outcomes per version


@dataclass(frozen=True)
class Outcome:
    """One finished episode, as its robot reported it.

    Attributes:
        policy_version: Version that was pinned for it, as the server knows.
        under: Audit hash of the registry's state in which it began; empty if it was resumed after a lost connection.
        episode_id: Its name.
        steps: Its length.
        undiscounted_return: Sum of the rewards; None if unknown.
        misses: Steps without an action in time.
        fault: Whether a fault ended it.
        reason: Why it ended.
    """

    policy_version: str
    under: str
    episode_id: str
    steps: int
    undiscounted_return: float | None
    misses: int
    fault: bool
    reason: str


@dataclass(frozen=True)
class VersionStatistics:
    """Outcomes of one version together.

    Attributes:
        episodes: How many.
        returns: How many of them know their return.
        mean_return: NaN if none does.
        return_error: Standard error of the mean; infinite below two.
        fault_rate: Share of the episodes that a fault ended; NaN without episodes.
        miss_rate: Share of all steps without an action in time; NaN without steps.
    """

    episodes: int
    returns: int
    mean_return: float
    return_error: float
    fault_rate: float
    miss_rate: float


def parse_outcome(line: str | bytes) -> Outcome | None:
    """The outcome in a line of `outcomes.jsonl`; None if a crash cut the line off."""
    try:
        data: Any = json.loads(line)
        return Outcome(**{name: data[name] for name in Outcome.__dataclass_fields__})
    except (ValueError, TypeError, KeyError):
        return None


def summarize(outcomes: Sequence[Outcome]) -> VersionStatistics:
    """Statistics of some outcomes."""
    returns = [item.undiscounted_return for item in outcomes if item.undiscounted_return is not None]
    mean = math.fsum(returns) / len(returns) if returns else math.nan
    error = math.inf
    if len(returns) > 1:
        variance = math.fsum((value - mean) ** 2 for value in returns) / (len(returns) - 1)
        error = math.sqrt(variance / len(returns))
    steps = sum(item.steps for item in outcomes)
    return VersionStatistics(
        episodes=len(outcomes),
        returns=len(returns),
        mean_return=mean,
        return_error=error,
        fault_rate=sum(item.fault for item in outcomes) / len(outcomes) if outcomes else math.nan,
        miss_rate=sum(item.misses for item in outcomes) / steps if steps else math.nan,
    )


class OutcomeLog:
    """`outcomes.jsonl` of a registry, with the newest outcomes of every version in memory. One thread.

    Not synced: an outcome lost in a power cut costs one episode of evidence. A full file moves to `outcomes.1.jsonl`.

    Args:
        directory: The registry's.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "outcomes.jsonl"
        self._outcomes: defaultdict[str, deque[Outcome]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        for path in (self._old_path, self.path):
            for outcome in _read(path):
                self._outcomes[outcome.policy_version].append(outcome)

    def append(self, outcome: Outcome) -> None:
        """Remember an outcome and write it down; raises OSError if that fails, remembered all the same."""
        self._outcomes[outcome.policy_version].append(outcome)
        line = json.dumps({"wall_time_ns": time.time_ns(), **asdict(outcome)}, allow_nan=False) + "\n"
        if self.path.exists():
            if self.path.stat().st_size > _ROTATE_BYTES:
                os.replace(self.path, self._old_path)
            elif not ends_with_newline(self.path):
                line = "\n" + line  # a line cut off by a crash must not swallow this one
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line)

    def of(self, version: str) -> list[Outcome]:
        """Newest outcomes of a version, oldest first."""
        return list(self._outcomes.get(version, ()))

    def versions(self) -> list[str]:
        """Versions that have outcomes."""
        return list(self._outcomes)

    @property
    def _old_path(self) -> Path:
        return self.path.with_name("outcomes.1.jsonl")


def _read(path: Path) -> Iterable[Outcome]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        outcome = parse_outcome(line)
        if outcome is not None:
            yield outcome
