"""Collect the learning curves of finished (or stopped) runs: `python benchmarks/_collect_curves.py RUN...`.

Writes one CSV per run to benchmarks/results/curves/, a summary with commands and versions to
benchmarks/results/learning_curves.json, a plot, and prints the tables of the README. Runs of discrete tasks have a
summary and a table of their own. A run takes the place of an earlier one of the same task and seed; all others stay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

from mpo_robot.config import build, differences, read_yaml
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.older_runs import completed
from mpo_robot.run_folder import RunFolder, complete_rows
from mpo_robot.settings_check import idle_settings
from mpo_robot.training_config import TrainingConfig

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

RESULTS = Path(__file__).parent / "results"
DISCRETE_BARS = {  # return to reach, and the environment steps allowed
    "gymnasium:CartPole-v1": (500, 30_000),
    "gymnasium:Acrobot-v1": (-100, 60_000),
}
TRAINING_SETTINGS = {  # of the training, those that decide what is learnt
    f"training.{name}"
    for name in (
        "environments",
        "noise_color",
        "white_noise_steps",
        "noise_scale_min",
        "normalize_observations",
        "updates_per_step",
        "warmup_steps",
    )
}
SAMPLE_STEPS = 200_000
SAMPLE_BARS = {  # mean over three seeds after SAMPLE_STEPS environment steps
    "dm_control:walker-walk": 950,
    "dm_control:cheetah-run": 650,
    "gymnasium:HalfCheetah-v4": 8_000,
    "gymnasium:Ant-v4": 4_000,
    "gymnasium:Hopper-v4": 2_400,
    "gymnasium:Humanoid-v4": 3_000,
}
AIMS = SAMPLE_BARS | {"dm_control:cartpole-swingup": 800}  # in the figure


def curve_of(rows: Iterable[Mapping[str, str]]) -> list[tuple[int, float]]:
    """Environment steps and mean return of each evaluation."""
    return [(int(row["environment_steps"]), float(row["return_mean"])) for row in rows]


def collect(path: Path) -> dict[str, Any]:
    """Copy one run's curve and summarise it."""
    folder = RunFolder(path)
    folder.require()
    config, record = read_yaml(folder.config_file), json.loads(folder.run_file.read_text())
    task, seed = config["environment"]["task"], record["seed"]
    rows = list(complete_rows(folder.evaluations_file))
    curve = curve_of(rows)
    target = RESULTS / "curves" / f"{task.partition(':')[2]}-seed{seed}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(folder.evaluations_file.read_text())
    return {
        "task": task,
        "seed": seed,
        "control_dt": folder.spec().control_dt,
        "curve": f"curves/{target.name}",
        "last_step": curve[-1][0],
        "last_return": curve[-1][1],
        "best_return": max(value for _, value in curve),
        f"return_at_{SAMPLE_STEPS}": dict(curve).get(SAMPLE_STEPS),
        "wall_time_s": float(rows[-1]["wall_time_s"]),
        "command": [Path(word).name if Path(word).is_absolute() else word for word in record["command"][1:]],
        "git": record["git"],
        "versions": record["versions"],
        "machine": record["machine"],
        "config": config,
    }


def plot(runs: list[dict[str, Any]]) -> None:
    """One panel per task, one line per seed (dotted with other settings than the defaults), the aim dashed."""
    tasks = sorted({run["task"] for run in runs})
    columns = min(len(tasks), 3)
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False)
    for unused in axes.flat[len(tasks) :]:
        unused.set_visible(False)
    for axis, task in zip(axes.flat, tasks):
        for run in (run for run in runs if run["task"] == task):
            steps, returns = zip(*curve_of(complete_rows(RESULTS / run["curve"])))
            axis.plot([step / 1000 for step in steps], returns, "-" if is_common(run) else ":", color=f"C{run['seed']}")
        if task in AIMS:
            axis.axhline(AIMS[task], color="gray", linestyle="--", linewidth=1)
        axis.set(title=task.partition(":")[2], xlabel="environment steps (thousands)", ylabel="return, mean action")
    key = [Line2D([], [], color=f"C{seed}", label=f"seed {seed}") for seed in sorted({run["seed"] for run in runs})]
    key += [
        Line2D([], [], color="black", label="today's defaults"),
        Line2D([], [], color="black", linestyle=":", label="earlier settings"),
        Line2D([], [], color="gray", linestyle="--", label="aim (mean of three seeds at the end)"),
    ]
    figure.tight_layout()
    figure.legend(handles=key, loc="lower right", bbox_to_anchor=(0.98, 0.06))
    figure.savefig(RESULTS / "learning_curves.png", dpi=110)


