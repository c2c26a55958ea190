"""What the control loop counts and times, per episode: for the log's metadata and for a small table.

Nothing here grows with the length of an episode: times go into fixed histograms, the rest are counters by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from deploy.histogram import Histogram
from deploy.robot_state import State, StateMachine

TIMED = ("period", "jitter", "latency", "work")


@dataclass
class LoopStatistics:
    """Counters of one or more episodes.

    Attributes:
        control_dt: Period in seconds.
        steps: Policy periods in which a command was sent.
        commands: Motor commands sent; more than `steps` if `loop.command_rate` is above the policy's rate.
        skipped_commands: Motor commands of a period left out because their time had passed.
        period: Start of each tick after the start of the tick before, ns.
        jitter: Start of each tick after its scheduled time, ns.
        latency: Time to get each action, ns, whether from the server or from this process.
        work: Start of each tick to its (first) command having been sent, ns.
        deadline_misses: Periods in which no action had come by the deadline.
        misses: Periods without a usable action of the policy, by cause (docs/safety.md).
        rejected_actions: Actions that were refused because they were not finite.
        overruns: Ticks that were so late that at least one whole period was skipped.
        skipped_periods: How many periods those skipped.
        modified: Commands that safety, a fallback or the robot changed.
        fallbacks: Periods spent on each rung of the ladder, by name.
        faults: Failed observation checks and violated limits, by name.
        invalid_steps: Steps kept out of the learner's reach because a reading was unfit.
        log_dropped: Steps the log writer could not take or write.
        state: Of the robot, at the end.
        entered: How often each state of the robot was entered.
        transitions: The last changes of state: `{monotonic_ns, before, event, after}`.
    """

    control_dt: float
    steps: int = 0
    commands: int = 0
    skipped_commands: int = 0
    period: Histogram = field(default_factory=Histogram)
    jitter: Histogram = field(default_factory=Histogram)
    latency: Histogram = field(default_factory=Histogram)
    work: Histogram = field(default_factory=Histogram)
    deadline_misses: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    rejected_actions: int = 0
    overruns: int = 0
    skipped_periods: int = 0
    modified: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    invalid_steps: int = 0
    log_dropped: int = 0
    state: State | None = None
    entered: Counter[str] = field(default_factory=Counter)
    transitions: list[dict[str, Any]] = field(default_factory=list)

    def record_states(self, machine: StateMachine) -> None:
        """Take over where the robot stands and how it got there."""
        self.state = machine.state
        self.entered = Counter({state.value: count for state, count in machine.entered.items()})
        self.transitions = [
            {
                "monotonic_ns": change.monotonic_ns,
                "before": change.before.value,
                "event": change.event.value,
                "after": change.after.value,
            }
            for change in machine.changes
        ]

    def summary(self) -> dict[str, Any]:
        """JSON-ready numbers.

        Times are `<name>_us: {p50, p99, max}`, off by less than 1.6 % (the maximum is exact), and
        `histograms_us: {name: {upper edge: count}}` with an edge per octave; absent where nothing was timed.
        """
        result: dict[str, Any] = {"control_dt": self.control_dt, "steps": self.steps}
        histograms: dict[str, dict[str, int]] = {}
        for name in TIMED:
            values: Histogram = getattr(self, name)
            if len(values):
                result[f"{name}_us"] = {
                    "p50": round(values.percentile(50) / 1e3, 1),
                    "p99": round(values.percentile(99) / 1e3, 1),
                    "max": round(values.maximum / 1e3, 1),
                }
                histograms[name] = {f"{edge / 1e3:.6g}": count for edge, count in values.octaves().items()}
        for name in _COUNTERS:
            result[name] = getattr(self, name)
        for name in _BY_NAME:
            result[name] = dict(getattr(self, name))
        result["state"] = self.state.value if self.state is not None else None
        result["transitions"] = self.transitions
        result["histograms_us"] = histograms
        return result


_COUNTERS = (
    "commands",
    "skipped_commands",
    "deadline_misses",
    "rejected_actions",
    "overruns",
    "skipped_periods",
    "modified",
    "invalid_steps",
    "log_dropped",
)
_BY_NAME = ("misses", "fallbacks", "faults", "entered")


def merge(parts: Iterable[LoopStatistics], control_dt: float) -> LoopStatistics:
    """Statistics of several episodes taken together; state and transitions are those of the last."""
    total = LoopStatistics(control_dt)
    for part in parts:
        for name in TIMED:
            getattr(total, name).merge(getattr(part, name))
        for name in ("steps", *_COUNTERS):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        for name in _BY_NAME:
            getattr(total, name).update(getattr(part, name))
        total.state, total.transitions = part.state, part.transitions
    return total


def table(statistics: LoopStatistics) -> str:
    """The statistics as a few aligned lines of text."""
    summary = statistics.summary()
    lines = [f"{'':16}{'p50':>10}{'p99':>10}{'max':>10}  share of ticks below [us]"]
    for name in TIMED:
        times = summary.get(f"{name}_us")
        if times:
            numbers = f"{times['p50']:>10.1f}{times['p99']:>10.1f}{times['max']:>10.1f}"
            lines.append(f"{name + ' [us]':16}{numbers}  {_shares(getattr(statistics, name))}")
    lines.append(
        f"steps {statistics.steps}, deadline misses {statistics.deadline_misses}, overruns {statistics.overruns} "
        f"({statistics.skipped_periods} periods skipped), commands modified {statistics.modified}"
    )
    if statistics.commands > statistics.steps:
        lines.append(f"motor commands {statistics.commands}, {statistics.skipped_commands} left out for lack of time")
    for label, counter in (
        ("periods without an action of the policy", statistics.misses),
        ("fallback periods", statistics.fallbacks),
        ("faults", statistics.faults),
    ):
        if counter:
            lines.append(f"{label}: " + ", ".join(f"{name} {count}" for name, count in sorted(counter.items())))
    for label, count in (
        ("actions rejected (not finite)", statistics.rejected_actions),
        ("steps kept apart (unfit reading)", statistics.invalid_steps),
        ("steps NOT logged", statistics.log_dropped),
    ):
        if count:
            lines.append(f"{label}: {count}")
    if statistics.state is not None:
        lines.append(f"robot {statistics.state.value}")
    return "\n".join(lines)


def _shares(values: Histogram) -> str:
    """Cumulative shares at the octaves that matter: from the first above half of the values to the last."""
    below, parts = 0, []
    for edge, count in values.octaves().items():
        below += count
        if 2 * below >= len(values):
            parts.append(f"{edge / 1e3:.3g}: {100 * below / len(values):.4g}%")
    return ", ".join([*parts[:2], "...", *parts[-1:]] if len(parts) > 3 else parts)
