"""Reads the folder of a soak, audits it and sums it up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.soak_audit import Problem, Swap, check_bus, check_episode, check_policies, read_files
from tests.support.soak_schedule import Fault
from tests.support.soak_world import World

_SHOWN = 12  # violations in the text; all are in the JSON


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summarize(
    world: World, swaps: Sequence[Swap], seen: Iterable[Problem], injected: Sequence[tuple[float, Fault]]
) -> dict[str, Any]:
    """Audit everything; the numbers of the run, and `violations`: a list of {kind, text, ...}."""
    episodes, sessions = read_lines(world.folder / "episodes.jsonl"), read_lines(world.folder / "sessions.jsonl")
    violations: list[dict[str, Any]] = [problem._asdict() for problem in seen]
    violations += read_lines(world.folder / "violations.jsonl")
    counts: Counter[str] = Counter()
    by_name: dict[str, Counter[str]] = {name: Counter() for name in ("misses", "fallbacks", "faults")}
    acted: Counter[str] = Counter()
    for episode in episodes:
        files = sorted((world.folder / "logs").glob(f"{episode['episode_id']}*.mcap"))
        log = read_files(files)
        with np.load(world.folder / "traces" / f"{episode['episode_id']}.npz") as trace:
            found = check_episode(episode, log, {name: trace[name] for name in trace.files})
        found += check_policies(episode, log.steps, swaps, world.actions, world.local)
        violations += [problem._asdict() for problem in found]
        counts.update(
            ticks=episode["ticks"],
            commands=episode["commands"],
            records_completed=episode["completed"],
            records_read=len(log.steps),
            records_dropped=episode["dropped"],
            log_errors=bool(episode["log_error"]),
        )
        for name in ("overruns", "skipped_periods", "skipped_commands", "deadline_misses", "modified", "invalid_steps"):
            counts[name] += episode["statistics"].get(name, 0)
        for name, counter in by_name.items():
            counter.update(episode["statistics"].get(name, {}))
        acted.update(step["policy_version"] for step in log.steps if step["source"] == "policy")
    windows = [(start, end) for start, end in (episode["window"] for episode in episodes if episode["window"])]
    bus = read_lines(world.folder / "bus.jsonl")
    violations += [problem._asdict() for problem in check_bus(bus, windows)]
    known = {episode["episode_id"] for episode in episodes}
    violations += [
        Problem("record_invented", f"{path.name} belongs to no episode that was seen")._asdict()
        for path in (world.folder / "logs").glob("*.mcap")
        if path.name.split(".")[0] not in known
    ]
    versions = {version: f"policy {number}" for number, version in enumerate(world.versions)} | {world.local: "local"}
    return {
        **{name: int(count) for name, count in counts.items()},
        "episodes": len(episodes),
        "sessions": len(sessions),
        "rearmed": sum(bool(session.get("rearmed")) for session in sessions),
        "swaps": len(swaps) - 1,
        "motors_switched_on": sum(line["event"] == "on" for line in bus),
        "episode_ends": dict(Counter(episode["reason"] for episode in episodes)),
        "session_ends": dict(Counter(session["outcome"] for session in sessions)),
        "steps_by_policy": {versions[version]: count for version, count in acted.items()},
        **{name: dict(counter) for name, counter in by_name.items()},
        "injected": dict(Counter(fault.kind for _, fault in injected)),
        "injected_in_motion": dict(
            Counter(fault.kind for at, fault in injected if any(start <= at <= end for start, end in windows))
        ),
        "violations": violations,
    }


def table(summary: dict[str, Any]) -> str:
    """The summary for people."""
    single = {name: value for name, value in summary.items() if isinstance(value, int)}
    lines = [f"{name.replace('_', ' '):24}{value:>10,}" for name, value in single.items()]
    for name, value in summary.items():
        if isinstance(value, dict):
            lines.append(
                f"{name.replace('_', ' ')}: " + ", ".join(f"{key} {count}" for key, count in sorted(value.items()))
            )
    lines.append(f"{'violations':24}{len(summary['violations']):>10,}")
    return "\n".join(lines)


def describe_violations(summary: dict[str, Any], injected: Sequence[tuple[float, Fault]]) -> str:
    """Violations with what happened before each: faults injected, and the last calls of the loop."""
    lines: list[str] = []
    for violation in summary["violations"][:_SHOWN]:
        lines.append(f"VIOLATION {violation['kind']}: {violation['text']}")
        at = violation.get("monotonic_s")
        before = [fault for moment, fault in injected if at is None or moment <= at][-3:]
        lines += [f"    fault  {fault}" for fault in before]
        lines += [f"    event  {event}" for event in violation.get("events", [])[-8:]]
    more = len(summary["violations"]) - _SHOWN
    return "\n".join(lines + ([f"and {more} more"] if more > 0 else []))
