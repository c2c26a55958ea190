"""What `mpo-robot inspect` tells about a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mpo_robot.cli.inspect_policy import describe_registry, describe_spec
from mpo_robot.errors import MpoRobotError
from mpo_robot.report.run_data import RunData, Table, read_run
from mpo_robot.run_folder import RunFolder


def describe(path: Path) -> dict[str, Any]:
    """Task, progress, last evaluation, checkpoints, policies, versions and configuration of a run.

    Raises:
        ConfigError: not a run folder, or one of its files is damaged.
    """
    run = read_run(path)
    return {
        "task": run.task,
        "seed": run.config.get("seed", 0),
        "started": run.record.get("started_wall_time"),
        "progress": _progress(run) or None,
        "checkpoint_steps": run.checkpoint_steps,
        "last_evaluation": _last_row(run.evaluations, "return_mean"),
        "best_return": _best(run),
        "last_metrics": _last_row(run.metrics, "loss_critic"),
        "last_learning": _last_row(run.learning, "learner_steps"),
        "checkpoints": list(run.checkpoints) or None,
        "policies": _policies(path),
        "interface": _interface(path),
        "versions": run.record.get("versions"),
        "machine": run.record.get("machine"),
        "git": run.record.get("git"),
        "command": " ".join(map(str, run.record.get("command", []))) or None,
        "resumed": _resumed(run) or None,
        "config": run.config,
    }


def _progress(run: RunData) -> dict[str, Any]:
    """Newest counters; a run stopped between two rows of metrics.csv has got as far as its checkpoint."""
    progress = {name: _count(value) for name, value in run.progress.items()}
    if run.checkpoint_steps is not None:
        progress["environment_steps"] = max(run.checkpoint_steps, progress.get("environment_steps", 0))
    return progress


def _resumed(run: RunData) -> list[dict[str, Any]]:
    """One row per resume."""
    rows = []
    for entry in run.record.get("resumed", []):
        changed = entry.get("changed_settings", {})
        texts = [f"{key}: {before} -> {after}" for key, (before, after) in changed.items()]
        rows.append(
            {
                "at_step": entry.get("environment_steps"),
                "started": entry.get("started_wall_time"),
                "changed_settings": "; ".join(texts) or None,
            }
        )
    return rows


def _interface(path: Path) -> dict[str, Any] | None:
    folder = RunFolder(path)
    if not folder.spec_file.exists():
        return None
    spec = folder.spec()
    return {"spec_hash": spec.spec_hash, **describe_spec(spec)}


def _policies(path: Path) -> dict[str, Any] | str | None:
    folder = RunFolder(path).policies
    if not folder.exists():
        return None
    try:
        return describe_registry(folder)
    except MpoRobotError as error:  # the rest of the run is still worth showing
        return f"unreadable: {error}"


def _last_row(table: Table, required: str) -> dict[str, Any] | None:
    """The newest row in which `required` has a value."""
    rows = np.flatnonzero(np.isfinite(table[required])) if required in table else []
    if not len(rows):
        return None
    row = {name: float(values[rows[-1]]) for name, values in table.items()}
    return {name: _count(value) for name, value in row.items() if np.isfinite(value)}


def _best(run: RunData) -> float | None:
    means = run.evaluations.get("return_mean")
    return float(np.nanmax(means)) if means is not None and np.isfinite(means).any() else None


def _count(value: float) -> float | int:
    return int(value) if value.is_integer() else value
