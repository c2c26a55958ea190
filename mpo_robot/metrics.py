"""Metrics of a run: two CSV files and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpo_robot.run_folder import CsvLog

COUNTER_COLUMNS = ("environment_steps", "learner_steps", "wall_time_s")
EVALUATION_COLUMNS = (*COUNTER_COLUMNS, "return_mean", "return_std", "return_min", "return_max", "episodes")


def metric_columns(learner_metrics: Sequence[str]) -> tuple[str, ...]:
    """Header of metrics.csv for a learner with these metrics."""
    return (*COUNTER_COLUMNS, "steps_per_second", "episode_return", *learner_metrics)


class MetricsWriter:
    """Writes each row to its CSV file and to TensorBoard."""

    def __init__(
        self, metrics_log: CsvLog, evaluations_log: CsvLog, tensorboard_directory: Path, resume_step: int | None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import; only trainings need it

        self._metrics_log = metrics_log
        self._evaluations_log = evaluations_log
        purge = None if resume_step is None else resume_step + 1
        self._tensorboard = SummaryWriter(str(tensorboard_directory), purge_step=purge)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.csv."""
        self._metrics_log.append(row)
        self._scalars("train", row)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """One row of evaluations.csv."""
        self._evaluations_log.append(row)
        self._scalars("evaluation", row)

    def _scalars(self, prefix: str, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "environment_steps":
                self._tensorboard.add_scalar(f"{prefix}/{name}", value, int(row["environment_steps"]))

    def close(self) -> None:
        """Flush and close."""
        self._tensorboard.close()
