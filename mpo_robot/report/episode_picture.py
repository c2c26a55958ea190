"""One picture of one robot episode: observations, commands, reward, latency, and where things went wrong."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpo_robot.episode import Source, StepRecord
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec

SUFFIXES = (".png", ".svg", ".pdf")
MAX_TERMS = 6  # panels of each vector; the rest is named below the title
MAX_LABELS = 6  # lines of a panel that are named
_MISSED, _FALLBACK, _GAP = "#d62728", "#ff7f0e", "#7f7f7f"


def draw_episode(
    output: Path, records: Sequence[StepRecord], spec: PolicySpec, metadata: Mapping[str, Any], problem: str = ""
) -> None:
    """Draw the steps of an episode, in the order of their numbers, against time.

    Args:
        output: A file name with one of `SUFFIXES`.
        records: Its steps.
        spec: Interface; names and units.
        metadata: Of the log: `episode_id`, `robot`, `statistics`.
        problem: What is wrong with the log, for the title.

    Raises:
        ConfigError: there is no step, or matplotlib is not installed.
        OSError: the file cannot be written.
    """
    if not records:
        raise ConfigError("the log holds no step to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'mpo-robot[report]'") from error
    observations, commands = spec.observation[:MAX_TERMS], spec.command[:MAX_TERMS]
    rows = len(observations) + len(commands) + 2
    figure = Figure(figsize=(11, 1.2 + 1.5 * rows), layout="constrained")
    axes: list[Any] = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    time_s = np.array([record.monotonic_ns - records[0].monotonic_ns for record in records]) / 1e9
    panels = iter(axes)
    seen = np.stack([record.observation for record in records])
    for term, columns in zip(observations, _columns(spec.observation)):
        _draw_term(next(panels), time_s, term, seen[:, columns])
    applied, asked = (np.stack([getattr(r, name) for r in records]) for name in ("applied_command", "command"))
    for term, columns in zip(commands, _columns(spec.command)):
        _draw_term(next(panels), time_s, term, applied[:, columns], asked[:, columns])
    _draw_reward(next(panels), time_s, records)
    _draw_latency(next(panels), time_s, records, spec.control_dt)
    for axis in axes:
        _shade(axis, time_s, records, spec.control_dt)
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.margins(x=0.01)
    axes[-1].set_xlabel("time in the episode [s]")
    figure.suptitle(_title(records, spec, metadata, problem), fontsize=10)
    figure.savefig(output, dpi=110)


def _columns(terms: Sequence[TermSpec]) -> list[slice]:
    ends = list(itertools.accumulate(term.size for term in terms))
    return [slice(end - term.size, end) for term, end in zip(terms, ends)]


def _draw_term(
    axis: Any, time_s: np.ndarray, term: TermSpec, values: np.ndarray, asked: np.ndarray | None = None
) -> None:
    """Lines of one term; what was asked for before safety is dashed where it differs."""
    lines = axis.plot(time_s, values, linewidth=1.0)
    if asked is not None and not np.array_equal(asked, values):
        for column, line in enumerate(lines):
            axis.plot(time_s, asked[:, column], linewidth=0.8, linestyle="--", color=line.get_color(), alpha=0.6)
    axis.set_ylabel(f"{term.name}\n[{term.unit}]", fontsize=8)
    if 1 < term.size <= MAX_LABELS:
        axis.legend(lines, [str(index) for index in range(term.size)], loc="upper right", fontsize=6, ncols=term.size)


def _draw_reward(axis: Any, time_s: np.ndarray, records: Sequence[StepRecord]) -> None:
    axis.plot(time_s, [record.reward for record in records], linewidth=1.0, color="black")
    axis.set_ylabel("reward", fontsize=8)


def _draw_latency(axis: Any, time_s: np.ndarray, records: Sequence[StepRecord], control_dt: float) -> None:
    latency_ms = np.array([record.latency_ns for record in records]) / 1e6
    missed = np.array([record.deadline_missed for record in records])
    axis.plot(time_s, latency_ms, linewidth=0.8, color="tab:blue")
    if missed.any():
        axis.plot(time_s[missed], latency_ms[missed], "x", color=_MISSED, markersize=5, label="deadline missed")
        axis.legend(loc="upper right", fontsize=6)
    axis.set_ylabel(f"latency [ms]\nperiod {control_dt * 1e3:g}", fontsize=8)
    axis.set_ylim(bottom=0)


def _shade(axis: Any, time_s: np.ndarray, records: Sequence[StepRecord], control_dt: float) -> None:
    """Orange: somebody else than the policy acted. Grey: steps are missing."""
    for source, group in itertools.groupby(range(len(records)), key=lambda index: records[index].source):
        indices = list(group)
        if source is not Source.POLICY:
            axis.axvspan(time_s[indices[0]], time_s[indices[-1]] + control_dt, color=_FALLBACK, alpha=0.2, linewidth=0)
    for index, (before, after) in enumerate(itertools.pairwise(records)):
        if after.step_index != before.step_index + 1:
            axis.axvspan(time_s[index] + control_dt, time_s[index + 1], color=_GAP, alpha=0.35, linewidth=0)


def _title(records: Sequence[StepRecord], spec: PolicySpec, metadata: Mapping[str, Any], problem: str) -> str:
    rewards = np.array([record.reward for record in records])
    known = rewards[np.isfinite(rewards)]
    parts = [
        f"{metadata.get('episode_id', '')}: {len(records)} steps",
        f"return {known.sum():.1f}" if len(known) else "no rewards",
        str(metadata.get("statistics", {}).get("end_reason", "end unknown")),
        f"{sum(record.deadline_missed for record in records)} misses",
        f"{sum(record.action_modified for record in records)} commands modified (dashed: asked for)",
    ]
    text = ", ".join(parts) + "\norange: fallback or human; grey: missing steps"
    left_out = [term.name for terms in (spec.observation, spec.command) for term in terms[MAX_TERMS:]]
    text += f"\nnot drawn: {', '.join(left_out)}" if left_out else ""
    return text + (f"\nlog: {problem}" if problem else "")
