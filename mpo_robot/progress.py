"""What every trainer writes and tells as it goes: rows of metrics, evaluations, the best policy, the wall time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpo_robot.best_policy import BestPolicy
from mpo_robot.evaluation import Evaluation
from mpo_robot.metrics import EVALUATION_COLUMNS, MetricsWriter, metric_columns
from mpo_robot.run_folder import CsvLog, RunFolder

OnEvaluation = Callable[[int, Evaluation], None]
OnProgress = Callable[[int], None]


class WallClock:
    """Seconds of a training, earlier sessions of a resumed one included."""

    def __init__(self, earlier_s: float = 0.0) -> None:
        self._earlier_s = earlier_s
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._earlier_s + time.monotonic() - self._started


class Progress:
    """The files of one session of a training, and who is told of it.

    Args:
        folder: Run folder, already created.
        learner_metrics: Names of the learner's metrics.
        environment_steps: Steps of earlier sessions; rows after them are dropped.
        on_evaluation: Called with the environment steps and the result of each evaluation.
        on_progress: Called with the environment steps after each row of metrics.
    """

    def __init__(
        self,
        folder: RunFolder,
        learner_metrics: Sequence[str],
        environment_steps: int,
        on_evaluation: OnEvaluation | None,
        on_progress: OnProgress | None,
    ) -> None:
        resume_step = environment_steps or None
        self._writer = MetricsWriter(
            CsvLog(folder.metrics_file, metric_columns(learner_metrics), resume_step),
            CsvLog(folder.evaluations_file, EVALUATION_COLUMNS, resume_step),
            folder.tensorboard,
            resume_step,
        )
        self._best_policy = BestPolicy(folder.best_policy, environment_steps)
        self._on_evaluation = on_evaluation
        self._on_progress = on_progress
        self._speed_mark = (time.monotonic(), environment_steps)

    def metrics(
        self, counters: Mapping[str, Any], learner_metrics: Mapping[str, Any], finished_returns: list[float]
    ) -> None:
        """Write a row; the returns of the episodes that ended since the last one are taken out of the list."""
        step = int(counters["environment_steps"])
        now, (then, step_then) = time.monotonic(), self._speed_mark
        self._speed_mark = (now, step)
        row: dict[str, Any] = {**counters, **learner_metrics}
        row["steps_per_second"] = round((step - step_then) / max(now - then, 1e-9), 1)
        if finished_returns:
            row["episode_return"] = float(np.mean(finished_returns))
            finished_returns.clear()
        self._writer.metrics(row)
        if self._on_progress is not None:
            self._on_progress(step)

    def evaluation(
        self, counters: Mapping[str, Any], result: Evaluation, policy_state: Callable[[], dict[str, Any]]
    ) -> None:
        """Write a row, and keep the policy of `policy_state()` if it is the best so far."""
        step = int(counters["environment_steps"])
        self._writer.evaluation({**counters, **result.summary()})
        self._best_policy.offer(result, step, policy_state)
        if self._on_evaluation is not None:
            self._on_evaluation(step, result)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
