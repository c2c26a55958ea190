"""`mpo-robot learn`: continue learning off-policy from episode logs and publish new policy versions."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import trange

from deploy.registry import PolicyRegistry
from deploy.stopping import StopSignals
from mpo_robot.cli.log_intake import Intake, LogIntake
from mpo_robot.cli.publication import Publications
from mpo_robot.cli.settings import RunConfig, load_recorded_config, training_record
from mpo_robot.cli.settings_list import add_settings_option
from mpo_robot.compute import configure_compute
from mpo_robot.continual import ContinualLearner
from mpo_robot.errors import ConfigError
from mpo_robot.export import export_policy
from mpo_robot.learn_config import LearnConfig, load_learn_config, remember
from mpo_robot.rewards import load_reward_hook
from mpo_robot.run_folder import CsvLog, RunFolder

COLUMNS = ("real_steps", "learner_steps", "logs", "real_return_mean", "policy_version")
EPILOG = """\
Settings (key=value) are remembered in RUN/learn/config.yaml for the next `learn` or `ingest` of the run. Ctrl-C and
SIGTERM save what was learnt and stop. A policy that could not be published is published by the next `learn`, with new
logs or without. reward=package.module:function computes rewards that the robot does not know (docs/log_format.md).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.epilog = EPILOG
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of a training")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example real_fraction=0.5")
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR", help="directory of .mcap episode logs")
    parser.add_argument("--watch", action="store_true", help="go on as new logs arrive, until Ctrl-C or SIGTERM")
    parser.add_argument("--poll", type=float, default=1.0, metavar="S", help="with --watch: seconds between looks")
    parser.add_argument("--min-new-steps", type=int, default=1, help="real steps to wait for before a round of updates")
    parser.add_argument("--publish", type=Path, metavar="DIR", help="policy registry (default: RUN/policies)")
    parser.add_argument("--no-publish", action="store_true", help="learn and save only")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_settings_option(parser, lambda: {"": LearnConfig})


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    if args.min_new_steps < 1:
        raise ConfigError(f"--min-new-steps must be at least 1, got {args.min_new_steps}")
    if not 0.0 < args.poll < math.inf:
        raise ConfigError(f"--poll must be a positive number of seconds, got {args.poll:g}")
    folder = RunFolder(args.run_folder)
    config = load_recorded_config(folder)
    configure_compute(config.training.threads)
    settings = load_learn_config(folder, args.overrides)
    reward = None if settings.reward is None else load_reward_hook(settings.reward, settings.reward_for == "all")
    registry = None if args.no_publish else PolicyRegistry(args.publish or folder.policies)
    if registry is not None:
        registry.require_publishable(folder.spec())  # before the work, not after it
    with StopSignals() as signals, folder.in_use():
        learner = ContinualLearner(folder, config.learner, config.training, settings)
        remember(folder, settings)
        table = CsvLog(folder.path / "learn.csv", (*COLUMNS, *learner.learner.metric_names))
        print(_headline(args, learner, settings), flush=True)
        session = LearnSession(learner, config, registry, table, args.min_new_steps, args.quiet, signals.requested)
        return session.run(LogIntake(learner, args.logs, reward), args.poll if args.watch else None)


def _headline(args: argparse.Namespace, learner: ContinualLearner, settings: LearnConfig) -> str:
    return (
        f"Learning from {args.logs} into {args.run_folder}: {settings.real_fraction:.0%} real data per batch, "
        f"{len(learner.ledger) + len(learner.legacy_names)} logs known ({learner.real_steps} steps, "
        f"{learner.unlearnt_steps} of them not learnt from yet)"
        f"{', watching (Ctrl-C stops)' if args.watch else ''}"
    )


