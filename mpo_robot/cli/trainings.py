"""Trainings in processes of their own, several at a time: started or continued, and stopped together."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from mpo_robot.cli.settings import RunConfig, check_settings, load_recorded_config, load_run_config
from mpo_robot.config import differences
from mpo_robot.errors import ConfigError
from mpo_robot.learners import require_fitting
from mpo_robot.run_folder import RunFolder, complete_rows
from mpo_robot.settings_check import idle_settings
from mpo_robot.specs import PolicySpec
from sim.config import EnvironmentConfig
from sim.make import make_environment

POLL_S = 0.2
# Settings that a command gives to its trainings itself, and what does.
FIXED_BY_SEEDS = {"seed": "--seeds sets it", "training.threads": "each run has one thread"}
FIXED_BY_STUDY = FIXED_BY_SEEDS | {"training.total_steps": "--steps sets it"}


class Training(NamedTuple):
    """One training: `train --config config_file --run folder overrides`, which is `config`."""

    config_file: Path
    overrides: tuple[str, ...]
    config: RunConfig
    folder: RunFolder

    @property
    def log_file(self) -> Path:
        """What the training printed."""
        return self.folder.path.with_name(self.folder.path.name + ".log")

    @property
    def may_go_on(self) -> bool:
        """Whether the folder holds a checkpoint to continue from."""
        return self.folder.config_file.exists() and any(self.folder.checkpoints.glob("step_*"))

    @property
    def is_finished(self) -> bool:
        """Whether the last step was evaluated, and saved unless someone deleted all checkpoints since."""
        total = self.config.training.total_steps
        saved = [int(path.name.split("_")[1]) for path in self.folder.checkpoints.glob("step_*")]
        evaluated = [int(row["environment_steps"]) for row in self.evaluations()]
        return max(evaluated, default=0) >= total and max(saved, default=total) >= total

    def evaluations(self) -> list[dict[str, str]]:
        """Complete rows of evaluations.csv so far."""
        return list(complete_rows(self.folder.evaluations_file))

    def curve(self, last_step: int) -> dict[int, float]:
        """Mean return by environment steps, up to `last_step` as far as the training has come.

        With repeated actions or several environments an evaluation comes up to one turn late, so the first one at or
        above `last_step` is that of `last_step`.
        """
        returns = {int(row["environment_steps"]): float(row["return_mean"]) for row in self.evaluations()}
        curve = {step: returns[step] for step in sorted(returns) if step < last_step}
        reached = [step for step in returns if step >= last_step]
        return curve | ({last_step: returns[min(reached)]} if reached else {})


class Outcome(NamedTuple):
    """How trainings ended: which failed, and whether all were asked to stop."""

    failed: list[Training]
    interrupted: bool


def add_study_arguments(parser: argparse.ArgumentParser, directory: Path) -> None:
    """Options of a study of several trainings; its runs and result go to `directory` unless `--dir` says otherwise."""
    parser.add_argument("--seeds", default="0,1", help="comma-separated (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps of each training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one thread each")
    parser.add_argument(
        "--dir", type=Path, default=directory, help="folder of the runs and of the result (default: %(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every training")


def refuse_settings(settings: Iterable[str], fixed: Mapping[str, str]) -> None:
    """Refuse settings that the command itself gives to its trainings: they would be lost without a word.

    Args:
        settings: `key=value`, or keys alone.
        fixed: Keys, and why they cannot be set.

    Raises:
        ConfigError: one of them is among the settings.
    """
    for key in (setting.partition("=")[0].strip() for setting in settings):
        if key in fixed:
            raise ConfigError(f"{key} cannot be set here: {fixed[key]}")


def check_study_arguments(args: argparse.Namespace) -> None:
    """Refuse numbers of jobs or steps below one.

    Raises:
        ConfigError: one of them is.
    """
    if args.jobs < 1 or args.steps < 1:
        raise ConfigError("--jobs and --steps must be at least 1")


def check_last_evaluation(training: Training) -> None:
    """Refuse a number of steps (of `--steps`) after which the final policy would not be evaluated.

    Raises:
        ConfigError: it is no multiple of the evaluation period.
    """
    steps, period = training.config.training.total_steps, training.config.training.evaluation_period
    if steps % period:
        raise ConfigError(
            f"--steps {steps} must be a multiple of training.evaluation_period {period}, "
            "so that the last evaluation is of the final policy"
        )


def parse_seeds(text: str) -> list[int]:
    """Seeds of an option such as `0,1,2`.

    Raises:
        ConfigError: no whole numbers, negative ones, or one twice.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds must be whole numbers with commas between, got {text!r}") from error
    if min(seeds) < 0:
        raise ConfigError(f"--seeds must not be negative, got {text}")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds names something twice: {text}")
    return seeds


