"""`mpo-robot bench compare`: train several algorithms on several tasks over seeds, and aggregate their returns."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mpo_robot.cli.compare_table import Runs, parse_ranges, write_comparison
from mpo_robot.cli.settings import load_run_config
from mpo_robot.cli.trainings import (
    FIXED_BY_STUDY,
    Training,
    add_study_arguments,
    check_last_evaluation,
    check_study_arguments,
    parse_seeds,
    plan_training,
    refuse_settings,
    task_spec,
    train_missing,
)
from mpo_robot.errors import ConfigError
from mpo_robot.run_folder import RunFolder
from mpo_robot.settings_check import idle_settings

FIXED = FIXED_BY_STUDY | {"environment.task": "--tasks sets it", "learner.algorithm": "--algorithms sets it"}
BASELINES = Path(__file__).resolve().parents[2] / "configs" / "train" / "baselines"


class Plan(NamedTuple):
    """One training of the comparison."""

    algorithm: str
    task: str
    seed: int
    training: Training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the comparison."""
    parser.add_argument("--algorithms", default="mpo,sac,ddpg,epg", help="names in configs/train/baselines/, or files")
    parser.add_argument("--tasks", required=True, help="such as dm_control:cartpole-swingup,gymnasium:HalfCheetah-v4")
    add_study_arguments(parser, Path("runs/compare"))
    parser.add_argument(
        "--score-range",
        action="append",
        default=[],
        metavar="TASK=LOW:HIGH",
        help="returns that count as score 0 and 1 (default: 0 to 1000 in dm_control; elsewhere 0 and published SAC, "
        "or the worst and best return of the comparison)",
    )


def run(args: argparse.Namespace) -> int:
    """Execute the command: train what is missing, then write and print the comparison."""
    plans = make_plans(args)
    score_ranges = parse_ranges(args.score_range, args.tasks.split(","))
    failed = train_missing([plan.training for plan in plans], args.dir, args.jobs)
    finished = [plan for plan in plans if plan.training.is_finished]
    curves = {(plan.algorithm, plan.task, plan.seed): plan.training.curve(args.steps) for plan in finished}
    print(write_comparison(args.dir, Runs(curves), args.steps, score_ranges))
    return 1 if failed else 0


def make_plans(args: argparse.Namespace) -> list[Plan]:
    """All trainings, checked before the first one starts.

    Raises:
        ConfigError: a bad option, unknown algorithm or setting, or a run of other settings in the folder.
    """
    check_study_arguments(args)
    refuse_settings(args.overrides, FIXED)
    seeds = parse_seeds(args.seeds)
    tasks, algorithms = args.tasks.split(","), [_algorithm(name) for name in args.algorithms.split(",")]
    for what, items in (("--tasks", tasks), ("--algorithms", [name for name, _ in algorithms])):
        if len(set(items)) < len(items):
            raise ConfigError(f"{what} names something twice: {items}")
    plans = [
        _plan(args.dir, name, file, task, seed, args.steps, args.overrides)
        for seed in seeds
        for task in tasks
        for name, file in algorithms
    ]
    for override in args.overrides:
        if all(override not in plan.training.overrides for plan in plans):
            raise ConfigError(f"{override} has no effect on any of the algorithms and tasks: leave it out")
    return plans


def _algorithm(name: str) -> tuple[str, Path]:
    path = Path(name)
    if path.suffix == ".yaml":
        return path.stem, path
    known = sorted(file.stem for file in BASELINES.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"no algorithm {name!r} in {BASELINES}; there are: {', '.join(known) or 'none'}")
    return name, BASELINES / f"{name}.yaml"


def _plan(directory: Path, name: str, file: Path, task: str, seed: int, steps: int, overrides: Sequence[str]) -> Plan:
    """The training, with those of the settings for all that have an effect on this algorithm and task."""
    folder = RunFolder(directory / name / task.replace(":", "_") / f"seed{seed}")
    settings = (f"environment.task={task}", f"seed={seed}", f"training.total_steps={steps}")
    config = load_run_config(file, (*overrides, *settings))
    idle = idle_settings(
        config.training, config.learner, task_spec(config.environment.nominal()).num_actions is not None
    )
    own = [override for override in overrides if override.partition("=")[0].strip() not in idle]
    training = plan_training(file, (*own, *settings), folder)
    check_last_evaluation(training)
    return Plan(name, task, seed, training)
