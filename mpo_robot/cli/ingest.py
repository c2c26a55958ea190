"""`mpo-robot ingest`: check episode logs and add the good ones to a run's real replay, without learning."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from deploy.stopping import StopSignals
from mpo_robot.cli.log_intake import LogIntake
from mpo_robot.cli.settings import load_recorded_config
from mpo_robot.cli.settings_list import add_settings_option
from mpo_robot.continual import ContinualLearner
from mpo_robot.learn_config import LearnConfig, load_learn_config, remember
from mpo_robot.rewards import load_reward_hook
from mpo_robot.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of a training")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="the settings of `learn`, for example reward=my_robot:reward"
    )
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR", help="directory of .mcap episode logs")
    add_settings_option(parser, lambda: {"": LearnConfig})


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    folder = RunFolder(args.run_folder)
    config = load_recorded_config(folder)
    settings = load_learn_config(folder, args.overrides)
    reward = None if settings.reward is None else load_reward_hook(settings.reward, settings.reward_for == "all")
    with StopSignals() as signals, folder.in_use():
        learner = ContinualLearner(folder, config.learner, config.training, replace(settings, use_simulated_data=False))
        remember(folder, settings)
        logs = LogIntake(learner, args.logs, reward)
        intake = logs.take_in(signals.requested)
        if intake.logs:
            learner.save()
        logs.mark()
    print(
        f"{intake.logs} logs ingested ({intake.steps} steps), {len(intake.rejected)} set aside, "
        f"{f'{len(intake.foreign)} of another interface left alone, ' if intake.foreign else ''}"
        f"{len(intake.waiting)} to wait for; the real replay of {folder.path} has seen "
        f"{learner.real_steps} steps, {learner.unlearnt_steps} of them not learnt from yet."
    )
    return 0
