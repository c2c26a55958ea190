"""What `mpo-robot inspect` tells about an episode log and a folder of logs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mpo_robot.cli.log_files import find_episodes, summarize_episode
from mpo_robot.errors import EpisodeError
from mpo_robot.report.log_summary import LogSummary, percentiles


def describe(path: Path) -> dict[str, Any]:
    """How the episode went, who acted, timing and what the log says about itself.

    Raises:
        EpisodeError: not readable as an episode log.
    """
    (files,) = find_episodes([path])
    log = summarize_episode(files)
    return {
        "episode_id": log.episode_id,
        "files": [part.name for part in files.paths] if len(files.paths) > 1 else None,
        "robot": log.metadata.get("robot") or None,
        "state": "complete" if log.complete else f"recovered: {log.problem}",
        "started": _moment(log.started_wall_time_ns),
        "steps": log.steps,
        "duration_s": log.steps * log.control_dt,
        "control_dt": log.control_dt,
        "end": log.end,
        "return": log.total_reward,
        "steps_without_reward": log.unknown_rewards,
        "steps_kept_apart": log.invalid_steps,
        "gaps": log.gaps,
        "sources": dict(log.sources),
        "deadline_misses": log.deadline_misses,
        "modified_commands": log.modified,
        "steps_with_importance_ratio": log.trace_steps,
        "latency_us": percentiles(log.latency_us) or None,
        "policy_versions": [{"policy_version": key, "steps": value} for key, value in log.policy_versions.items()],
        "spec_hash": log.metadata.get("spec_hash"),
        "info": log.metadata.get("info") or None,
        "statistics": log.metadata.get("statistics") or None,
    }


def describe_folder(path: Path) -> dict[str, Any]:
    """One row per episode; an unreadable log gets a row with the reason."""
    rows = []
    for files in find_episodes([path]):
        try:
            rows.append(_row(summarize_episode(files)))
        except EpisodeError as error:
            rows.append({"log": files.paths[0].name, "state": f"unreadable: {error}"})
    rejected = sorted(file.name for file in path.glob("rejected/*.mcap"))
    return {"logs": rows, "rejected": rejected or None}


def _row(log: LogSummary) -> dict[str, Any]:
    latency = percentiles(log.latency_us)
    return {
        "log": log.name,
        "steps": log.steps,
        "return": log.total_reward,
        "end": log.end,
        "missed": log.deadline_misses,
        "fallback": log.sources.get("fallback", 0),
        "p50_us": round(latency["p50"], 1) if latency else None,
        "p99_us": round(latency["p99"], 1) if latency else None,
        "policy": log.main_policy_version[:12] or None,
        "state": "complete" if log.complete else "recovered",
    }


def _moment(wall_time_ns: int) -> str | None:
    if not wall_time_ns:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_time_ns / 1e9))
