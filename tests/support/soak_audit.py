"""What a soak left behind, checked afterwards: logs against what the robot process saw, policies against the registry.

Logs are read with the `mcap` library and `json` alone. Shapes: O observation size, A action size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mcap.exceptions import McapError
from mcap.records import Channel, Message, Metadata
from mcap.stream_reader import StreamReader

STEPS, INVALID_STEPS = "/step", "/invalid_step"
Range = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


class Problem(NamedTuple):
    """A violation: its kind, and what is wrong."""

    kind: str
    text: str


class Swap(NamedTuple):
    """A change of the version in force: between `before` and `after` (monotonic seconds) it became `version`."""

    before: float
    after: float
    version: str


class ReadLog(NamedTuple):
    """Every step in the files of one episode, whatever its topic, and the `log_dropped` of the last that was closed."""

    steps: list[dict[str, Any]]
    dropped: int | None


def read_files(paths: Iterable[Path]) -> ReadLog:
    """Read the files of one episode, each as far as it is whole."""
    steps, dropped = list[dict[str, Any]](), None
    for path in paths:
        topics: dict[int, str] = {}
        with path.open("rb") as stream:
            try:
                for record in StreamReader(stream, validate_crcs=True).records:
                    if isinstance(record, Channel):
                        topics[record.id] = record.topic
                    elif isinstance(record, Message) and topics[record.channel_id] in (STEPS, INVALID_STEPS):
                        steps.append(json.loads(record.data))
                    elif isinstance(record, Metadata) and record.name == "mpo_robot.statistics":
                        dropped = json.loads(record.metadata["json"])["log_dropped"]
            except (McapError, EOFError):  # cut off: a disk was full to the end
                continue
    return ReadLog(steps, dropped)


def check_episode(episode: Mapping[str, Any], log: ReadLog, trace: Mapping[str, Any]) -> list[Problem]:
    """Compare the records of one episode with the steps that the checker saw completed.

    Args:
        episode: Line of the episode, with `episode_id`, `completed` and `dropped`.
        log: Its files.
        trace: `observations` and `outcomes` [T, O], `applied` [T, A], float32.
    """
    steps = log.steps
    name, problems = episode["episode_id"], list[Problem]()
    completed, dropped = int(episode["completed"]), int(episode["dropped"])
    indices = [int(step["step_index"]) for step in steps]
    if log.dropped not in (None, dropped):
        problems.append(Problem("statistics", f"{name}: {dropped} dropped by the writer, {log.dropped} by its file"))
    if len(set(indices)) < len(indices):
        problems.append(Problem("record_invented", f"{name}: a step is logged twice"))
    if indices != sorted(indices):
        problems.append(Problem("record_order", f"{name}: the steps are out of order"))
    if completed - len(steps) > dropped:
        problems.append(
            Problem("record_lost", f"{name}: {completed} steps completed, {len(steps)} in the log, {dropped} dropped")
        )
    elif completed - len(steps) < dropped:
        problems.append(
            Problem("record_invented", f"{name}: {completed} steps, {len(steps)} in the log, {dropped} dropped")
        )
    fields = (("observation", "observations"), ("applied_command", "applied"), ("next_observation", "outcomes"))
    for step in steps:
        index = int(step["step_index"])
        if index >= completed:
            problems.append(Problem("record_invented", f"{name}: step {index} of {completed}"))
            continue
        for field, seen in fields:
            if not np.array_equal(_vector(step[field]), trace[seen][index], equal_nan=True):
                problems.append(Problem("record_invented", f"{name}: {field} of step {index} is not what was seen"))
    if len({int(step["wall_time_ns"]) - int(step["monotonic_ns"]) for step in steps}) > 1:
        problems.append(Problem("wall_time", f"{name}: the log's wall time jumps"))
    return problems


def check_policies(
    episode: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    swaps: Sequence[Swap],
    actions: Mapping[str, Range],
    local: str,
) -> list[Problem]:
    """Was the version in force when the episode was begun, and none but it and the robot's own, the one that acted?

    Args:
        episode: Its line, with `asked` and `answered` (monotonic seconds) and the `version` that the server named.
        steps: From `read_files`.
        swaps: All changes of the version in force, in order.
        actions: (low, high) [A] of the normalised actions of each version: what a version says must be what it does.
        local: Version of the policy file in the robot's own process.
    """
    name, version, problems = episode["episode_id"], episode["version"], list[Problem]()
    allowed = in_force(swaps, float(episode["asked"]), float(episode["answered"]))
    if version not in allowed:
        problems.append(Problem("stale_policy", f"{name}: began with {version[:12]}, in force {_short(allowed)}"))
    for step in steps:
        if step["source"] != "policy":
            continue
        acted = step["policy_version"]
        if acted not in (version, local):
            problems.append(Problem("stale_policy", f"{name}: step {step['step_index']} by {acted[:12]}"))
            continue
        low, high = actions[acted]
        action = _vector(step["policy_action"]).astype(np.float64)
        if not ((action >= low) & (action <= high)).all():
            problems.append(
                Problem("stale_policy", f"{name}: step {step['step_index']} is no action of {acted[:12]}: {action}")
            )
    return problems


def in_force(swaps: Sequence[Swap], since: float, until: float) -> set[str]:
    """Versions that were in force at some moment of an interval."""
    versions: set[str] = set()
    for swap, following in zip(swaps, [*swaps[1:], None]):
        if swap.before <= until and (following is None or following.after >= since):
            versions.add(swap.version)
    return versions


def check_bus(lines: Sequence[Mapping[str, Any]], windows: Sequence[tuple[float, float]]) -> list[Problem]:
    """What the emulated bus itself saw: goals beyond a limit, motors switched on outside `windows` (s) of episodes."""
    problems = [
        Problem("bus_goal", f"servo {line['id']}: {dict(line)}") for line in lines if line["event"] == "violation"
    ]
    for line in lines:
        if line["event"] == "on" and not any(start <= line["t"] and line["since"] <= end for start, end in windows):
            problems.append(
                Problem("bus_on", f"servo {line['id']} was switched on at {line['t']:.3f}, outside episodes")
            )
    return problems


def _vector(values: Sequence[float | None]) -> npt.NDArray[np.float32]:
    return np.array([np.nan if value is None else value for value in values], np.float32)


def _short(versions: Iterable[str]) -> str:
    return ", ".join(sorted(version[:12] for version in versions)) or "none"
