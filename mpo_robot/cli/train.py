"""`mpo-robot train`: train a policy, or continue a run."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

from tqdm import tqdm

from mpo_robot.cli import train_seeds
from mpo_robot.cli.settings import RunConfig, check_settings, load_recorded_config, load_run_config
from mpo_robot.cli.settings_list import add_settings_option
from mpo_robot.compute import configure_compute
from mpo_robot.config import differences, dump_yaml
from mpo_robot.errors import ConfigError
from mpo_robot.evaluation import Evaluation, evaluated_action
from mpo_robot.learners import require_fitting
from mpo_robot.run_folder import RunFolder
from mpo_robot.trainer import Trainer
from mpo_robot.types import Environment, EnvironmentVector
from sim.make import make_environment
from sim.vector import VectorEnvironment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example learner.mpo.num_samples=20")
    parser.add_argument("--config", type=Path, help="YAML file, see configs/train/")
    parser.add_argument(
        "--run",
        type=Path,
        help="run folder to create (default: runs/<config name>-seed<seed>); with --seeds, what comes before -seed<K>",
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue this run from its newest checkpoint")
    parser.add_argument("--seeds", metavar="K,K", help="one run per seed, side by side; give it again to go on")
    parser.add_argument("--jobs", type=int, help="runs at a time with --seeds (default: one per core)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar; with --seeds, no evaluations")
    add_settings_option(parser, lambda: {"": RunConfig})


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    if args.seeds is not None:
        return train_seeds.run(args)
    if args.jobs is not None:
        raise ConfigError("--jobs is for several runs: give --seeds 0,1 too")
    if (args.config is None) == (args.resume is None):
        raise ConfigError("give either --config FILE to start a run or --resume RUN to continue one")
    if args.resume is not None:
        if args.run is not None:
            raise ConfigError("--run names a new run's folder; --resume continues in its own: leave --run out")
        folder = RunFolder(args.resume)
        earlier = load_recorded_config(folder).resolved()
        config = load_recorded_config(folder, args.overrides).resolved()
    else:
        earlier = None
        config = load_run_config(args.config, args.overrides)
        folder = RunFolder(args.run or Path("runs") / f"{args.config.stem}-seed{config.seed}")
    with folder.in_use():
        trainer = make_trainer(config, folder, resume=args.resume is not None, earlier=earlier)
        return 0 if run_trainer(trainer, config, quiet=args.quiet) else 130


def make_trainer(
    config: RunConfig, folder: RunFolder, resume: bool = False, earlier: RunConfig | None = None
) -> Trainer:
    """A trainer with its environments; creates the run folder, or restores the newest checkpoint.

    Args:
        earlier: With `resume`, the settings in force so far; changes to `config` are written to the run folder.

    Raises:
        ConfigError: the folder cannot be used, the checkpoint does not fit the settings (changed ones are named), or
            those of a new training make no sense.
    """
    changes = {} if earlier is None else differences(earlier, config)
    if "ppo" in changes.get("learner.algorithm", ()):
        raise ConfigError(
            "a run of ppo cannot become one of another algorithm, nor the other way round: their checkpoints have "
            "nothing in common. Start another one with --config"
        )
    configure_compute(config.training.threads)
    environment = _collecting_environment(config)
    require_fitting(environment.spec, config.learner, config.training.environments)
    check_settings(config, environment.spec.num_actions, refuse=not resume)
    evaluation_environment = make_environment(config.nominal_environment())
    if not resume:
        folder.create(dump_yaml(config), environment.spec, config.seed)
    settings = (config.training, config.learner, folder, config.seed, config.environment.action_repeat)
    trainer = _trainer_of(config.learner.algorithm)(environment, evaluation_environment, *settings)
    if resume:
        folder.spec().require_same(environment.spec, "the run", "the environment")
        try:
            trainer.resume()
        except ConfigError as error:
            if not changes:
                raise
            listed = ", ".join(f"{key} from {before} to {after}" for key, (before, after) in changes.items())
            raise ConfigError(f"{error}. Changed were: {listed}") from error
        _require_continuable(changes, trainer.environment_steps)
        folder.record_resume(trainer.environment_steps, changes, dump_yaml(config))
    return trainer


def _require_continuable(changes: Mapping[str, list[Any]], environment_steps: int) -> None:
    """Refuse changes that a run cannot make on its way; what it has on record then stays."""
    if "seed" in changes:
        raise ConfigError("a run keeps its seed: start another one with --config and seed=...")
    total = changes.get("training.total_steps", [None, environment_steps])[1]
    if total < environment_steps:
        raise ConfigError(f"training.total_steps {total} is below the {environment_steps} steps that the run has made")


def _collecting_environment(config: RunConfig) -> Environment | EnvironmentVector:
    count, threads = config.training.environments, config.training.environment_threads
    if count == 1:
        return make_environment(config.environment)
    return VectorEnvironment(config.environment, count, threads)


def _trainer_of(algorithm: str) -> type[Trainer]:
    if algorithm != "ppo":
        return Trainer
    from mpo_robot.baselines.ppo import PPOTrainer

    return cast("type[Trainer]", PPOTrainer)  # all that is used of it here


def run_trainer(trainer: Trainer, config: RunConfig, quiet: bool = False) -> bool:
    """Train with a progress bar; Ctrl-C or SIGTERM saves a checkpoint and stops. Returns whether it came to its end."""
    total = config.training.total_steps
    print(
        f"Training {config.environment.task} for {total:,} environment steps, seed {config.seed}, in "
        f"{trainer.folder.path} (Ctrl-C saves and stops)"
    )
    action = evaluated_action(trainer.evaluation_environment.spec)

    def request_stop(signum: int, frame: FrameType | None) -> None:
        trainer.stop_requested = True

    handlers = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    bar = tqdm(total=total, initial=trainer.environment_steps, unit="step", disable=quiet, file=sys.stderr)

    def show_evaluation(step: int, result: Evaluation) -> None:
        summary = result.summary()
        bar.write(
            f"step {step:>9,}  return {summary['return_mean']:8.1f} +- {summary['return_std']:.1f}"
            f"  ({int(summary['episodes'])} episodes, {action}, {trainer.clock.seconds:.0f} s)",
            file=sys.stdout,
        )
        sys.stdout.flush()

    def show_progress(step: int) -> None:
        bar.update(step - bar.n)

    try:
        trainer.run(show_evaluation, show_progress)
    finally:
        bar.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if trainer.environment_steps < total:
        print(
            f"Stopped at step {trainer.environment_steps:,}. Continue: mpo-robot train --resume {trainer.folder.path}"
        )
        return False
    print(f"Done. Next: mpo-robot export {trainer.folder.path} -o policy.onnx")
    return True
