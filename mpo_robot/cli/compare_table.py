"""From the evaluations of finished runs to the tables and the figure of a comparison."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpo_robot.comparison import (
    Estimate,
    interquartile_mean,
    mean,
    median_of_tasks,
    normalize_scores,
    probability_of_improvement,
    stratified_bootstrap,
)
from mpo_robot.errors import ConfigError
from mpo_robot.report.comparison_chart import Curves, draw_comparison

FloatArray = npt.NDArray[np.float64]

# Returns of SAC after 1M steps as published with Gymnasium's tasks (Haarnoja et al. 2018b; values of REDQ's authors).
PUBLISHED_SAC = {
    "gymnasium:HalfCheetah-v4": 11_342.0,
    "gymnasium:Ant-v4": 5_105.0,
    "gymnasium:Hopper-v4": 2_449.0,
    "gymnasium:Humanoid-v4": 4_283.0,
}


class Runs(NamedTuple):
    """Learning curves by algorithm, task and seed: environment steps and mean returns, all to the same last step."""

    curves: dict[tuple[str, str, int], dict[int, float]]

    def unique(self, position: int) -> list[Any]:
        """Algorithms (0), tasks (1) or seeds (2), in the order they came."""
        return list(dict.fromkeys(key[position] for key in self.curves))

    def returns(self, algorithm: str) -> tuple[FloatArray, FloatArray]:
        """Steps [T] and returns [T, R, K] of the seeds that finished every task, at steps that all of them have."""
        tasks = self.unique(1)
        seeds = [seed for seed in self.unique(2) if all((algorithm, task, seed) in self.curves for task in tasks)]
        if not seeds:
            return np.zeros(0), np.zeros((0, 0, len(tasks)))
        curves = [[self.curves[algorithm, task, seed] for task in tasks] for seed in seeds]
        steps = sorted(set.intersection(*(set(curve) for row in curves for curve in row)))
        return np.array(steps, float), np.array([[[curve[step] for curve in row] for row in curves] for step in steps])


def write_comparison(
    directory: Path, runs: Runs, last_step: int, score_ranges: Mapping[str, tuple[float, float]]
) -> str:
    """Write comparison.csv, improvement.csv, scores.csv and comparison.png; returns the tables as text.

    Args:
        last_step: Step at which all curves end.
        score_ranges: Returns that count as score 0 and 1, of tasks that are not to have the usual ones.

    Raises:
        ConfigError: nothing to compare.
    """
    tasks = runs.unique(1)
    returns = {name: runs.returns(name) for name in runs.unique(0)}
    returns = {name: item for name, item in returns.items() if len(item[0])}
    if not returns:
        raise ConfigError("no algorithm has a seed that finished every task: there is nothing to compare")
    missing = [
        f"{algorithm} on {task}, seed {seed}"
        for algorithm, task, seed in product(runs.unique(0), tasks, runs.unique(2))
        if (algorithm, task, seed) not in runs.curves
    ]
    low, high, notes = _score_bounds(tasks, [item[1][-1] for item in returns.values()], score_ranges)
    curves = {
        name: Curves(steps, values, normalize_scores(values, low, high)) for name, (steps, values) in returns.items()
    }
    final = {name: item.scores[-1] for name, item in curves.items()}
    iqm = {name: stratified_bootstrap(interquartile_mean, scores) for name, scores in final.items()}
    table = _aggregate_rows(tasks, curves, iqm)
    improvement = [
        {"algorithm": ours, "than": theirs, **_named("probability", _improvement(final[ours], final[theirs]))}
        for ours, theirs in permutations(final, 2)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    _write_csv(directory / "comparison.csv", table)
    _write_csv(directory / "improvement.csv", improvement)
    _write_csv(directory / "scores.csv", _score_rows(runs, last_step, dict(zip(tasks, zip(low, high)))))
    draw_comparison(directory / "comparison.png", tasks, curves, iqm)
    lines = [f"After {last_step:,} environment steps; intervals: 95 %, bootstrap over seeds within tasks.", *notes]
    if missing:
        lines.append(f"Not finished, so these seeds of theirs are left out on all tasks: {'; '.join(missing)}.")
    if any(len(scores) < 2 for scores in final.values()):
        lines.append("n/a: an interval needs two seeds at least.")
    lines += ["", *_text(table), "", *_text(improvement), "", f"Written to {directory}: comparison.csv, "]
    lines[-1] += "improvement.csv, scores.csv, comparison.png"
    return "\n".join(lines)


def _improvement(ours: FloatArray, theirs: FloatArray) -> Estimate:
    return stratified_bootstrap(probability_of_improvement, ours, theirs)


def _score_bounds(
    tasks: Sequence[str], returns: Sequence[FloatArray], given: Mapping[str, tuple[float, float]]
) -> tuple[FloatArray, FloatArray, list[str]]:
    everything = np.concatenate(list(returns))  # [runs, K]
    bounds, notes = [], []
    for index, task in enumerate(tasks):
        worst, best = float(everything[:, index].min()), float(everything[:, index].max())
        if task in given:
            bounds.append(given[task])
        elif task.startswith("dm_control:"):
            bounds.append((0.0, 1000.0))
        elif task in PUBLISHED_SAC:
            bounds.append((0.0, PUBLISHED_SAC[task]))
        else:
            bounds.append((worst, best if best > worst else worst + 1.0))
            notes.append(f"{task}: scores relative to the worst and best return here ({worst:.1f} and {best:.1f}).")
    low, high = np.array(bounds).T
    return low, high, notes


def parse_ranges(options: Sequence[str], tasks: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Returns that count as score 0 and 1, by task, from options such as `TASK=LOW:HIGH`.

    Raises:
        ConfigError: another form, a task that is not compared or is named twice, or HIGH not above LOW.
    """
    ranges: dict[str, tuple[float, float]] = {}
    for option in options:
        task, bounds = _parse_range(option, tasks)
        if task in ranges:
            raise ConfigError(f"--score-range names {task!r} twice")
        ranges[task] = bounds
    return ranges


