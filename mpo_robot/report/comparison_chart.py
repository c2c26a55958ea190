"""Figure of a comparison of algorithms: returns per task, the aggregate over steps, and the final intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpo_robot.comparison import Estimate, interquartile_mean, stratified_bootstrap
from mpo_robot.errors import ConfigError
from mpo_robot.report.charts import draw_steps_axis

FloatArray = npt.NDArray[np.float64]


class Curves(NamedTuple):
    """One algorithm's evaluations. Axes: T evaluations, R seeds, K tasks."""

    steps: FloatArray  # [T]
    returns: FloatArray  # [T, R, K]
    scores: FloatArray  # [T, R, K] normalised


def draw_comparison(path: Path, tasks: list[str], curves: dict[str, Curves], final: dict[str, Estimate]) -> None:
    """Write a PNG: a panel per task (mean and range over seeds), the IQM over steps with its interval, final IQMs.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib: pip install 'mpo-robot[report]'") from error
    columns = min(len(tasks) + 2, 4)
    rows = -(-(len(tasks) + 2) // columns)
    figure = Figure(figsize=(4.0 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Any] = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for index, task in enumerate(tasks):
        _task_panel(panels[index], index, task, curves)
    _aggregate_panel(panels[len(tasks)], curves)
    _interval_panel(panels[len(tasks) + 1], final)
    for unused in panels[len(tasks) + 2 :]:
        unused.set_visible(False)
    panels[0].legend(frameon=False, fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _task_panel(axes: Any, index: int, task: str, curves: dict[str, Curves]) -> None:
    for number, (name, item) in enumerate(curves.items()):
        returns = item.returns[:, :, index]
        axes.plot(item.steps, returns.mean(axis=1), color=f"C{number}", label=name)
        axes.fill_between(item.steps, returns.min(axis=1), returns.max(axis=1), color=f"C{number}", alpha=0.2, lw=0)
    axes.set(title=task.partition(":")[2] or task, ylabel="return")
    draw_steps_axis(axes)


def _aggregate_panel(axes: Any, curves: dict[str, Curves]) -> None:
    for number, (name, item) in enumerate(curves.items()):
        band = np.array([stratified_bootstrap(interquartile_mean, scores) for scores in item.scores])
        axes.plot(item.steps, band[:, 0], color=f"C{number}", label=name)
        axes.fill_between(item.steps, band[:, 1], band[:, 2], color=f"C{number}", alpha=0.2, lw=0)
    axes.set(title="all tasks, IQM and 95 % interval", ylabel="normalised score")
    draw_steps_axis(axes)


def _interval_panel(axes: Any, final: dict[str, Estimate]) -> None:
    for number, (name, estimate) in enumerate(final.items()):
        axes.plot([estimate.low, estimate.high], [number, number], color=f"C{number}", lw=6, alpha=0.4)
        axes.plot([estimate.value], [number], "|", color=f"C{number}", ms=14, mew=2, label=name)
    axes.set(title="final IQM and 95 % interval", xlabel="normalised score")
    axes.set_yticks(range(len(final)), list(final))
    axes.margins(y=0.3)