def is_common(run: dict[str, Any]) -> bool:
    """Whether a run had the default settings, but for idle ones; compiling changes the speed only."""
    recorded = completed(run["config"])
    learner, training = build(LearnerConfig, recorded["learner"]), build(TrainingConfig, recorded["training"])
    if learner.learning_rate_decay_steps == training.planned_updates:
        learner = replace(learner, learning_rate_decay_steps="auto")
    control_dt = run["control_dt"]
    if learner.discount == LearnerConfig().discount_at(control_dt):
        learner = replace(learner, discount="auto")
    if training.noise_color == TrainingConfig().noise_color_at(control_dt):
        training = replace(training, noise_color="auto")
    idle = idle_settings(TrainingConfig(), learner, discrete=False)
    defaults = {"learner": LearnerConfig(), "training": TrainingConfig()}
    changed = differences(defaults, {"learner": learner, "training": training})
    learnt_with = {name for name in changed if name.startswith("learner.") or name in TRAINING_SETTINGS}
    return learnt_with <= {*idle, "learner.compile"}


def print_sample_table(runs: list[dict[str, Any]]) -> None:
    """Returns after `SAMPLE_STEPS` with the default settings, of the seeds that were trained so far."""
    print(f"| task | aim, mean of 3 seeds | after {SAMPLE_STEPS:,} steps, by seed | mean |\n|---|---|---|---|")
    for task, bar in SAMPLE_BARS.items():
        done = [run for run in runs if run["task"] == task and run[f"return_at_{SAMPLE_STEPS}"] and is_common(run)]
        values = [run[f"return_at_{SAMPLE_STEPS}"] for run in done]
        by_seed = ", ".join(f"{run['seed']}: {value:,.0f}" for run, value in zip(done, values)) or "none"
        mean = f"{sum(values) / len(values):,.0f}" if values else ""
        print(f"| {task.partition(':')[2]} | {bar:,} | {by_seed} | {mean} |")


def main() -> None:
    """Collect all runs given on the command line."""
    if len(sys.argv) < 2:
        sys.exit("usage: python benchmarks/_collect_curves.py RUN...")
    collected = [collect(Path(argument)) for argument in sys.argv[1:]]
    if discrete := [run for run in collected if run["task"] in DISCRETE_BARS]:
        print_bars(merge("learning_curves_discrete.json", discrete))
    if continuous := [run for run in collected if run["task"] not in DISCRETE_BARS]:
        runs = merge("learning_curves.json", continuous)
        plot(runs)
        print_sample_table(runs)


def merge(name: str, new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of a summary and the new ones, which it has afterwards too."""
    summary = RESULTS / name
    by_name = {(run["task"], run["seed"]): run for run in (*json.loads(summary.read_text()), *new)}
    runs = [by_name[key] for key in sorted(by_name)]
    summary.write_text(json.dumps(runs, indent=1) + "\n")
    return runs


def print_bars(runs: list[dict[str, Any]]) -> None:
    """One row per run of a discrete task: whether and when its bar was reached."""
    print("| task | seed | bar | reached at step | last evaluation | best |\n|---|---|---|---|---|---|")
    for run in runs:
        bar, limit = DISCRETE_BARS[run["task"]]
        reached = [
            step for step, value in curve_of(complete_rows(RESULTS / run["curve"])) if value >= bar and step <= limit
        ]
        first = f"{reached[0]:,}" if reached else "not reached"
        task = run["task"].partition(":")[2]
        print(
            f"| {task} | {run['seed']} | {bar:,} by {limit // 1000}k | {first} "
            f"| {run['last_return']:,.0f} at {run['last_step'] // 1000}k | {run['best_return']:,.0f} |"
        )


if __name__ == "__main__":
    main()
