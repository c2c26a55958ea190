"""`mpo-robot evaluate`: returns of a run's policy or of an ONNX file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from deploy.categorical_policy import OnnxCategoricalPolicy, open_policy
from mpo_robot.cli.settings import load_recorded_config
from mpo_robot.config import build
from mpo_robot.errors import ConfigError
from mpo_robot.evaluation import evaluate, evaluated_action
from mpo_robot.policy_io import load_policy
from mpo_robot.run_folder import RunFolder
from mpo_robot.specs import PolicySpec
from mpo_robot.trainer import EVALUATION_SEED
from mpo_robot.types import FloatArray
from sim.config import EnvironmentConfig
from sim.make import make_environment

UNSEEN_SEEDS = 1_000_000  # added to the seeds of evaluations while training, which chose the best policy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "policy",
        type=Path,
        metavar="RUN|POLICY.onnx",
        help="run folder (what `learn` made of it comes first) or exported policy",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="of a run: the policy of its best evaluation, on other start states than those that chose it",
    )
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--task", help="task to roll out in (default: the task it was trained on)")
    parser.add_argument("--randomization", type=Path, help="YAML file of a randomisation to evaluate under")
    parser.add_argument(
        "--seed", type=int, help="seed of the first episode (default: as in training; of a best policy another)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    if args.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, got {args.episodes}")
    if args.seed is not None and args.seed < 0:
        raise ConfigError(f"--seed must not be negative, got {args.seed}")
    act, spec, environment_config, was_chosen = _load(args.policy, args.best)
    seed = args.seed
    if seed is None:
        seed = EVALUATION_SEED + (UNSEEN_SEEDS if was_chosen else 0)
    if args.task:
        # Of the training's other settings those stay that are part of the interface or of the comparison.
        known = environment_config or EnvironmentConfig(args.task)
        environment_config = replace(known, task=args.task, atari=known.atari if args.task.startswith("ale:") else None)
    if environment_config is None:
        raise ConfigError(f"{args.policy} does not say what task it was trained on: give --task")
    task = environment_config.task
    if args.randomization is not None:
        environment_config = replace(environment_config, randomization=str(args.randomization))
    environment = make_environment(environment_config)
    spec.require_same(environment.spec, "the policy", task)
    result = evaluate(environment, act, args.episodes, seed)
    environment.close()
    summary = result.summary() | {"length_mean": float(result.lengths.mean()), "task": task}
    if args.json:
        print(json.dumps(summary))
    else:
        print(
            f"{task}: return {summary['return_mean']:.1f} +- {summary['return_std']:.1f} "
            f"(min {summary['return_min']:.1f}, max {summary['return_max']:.1f}) over {args.episodes} episodes "
            f"of {summary['length_mean']:.0f} steps, {evaluated_action(spec)}"
        )
    return 0


class Loaded(NamedTuple):
    """What is rolled out.

    Attributes:
        act: Function of the mean, or most probable, action.
        spec: Its interface.
        environment: Nominal environment of its training, if known.
        was_chosen: Whether it is a training's best policy, chosen by the start states of the evaluations there.
    """

    act: Callable[[FloatArray], FloatArray]
    spec: PolicySpec
    environment: EnvironmentConfig | None
    was_chosen: bool


def _load(path: Path, best: bool) -> Loaded:
    if path.is_dir():
        folder = RunFolder(path)
        config = load_recorded_config(folder)
        loaded = load_policy(folder, config.learner, best)
        print(f"Evaluating the {loaded.origin}", file=sys.stderr)
        actor, normalizer = loaded.actor, loaded.normalizer

        def act(observation: FloatArray) -> FloatArray:
            return actor.distribution(observation if normalizer is None else normalizer(observation))[0]

        return Loaded(act, loaded.spec, config.nominal_environment(), best)
    if not path.exists():
        raise ConfigError(f"there is no {path}: give a run folder or an exported policy")
    if best:
        raise ConfigError(f"--best chooses among the policies of a run folder, and {path} is a file: leave it out")
    policy = open_policy(path)
    training = policy.metadata.get("training", {})
    trained_in = training.get("environment")

    def act_on_file(observation: FloatArray) -> FloatArray:
        if isinstance(policy, OnnxCategoricalPolicy):
            return policy.best_action(observation)
        return policy.act(observation, stochastic=False).action

    environment = None if trained_in is None else build(EnvironmentConfig, trained_in, "training.environment.")
    return Loaded(act_on_file, policy.spec, environment, "best_return" in training)
