"""What the control loop counts and times, per episode: for the log's metadata and for a small table."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TIMED = ("jitter", "latency", "work")


def _nanoseconds() -> array[int]:
    return array("q")


@dataclass
class LoopStatistics:
    """Counters of one or more episodes.

    Attributes:
        control_dt: Period in seconds.
        steps: Commands sent.
        jitter: Start of each tick after its scheduled time, ns.
        latency: Time to get each action, ns, whether from the server or from this process.
        work: Start of each tick to its command having been sent, ns.
        deadline_misses: Periods in which no action had come by the deadline.
        rejected_actions: Actions that were refused because they were not finite.
        overruns: Ticks that were so late that at least one whole period was skipped.
        skipped_periods: How many periods those skipped.
        modified: Commands that safety, a fallback or the robot changed.
        fallbacks: Periods spent on each rung of the ladder, by name.
        faults: Failed observation checks and violated limits, by name.
        invalid_steps: Steps kept out of the learner's reach because a reading was unfit.
        log_dropped: Steps the log writer could not take or write.
    """

    control_dt: float
    steps: int = 0
    jitter: array[int] = field(default_factory=_nanoseconds)
    latency: array[int] = field(default_factory=_nanoseconds)
    work: array[int] = field(default_factory=_nanoseconds)
    deadline_misses: int = 0
    rejected_actions: int = 0
    overruns: int = 0
    skipped_periods: int = 0
    modified: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    invalid_steps: int = 0
    log_dropped: int = 0

    def summary(self) -> dict[str, Any]:
        """JSON-ready numbers; times as `<name>_us: {p50, p99, max}`, absent where nothing was timed."""
        result: dict[str, Any] = {"control_dt": self.control_dt, "steps": self.steps}
        for name in TIMED:
            values = np.frombuffer(getattr(self, name), np.int64) if getattr(self, name) else None
            if values is not None:
                p50, p99 = np.percentile(values, (50, 99)) / 1e3
                result[f"{name}_us"] = {
                    "p50": round(float(p50), 1),
                    "p99": round(float(p99), 1),
                    "max": round(int(values.max()) / 1e3, 1),
                }
        for name in _COUNTERS:
            result[name] = getattr(self, name)
        result["fallbacks"], result["faults"] = dict(self.fallbacks), dict(self.faults)
        return result


_COUNTERS = (
    "deadline_misses",
    "rejected_actions",
    "overruns",
    "skipped_periods",
    "modified",
    "invalid_steps",
    "log_dropped",
)


def merge(parts: Iterable[LoopStatistics], control_dt: float) -> LoopStatistics:
    """Statistics of several episodes taken together."""
    total = LoopStatistics(control_dt)
    for part in parts:
        for name in TIMED:
            getattr(total, name).extend(getattr(part, name))
        for name in ("steps", *_COUNTERS):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        total.fallbacks.update(part.fallbacks)
        total.faults.update(part.faults)
    return total


def table(statistics: LoopStatistics) -> str:
    """The statistics as a few aligned lines of text."""
    summary = statistics.summary()
    lines = [f"{'':16}{'p50':>10}{'p99':>10}{'max':>10}"]
    for name in TIMED:
        times = summary.get(f"{name}_us")
        if times:
            lines.append(f"{name + ' [us]':16}{times['p50']:>10.1f}{times['p99']:>10.1f}{times['max']:>10.1f}")
    lines.append(
        f"steps {statistics.steps}, deadline misses {statistics.deadline_misses}, overruns {statistics.overruns} "
        f"({statistics.skipped_periods} periods skipped), commands modified {statistics.modified}"
    )
    for label, counter in (("fallback periods", statistics.fallbacks), ("faults", statistics.faults)):
        if counter:
            lines.append(f"{label}: " + ", ".join(f"{name} {count}" for name, count in sorted(counter.items())))
    for label, count in (
        ("actions rejected (not finite)", statistics.rejected_actions),
        ("steps kept apart (unfit reading)", statistics.invalid_steps),
        ("steps NOT logged", statistics.log_dropped),
    ):
        if count:
            lines.append(f"{label}: {count}")
    return "\n".join(lines)