@dataclass
class LearnSession:
    """Rounds of ingesting, updating, saving and publishing.

    Attributes:
        learner: What learns.
        config: Configuration of its run.
        registry: Where policies are published; None publishes nothing.
        table: One row per round.
        min_new_steps: Real steps that make a round.
        quiet: No progress bar.
        should_stop: Whether to save and end.
    """

    learner: ContinualLearner
    config: RunConfig
    registry: PolicyRegistry | None
    table: CsvLog
    min_new_steps: int
    quiet: bool
    should_stop: Callable[[], bool]

    def run(self, intake: LogIntake, poll_s: float | None) -> int:
        """One pass, or with `poll_s` one every so many seconds until a stop is asked for. Returns the exit code."""
        while True:
            taken = intake.take_in(self.should_stop)
            learnt = False
            enough = self.learner.unlearnt_steps >= self.min_new_steps and self.learner.can_learn
            if enough and not self.should_stop():
                learnt = True
                self._round(taken)
            elif taken.logs:
                self.learner.save()
            intake.mark()
            if self.should_stop():
                print("stopped; what was ingested and learnt is saved", flush=True)
                return 130 if poll_s is None else 0  # with --watch this is how it ends
            version = self._publish_if_due()
            if poll_s is None:
                self._say_what_is_left(taken, learnt or bool(version))
                return 0
            self._wait(poll_s)

    def _round(self, taken: Intake) -> None:
        """Updates for the real steps not learnt from yet, then save, then publish."""
        learner, new_steps = self.learner, self.learner.unlearnt_steps
        planned, done = learner.config.updates_for(new_steps), 0
        metrics = None
        for index in trange(planned, unit="update", disable=self.quiet, file=sys.stderr):
            if self.should_stop():
                break
            metrics = learner.update(want_metrics=index == planned - 1)
            done += 1
        learner.end_round(done, planned)
        learner.save()
        if done < planned:
            print(f"{done} of {planned} updates done; the next `learn` does the rest", flush=True)
            return
        print(f"{planned} updates on {new_steps} new real steps ({learner.real_steps} in all)", flush=True)
        version = ""
        try:
            version = self._publish_if_due()
        finally:
            row = {
                "real_steps": learner.real_steps,
                "learner_steps": learner.learner.learner_steps,
                "logs": len(learner.ledger) + len(learner.legacy_names),
                "real_return_mean": sum(taken.returns) / len(taken.returns) if taken.returns else "",
                "policy_version": version,
            }
            self.table.append(row | ({} if metrics is None else metrics._asdict()))

    def _publish_if_due(self) -> str:
        """Publish what the newest round learnt, unless this registry has had it; its version, or empty."""
        if self.registry is None or not self.learner.last_round:
            return ""
        published, step = Publications(self.learner.folder), self.learner.last_round
        if published.holds(self.registry.directory, step):
            return ""
        version = publish(self.learner, self.config, self.registry)
        published.note(self.registry.directory, step, version)
        print(f"published policy {version[:12]} to {self.registry.directory}", flush=True)
        return version

    def _say_what_is_left(self, taken: Intake, did_something: bool) -> None:
        left = self.learner.unlearnt_steps
        if left and not self.learner.can_learn:
            length = self.learner.learner.config.sequence_length
            print(f"{left} real steps wait to be learnt from: no sequence of {length} steps is among them yet")
        elif left:
            print(f"{left} real steps wait to be learnt from (--min-new-steps {self.min_new_steps})")
        if taken.waiting:
            print(f"{len(taken.waiting)} logs not taken in yet: run this again in a moment, or with --watch")
        if not (left or taken.waiting or did_something):
            print("no new logs: nothing learnt")

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0 and not self.should_stop():
            time.sleep(min(rest, 0.1))


def publish(learner: ContinualLearner, config: RunConfig, registry: PolicyRegistry) -> str:
    """Export the learner's policy through the parity gate and put it in force; returns its version."""
    loaded = learner.policy()
    training = training_record(config, loaded.training)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "policy.onnx"
        export_policy(loaded.policy, loaded.normalizer, loaded.spec, path, training)
        return registry.publish(path)
