"""`mpo-robot ingest`: check episode logs and add the good ones to a run's real replay, without learning."""

from __future__ import annotations

import argparse
from pathlib import Path

from mpo_robot.cli.log_intake import take_in
from mpo_robot.cli.settings import load_run_config
from mpo_robot.continual import ContinualLearner, LearnConfig
from mpo_robot.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of a training")
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR", help="directory of .mcap episode logs")


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    folder = RunFolder(args.run_folder)
    folder.require()
    config = load_run_config(folder.config_file)
    learn_config = LearnConfig(use_simulated_data=False)
    learner = ContinualLearner(folder, config.learner, config.training, learn_config)
    intake = take_in(learner, args.logs)
    if intake.logs:
        learner.save()
    print(
        f"{intake.logs} logs ingested ({intake.steps} steps), {len(intake.rejected)} set aside, "
        f"{len(intake.waiting)} still being written; the real replay of {folder.path} has seen "
        f"{learner.real_steps} steps."
    )
    return 0
