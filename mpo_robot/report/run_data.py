"""A run folder read back for `inspect` and `report`; tolerant of a run that is still being written or was killed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.config import read_yaml
from mpo_robot.errors import ConfigError
from mpo_robot.run_folder import RunFolder, complete_rows, read_json

Table = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class RunData:
    """What is known about a run.

    Attributes:
        path: The run folder.
        config: Its resolved configuration.
        config_text: The same as YAML text.
        record: run.json (seed, versions, machine, git), empty if missing.
        metrics: Columns of metrics.csv, oldest row first; empty if there are none yet.
        evaluations: Columns of evaluations.csv.
        learning: Columns of learn.csv, one row per round of learning from real logs.
        checkpoints: Names of the complete checkpoints, oldest first.
    """

    path: Path
    config: Mapping[str, Any]
    config_text: str
    record: Mapping[str, Any]
    metrics: Table
    evaluations: Table
    learning: Table
    checkpoints: tuple[str, ...]

    @property
    def task(self) -> str:
        """Name of the simulated task, or `unknown task`."""
        environment = self.config.get("environment")
        return str(environment.get("task", "unknown task")) if isinstance(environment, Mapping) else "unknown task"

    @property
    def checkpoint_steps(self) -> int | None:
        """Environment steps of the newest checkpoint, where a resume goes on; None without one."""
        return max((int(name.split("_")[1]) for name in self.checkpoints), default=None)

    @property
    def progress(self) -> dict[str, float]:
        """Last known counters: `environment_steps`, `learner_steps`, `wall_time_s`; absent ones are left out."""
        result = {}
        for name in ("environment_steps", "learner_steps", "wall_time_s"):
            values = [value for table in (self.metrics, self.evaluations) for value in finite(table, name)]
            if values:
                result[name] = max(values)
        return result


def read_run(path: str | Path) -> RunData:
    """Read a run folder.

    Raises:
        ConfigError: not a run folder, or its configuration or record is damaged.
    """
    folder = RunFolder(path)
    folder.require()
    return RunData(
        path=folder.path,
        config=read_yaml(folder.config_file),
        config_text=folder.config_file.read_text(encoding="utf-8"),
        record=read_json(folder.run_file) if folder.run_file.exists() else {},
        metrics=read_table(folder.metrics_file),
        evaluations=read_table(folder.evaluations_file),
        learning=read_table(folder.path / "learn.csv"),
        checkpoints=tuple(sorted(found.parent.name for found in folder.checkpoints.glob("step_*/state.pt"))),
    )


def read_table(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Columns of a CSV file of numbers; what is empty or no number is NaN.

    A last line that does not end yet is left out: it is being written or was cut off, maybe in the middle of a number.

    Raises:
        ConfigError: the file exists and cannot be read.
    """
    try:
        reader = complete_rows(path)
        rows = [row for row in reader if None not in row and None not in row.values()]  # as many cells as columns
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return {name: np.array([_number(row[name]) for row in rows], np.float64) for name in reader.fieldnames or ()}


def column(table: Table, name: str) -> npt.NDArray[np.float64]:
    """One column, or NaN in each row if the table lacks it."""
    if name in table:
        return table[name]
    return np.full(max((len(values) for values in table.values()), default=0), np.nan)


def finite(table: Table, name: str) -> npt.NDArray[np.float64]:
    """The finite values of a column, oldest first; empty if the table lacks it."""
    values = column(table, name)
    return values[np.isfinite(values)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