def plan_training(config_file: Path, overrides: Sequence[str], folder: RunFolder) -> Training:
    """A training of one thread, checked against what the folder may hold already.

    Raises:
        ConfigError: a bad setting, one that makes no sense in a new training, or the folder holds a run of others.
    """
    settings = (*overrides, "training.threads=1")
    config = load_run_config(config_file, settings)
    training = Training(config_file, settings, config, folder)
    spec = task_spec(config.environment.nominal())
    require_fitting(spec, config.learner, config.training.environments)
    if training.may_go_on or training.is_finished:
        before = load_recorded_config(folder).resolved()
        changed = differences(before, config)
        # The same run, longer or shorter; or of an earlier version that took settings without an effect.
        for key in (
            "training.total_steps",
            *idle_settings(before.training, before.learner, spec.num_actions is not None),
        ):
            changed.pop(key, None)
        if changed:
            text = "; ".join(f"{key}: {before} there, {after} here" for key, (before, after) in changed.items())
            raise ConfigError(f"{folder.path} holds a run of other settings ({text}): move it, or use another folder")
    else:
        check_settings(config, spec.num_actions, refuse=True)
    return training


@cache
def task_spec(environment: EnvironmentConfig) -> PolicySpec:
    """What a policy of a task observes and commands."""
    return make_environment(environment).spec


def run_trainings(
    trainings: Sequence[Training], jobs: int, watch: Callable[[Training], None] = lambda training: None
) -> Outcome:
    """Train in separate processes, at most `jobs` at a time, until all have ended.

    Ctrl-C or SIGTERM makes the running ones save and stop, and starts no other. So does an exception.

    Args:
        watch: Called several times a second for each running training, and once when it has ended.
    """
    waiting = list(trainings)
    running: list[tuple[Training, subprocess.Popen[bytes]]] = []
    failed: list[Training] = []
    requests: list[int] = []

    def request_stop(signum: int, frame: FrameType | None) -> None:
        requests.append(signum)

    handlers = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    asked = False
    try:
        while (waiting and not requests) or running:
            while waiting and len(running) < jobs and not requests:
                training = waiting.pop(0)
                print(f"training {training.folder.path}", flush=True)
                running.append((training, _start(training)))
            time.sleep(POLL_S)
            if requests and not asked:
                asked = True
                print("stopping: the trainings save first", flush=True)
                _ask_to_stop(process for _, process in running)
            ended = [item for item in running if item[1].poll() is not None]
            for training, _ in running:
                watch(training)
            running = [item for item in running if item not in ended]
            failed += [training for training, process in ended if not _ended_well(training, process.returncode, asked)]
    finally:
        _ask_to_stop(process for _, process in running)
        for _, process in running:
            process.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Outcome(failed, bool(requests))


def train_missing(trainings: Sequence[Training], directory: Path, jobs: int) -> list[Training]:
    """Train those of a study in `directory` that are not finished; returns the ones that failed, which are named.

    Raises:
        KeyboardInterrupt: all were asked to stop, and have saved.
    """
    missing = [training for training in trainings if not training.is_finished]
    print(f"{len(trainings)} trainings in {directory}, {len(trainings) - len(missing)} finished already", flush=True)
    outcome = run_trainings(missing, jobs)
    if outcome.interrupted:
        raise KeyboardInterrupt
    for training in outcome.failed:
        print(f"failed: {training.folder.path}, see {training.log_file}", file=sys.stderr)
    return outcome.failed


def _ended_well(training: Training, code: int, asked_to_stop: bool) -> bool:
    if asked_to_stop:
        return code in (0, 130, -signal.SIGTERM)  # finished; saved and stopped; not begun yet
    return code == 0 and training.is_finished


def _ask_to_stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)


def _start(training: Training) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mpo_robot.cli.main", "train", "--quiet"]
    if training.may_go_on:
        total = training.config.training.total_steps
        command += ["--resume", str(training.folder.path), f"training.total_steps={total}"]
    else:  # nothing there, or stopped before its first checkpoint
        command += ["--config", str(training.config_file), "--run", str(training.folder.path), *training.overrides]
    training.log_file.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with training.log_file.open("ab") as stream:
        # A session of its own: Ctrl-C reaches the trainings once, from `run_trainings`.
        return subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
