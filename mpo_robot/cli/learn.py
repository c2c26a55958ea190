"""`mpo-robot learn`: continue learning off-policy from episode logs and publish new policy versions."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tqdm import trange

from deploy.registry import PolicyRegistry
from mpo_robot.cli.log_intake import Intake, take_in
from mpo_robot.cli.settings import RunConfig, load_run_config, training_record
from mpo_robot.cli.settings_list import add_settings_option
from mpo_robot.compute import configure_compute
from mpo_robot.config import load_config
from mpo_robot.continual import ContinualLearner, LearnConfig
from mpo_robot.export import export_policy
from mpo_robot.run_folder import CsvLog, RunFolder

COLUMNS = ("real_steps", "learner_steps", "logs", "real_return_mean", "policy_version")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of a training")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example real_fraction=0.5")
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR", help="directory of .mcap episode logs")
    parser.add_argument("--watch", action="store_true", help="go on as new logs arrive, until Ctrl-C")
    parser.add_argument("--poll", type=float, default=1.0, metavar="S", help="with --watch: seconds between looks")
    parser.add_argument("--min-new-steps", type=int, default=1, help="real steps to wait for before a round of updates")
    parser.add_argument("--publish", type=Path, metavar="DIR", help="policy registry (default: RUN/policies)")
    parser.add_argument("--no-publish", action="store_true", help="learn and save only")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_settings_option(parser, lambda: {"": LearnConfig})


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    folder = RunFolder(args.run_folder)
    folder.require()
    config = load_run_config(folder.config_file)
    configure_compute(config.training.threads)
    learn_config = load_config(LearnConfig, {}, args.overrides)
    learner = ContinualLearner(folder, config.learner, config.training, learn_config)
    registry = None if args.no_publish else PolicyRegistry(args.publish or folder.policies)
    table = CsvLog(folder.path / "learn.csv", (*COLUMNS, *learner.learner.metric_names))
    print(
        f"Learning from {args.logs} into {folder.path}: {learn_config.real_fraction:.0%} real data per batch, "
        f"{len(learner.ledger)} logs known ({learner.real_steps} steps)"
        f"{', watching (Ctrl-C stops)' if args.watch else ''}"
    )
    pending = 0
    try:
        while True:
            intake = take_in(learner, args.logs)
            pending += intake.steps
            if pending and pending >= args.min_new_steps:
                learn_round(learner, config, intake, pending, registry, table, args.quiet)
                pending = 0
            elif intake.logs:
                learner.save()
            if not args.watch:
                if not intake.logs:
                    print("no new logs: nothing learnt")
                return 0
            time.sleep(args.poll)
    except KeyboardInterrupt:
        # Whatever was ingested since the last save is still in the log directory and is taken in again next time.
        print("stopped; the last finished round is saved")
        return 0


def learn_round(
    learner: ContinualLearner,
    config: RunConfig,
    intake: Intake,
    new_steps: int,
    registry: PolicyRegistry | None,
    table: CsvLog,
    quiet: bool,
) -> None:
    """Updates for `new_steps` new real steps, then save, then publish."""
    updates = learner.config.updates_for(new_steps)
    metrics = None
    for index in trange(updates, unit="update", disable=quiet, file=sys.stderr):
        metrics = learner.update(want_metrics=index == updates - 1)
    learner.save()
    version = publish(learner, config, registry) if registry is not None else ""
    row = {
        "real_steps": learner.real_steps,
        "learner_steps": learner.learner.learner_steps,
        "logs": len(learner.ledger),
        "real_return_mean": sum(intake.returns) / len(intake.returns) if intake.returns else "",
        "policy_version": version,
    }
    table.append(row | ({} if metrics is None else metrics._asdict()))
    print(
        f"{updates} updates on {new_steps} new real steps ({learner.real_steps} in all)"
        f"{f'; published policy {version[:12]}' if version else ''}",
        flush=True,
    )


def publish(learner: ContinualLearner, config: RunConfig, registry: PolicyRegistry) -> str:
    """Export the learner's policy through the parity gate and put it in force; returns its version."""
    loaded = learner.policy()
    training = training_record(config, loaded.training)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "policy.onnx"
        export_policy(loaded.policy, loaded.normalizer, loaded.spec, path, training)
        return registry.publish(path)
