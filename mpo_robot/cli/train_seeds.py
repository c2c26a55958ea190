"""`mpo-robot train --seeds 0,1,2`: the same training with several seeds, each in a process of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mpo_robot.cli.trainings import (
    FIXED_BY_SEEDS,
    Outcome,
    Training,
    parse_seeds,
    plan_training,
    refuse_settings,
    run_trainings,
)
from mpo_robot.errors import ConfigError
from mpo_robot.run_folder import RunFolder


def run(args: argparse.Namespace) -> int:
    """Train what is missing and print the last evaluations.

    Returns:
        0 if every run is finished, 1 if one failed, 130 if they were stopped before.
    """
    trainings = plan(args)
    missing = [training for training in trainings.values() if not training.is_finished]
    jobs = cores() if args.jobs is None else args.jobs
    print(f"{len(trainings)} runs, {len(trainings) - len(missing)} finished already, {jobs} at a time", flush=True)
    progress = Progress(trainings)
    outcome = run_trainings(missing, jobs, (lambda training: None) if args.quiet else progress.show)
    print(table(trainings, outcome))
    for training in outcome.failed:
        print(f"failed: {training.folder.path}, see {training.log_file}", file=sys.stderr)
    if outcome.failed:
        return 1
    if outcome.interrupted and not all(training.is_finished for training in trainings.values()):
        print("Stopped. The same command goes on where each run was.")
        return 130
    return 0


def plan(args: argparse.Namespace) -> dict[int, Training]:
    """The training of each seed, all checked before the first one starts.

    Raises:
        ConfigError: options that do not go together, a bad setting, or a run of other settings in a folder.
    """
    if args.config is None or args.resume is not None:
        raise ConfigError("--seeds goes with --config FILE, without --resume: give the same command again to go on")
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError("--jobs must be at least 1")
    refuse_settings(args.overrides, FIXED_BY_SEEDS)
    start = args.run or Path("runs") / args.config.stem
    if start.name in ("", ".."):
        raise ConfigError(f"--run must end in what the run folders' names begin with, got {args.run}")
    return {
        seed: plan_training(
            args.config, (*args.overrides, f"seed={seed}"), RunFolder(start.with_name(f"{start.name}-seed{seed}"))
        )
        for seed in parse_seeds(args.seeds)
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Progress:
    """Prints the evaluations of running trainings as they come."""

    def __init__(self, trainings: Mapping[int, Training]) -> None:
        self._seeds = {training.folder.path: seed for seed, training in trainings.items()}
        # Those of a run that is continued are no news.
        self._shown = {training.folder.path: last_step(training) for training in trainings.values()}

    def show(self, training: Training) -> None:
        """Print what is new of one training."""
        path = training.folder.path
        for row in training.evaluations():
            step = int(row["environment_steps"])
            if step > self._shown[path]:
                self._shown[path] = step
                result = f"return {float(row['return_mean']):8.1f} +- {float(row['return_std']):.1f}"
                print(
                    f"seed {self._seeds[path]}  step {step:>9,}  {result}  ({float(row['wall_time_s']):.0f} s)",
                    flush=True,
                )


def last_step(training: Training) -> int:
    """Step of the newest evaluation; 0 without one."""
    return max((int(row["environment_steps"]) for row in training.evaluations()), default=0)


def table(trainings: Mapping[int, Training], outcome: Outcome) -> str:
    """The last evaluation of each seed, and the mean of the finished ones."""
    lines = [f"{'seed':>6}{'step':>12}{'return':>12}{'+-':>10}{'best':>12}  state"]
    finished: list[float] = []
    for seed, training in trainings.items():
        rows = training.evaluations()
        state = "finished" if training.is_finished else "failed" if training in outcome.failed else "stopped"
        if not rows:
            lines.append(f"{seed:>6}{'-':>12}{'-':>12}{'-':>10}{'-':>12}  {state}")
            continue
        returns = [float(row["return_mean"]) for row in rows]
        steps, spread = int(rows[-1]["environment_steps"]), float(rows[-1]["return_std"])
        lines.append(f"{seed:>6}{steps:>12,}{returns[-1]:>12.1f}{spread:>10.1f}{max(returns):>12.1f}  {state}")
        if training.is_finished:
            finished.append(returns[-1])
    if len(finished) > 1:
        lines.append(
            f"{'mean':>6}{'':>12}{np.mean(finished):>12.1f}{np.std(finished):>10.1f}{'':>12}  of {len(finished)} seeds"
        )
    return "\n".join(lines)