def _parse_range(option: str, tasks: Sequence[str]) -> tuple[str, tuple[float, float]]:
    task, _, text = option.rpartition("=")
    try:
        low, high = (float(number) for number in text.split(":"))
    except ValueError as error:
        raise ConfigError(f"--score-range must look like TASK=LOW:HIGH, got {option!r}") from error
    if task not in tasks:
        raise ConfigError(f"--score-range names {task!r}, which is not compared; there are: {', '.join(tasks)}")
    if not high > low:
        raise ConfigError(f"--score-range {option!r}: HIGH must be above LOW")
    return task, (low, high)


def _aggregate_rows(tasks: list[str], curves: dict[str, Curves], iqm: dict[str, Estimate]) -> list[dict[str, Any]]:
    rows = []
    for name, item in curves.items():
        scores = item.scores[-1]
        row: dict[str, Any] = {"algorithm": name, "seeds": len(scores), **_named("iqm", iqm[name])}
        row |= _named("mean", stratified_bootstrap(mean, scores))
        row["median"] = float(median_of_tasks(scores))
        row |= {f"return {task}": float(value) for task, value in zip(tasks, item.returns[-1].mean(axis=0))}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["iqm"])


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _score_rows(runs: Runs, last_step: int, bounds: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    rows = []
    for (algorithm, task, seed), curve in runs.curves.items():
        low, high = bounds[task]
        value = curve[last_step]
        row = {"algorithm": algorithm, "task": task, "seed": seed, "environment_steps": last_step, "return": value}
        rows.append(row | {"score": (value - low) / (high - low)})
    return rows


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else ["algorithm"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _text(rows: list[dict[str, Any]]) -> list[str]:
    """Aligned columns; an estimate's bounds stand behind it in brackets."""
    if not rows:
        return []
    names = [name for name in rows[0] if not name.endswith(("_low", "_high"))]
    cells = [names] + [[_cell(row, name) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.1f}" if name.startswith("return ") else f"{value:.3f}"
    if f"{name}_low" in row:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        text += " [n/a]" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    return text
