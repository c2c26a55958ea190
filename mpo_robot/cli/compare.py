"""`mpo-robot bench compare`: train several algorithms on several tasks over seeds, and aggregate their returns."""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mpo_robot.cli.compare_table import Runs, write_comparison
from mpo_robot.cli.settings import RunConfig, load_run_config
from mpo_robot.config import differences
from mpo_robot.errors import ConfigError
from mpo_robot.run_folder import RunFolder

BASELINES = Path(__file__).resolve().parents[2] / "configs" / "train" / "baselines"


class Plan(NamedTuple):
    """One training of the comparison."""

    algorithm: str
    task: str
    seed: int
    config_file: Path
    overrides: tuple[str, ...]
    config: RunConfig
    folder: RunFolder

    @property
    def log_file(self) -> Path:
        """What the training printed."""
        return self.folder.path.with_suffix(".log")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the comparison."""
    group = parser.add_argument_group(
        "bench compare", "Train algorithms on tasks over seeds, then compare: bench compare --tasks ... [key=value]"
    )
    group.add_argument("--algorithms", default="mpo,sac,ddpg,epg", help="names in configs/train/baselines/, or files")
    group.add_argument("--tasks", help="such as dm_control:cartpole-swingup,gymnasium:HalfCheetah-v4")
    group.add_argument("--seeds", default="0,1", help="comma-separated")
    group.add_argument("--steps", type=int, default=100_000, help="environment steps of each training")
    group.add_argument("--jobs", type=int, default=1, help="trainings at a time, one thread each")
    group.add_argument("--dir", type=Path, default=Path("runs/compare"), help="folder of the runs and of the result")
    group.add_argument(
        "--score-range",
        action="append",
        default=[],
        metavar="TASK=LOW:HIGH",
        help="returns that count as score 0 and 1 (default: 0 to 1000 in dm_control; elsewhere 0 and published SAC, "
        "or the worst and best return of the comparison)",
    )


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Execute the command: train what is missing, then write and print the comparison."""
    plans = make_plans(args, overrides)
    missing = [plan for plan in plans if not is_finished(plan)]
    print(f"{len(plans)} trainings in {args.dir}, {len(plans) - len(missing)} finished already", flush=True)
    failed = train_all(missing, args.jobs)
    for plan in failed:
        print(f"failed: {plan.folder.path}, see {plan.log_file}", file=sys.stderr)
    runs = Runs.collect([(plan.algorithm, plan.task, plan.seed, plan.folder) for plan in plans if is_finished(plan)])
    print(write_comparison(args.dir, runs, args.steps, args.score_range))
    return 1 if failed else 0


def make_plans(args: argparse.Namespace, overrides: Sequence[str]) -> list[Plan]:
    """All trainings, checked before the first one starts.

    Raises:
        ConfigError: a bad option, unknown algorithm or setting, or a run of other settings in the folder.
    """
    if not args.tasks:
        raise ConfigError("bench compare needs --tasks, such as --tasks dm_control:cartpole-swingup")
    if args.jobs < 1 or args.steps < 1:
        raise ConfigError("--jobs and --steps must be at least 1")
    try:
        seeds = [int(text) for text in args.seeds.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds must be whole numbers with commas between, got {args.seeds!r}") from error
    tasks, algorithms = args.tasks.split(","), [_algorithm(name) for name in args.algorithms.split(",")]
    for what, items in (("--seeds", seeds), ("--tasks", tasks), ("--algorithms", [name for name, _ in algorithms])):
        if len(set(items)) < len(items):
            raise ConfigError(f"{what} names something twice: {items}")
    return [
        _plan(args.dir, name, file, task, seed, args.steps, overrides)
        for seed in seeds
        for task in tasks
        for name, file in algorithms
    ]


def _algorithm(name: str) -> tuple[str, Path]:
    path = Path(name)
    if path.suffix == ".yaml":
        return path.stem, path
    known = sorted(file.stem for file in BASELINES.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"no algorithm {name!r} in {BASELINES}; there are: {', '.join(known) or 'none'}")
    return name, BASELINES / f"{name}.yaml"


def _plan(directory: Path, name: str, file: Path, task: str, seed: int, steps: int, overrides: Sequence[str]) -> Plan:
    folder = RunFolder(directory / name / task.replace(":", "_") / f"seed{seed}")
    settings = (*overrides, f"environment.task={task}", f"seed={seed}", f"training.total_steps={steps}")
    settings = (*settings, "training.threads=1")
    config = load_run_config(file, settings)
    if steps % config.training.evaluation_period:
        raise ConfigError(
            f"--steps {steps} must be a multiple of training.evaluation_period {config.training.evaluation_period}, "
            "so that the last evaluation is of the final policy"
        )
    if folder.config_file.exists():
        changed = differences(load_run_config(folder.config_file), config)
        changed.pop("training.total_steps", None)  # a longer or shorter comparison of the same runs
        if changed:
            text = "; ".join(f"{key}: {before} there, {after} here" for key, (before, after) in changed.items())
            raise ConfigError(f"{folder.path} holds a run of other settings ({text}): give another --dir")
    return Plan(name, task, seed, file, settings, config, folder)


def is_finished(plan: Plan) -> bool:
    """Whether the run holds the evaluation at the last step."""
    if not plan.folder.evaluations_file.exists():
        return False
    with plan.folder.evaluations_file.open(newline="") as stream:
        steps = [int(row["environment_steps"]) for row in csv.DictReader(stream)]
    return plan.config.training.total_steps in steps


def train_all(plans: Sequence[Plan], jobs: int) -> list[Plan]:
    """Train in separate processes, at most `jobs` at a time; returns those that failed.

    An exception, Ctrl-C among them, lets the running ones save and stop.
    """
    waiting = list(plans)
    running: list[tuple[Plan, subprocess.Popen[bytes]]] = []
    failed: list[Plan] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                plan = waiting.pop(0)
                print(f"training {plan.folder.path}", flush=True)
                running.append((plan, _start(plan)))
            time.sleep(0.2)
            ended = [item for item in running if item[1].poll() is not None]
            running = [item for item in running if item not in ended]
            failed += [plan for plan, process in ended if process.returncode or not is_finished(plan)]
    finally:
        for _, process in running:
            process.send_signal(signal.SIGTERM)
        for _, process in running:
            process.wait()
    return failed


def _start(plan: Plan) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mpo_robot.cli.main", "train", "--quiet"]
    if plan.folder.config_file.exists() and any(plan.folder.checkpoints.glob("step_*")):
        command += ["--resume", str(plan.folder.path), f"training.total_steps={plan.config.training.total_steps}"]
    else:
        plan.folder.config_file.unlink(missing_ok=True)  # it was stopped before its first checkpoint: start again
        plan.folder.evaluations_file.unlink(missing_ok=True)
        plan.folder.metrics_file.unlink(missing_ok=True)
        command += ["--config", str(plan.config_file), "--run", str(plan.folder.path), *plan.overrides]
    plan.log_file.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with plan.log_file.open("ab") as stream:
        # A group of its own: Ctrl-C reaches the trainings once, from `train_all`.
        return subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
