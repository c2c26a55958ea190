"""`mpo-robot bench sensitivity`: vary one setting at a time around a configuration and plot the returns."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpo_robot.cli.trainings import (
    FIXED_BY_STUDY,
    Training,
    add_study_arguments,
    check_last_evaluation,
    check_study_arguments,
    parse_seeds,
    plan_training,
    refuse_settings,
    train_missing,
)
from mpo_robot.config import parse_scalar, to_dict
from mpo_robot.errors import ConfigError
from mpo_robot.report.sensitivity_chart import Variation, draw_sensitivity
from mpo_robot.run_folder import RunFolder

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "train" / "halfcheetah-v4.yaml"
DEFAULT_VARIATIONS = (
    "learner.batch_sequences=8,16,32",
    "learner.learning_rate_policy=3e-4,1e-3,3e-3",
    "learner.learning_rate_critic=3e-4,1e-3,3e-3",
    "learner.mpo.epsilon=0.1,0.3,1.0",
    "learner.mpo.epsilon_mean=0.003,0.01,0.03",
    "learner.mpo.epsilon_stddev=5e-6,2e-5,1e-4",
)
BASE = "base"


class Plan(NamedTuple):
    """One training: a setting at another value than the base's, or the base itself (`setting` is then `base`)."""

    setting: str
    value: Any
    seed: int
    training: Training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the study."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the base (default: HalfCheetah-v4)")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=V1,V2,...",
        help="a setting and its values; repeat for others (default: batch, learning rates and the three epsilons)",
    )
    add_study_arguments(parser, Path("runs/sensitivity"))


def run(args: argparse.Namespace) -> int:
    """Execute the command: train what is missing, then write and print the study."""
    plans, base_values = make_plans(args)
    failed = train_missing([plan.training for plan in plans], args.dir, args.jobs)
    finished = [plan for plan in plans if plan.training.is_finished]
    print(write_study(args.dir, finished, base_values, args.steps))
    return 1 if failed else 0


def make_plans(args: argparse.Namespace) -> tuple[list[Plan], dict[str, Any]]:
    """All trainings, checked before the first one starts, and the base's value of every varied setting.

    Raises:
        ConfigError: a bad option or setting, or a run of other settings in the folder.
    """
    check_study_arguments(args)
    common = (*args.overrides, f"training.total_steps={args.steps}")
    seeds = parse_seeds(args.seeds)
    parsed = [_parse_variation(option) for option in args.vary or DEFAULT_VARIATIONS]
    variations = dict(parsed)
    if len(variations) < len(parsed):
        raise ConfigError("--vary names a setting twice: give all its values at once")
    refuse_settings((*args.overrides, *variations), FIXED_BY_STUDY)
    plans = [_plan(args.config, args.dir, common, BASE, None, seed) for seed in seeds]
    config = to_dict(plans[0].training.config)
    base_values: dict[str, Any] = {}
    for setting, values in variations.items():
        plans += [
            _plan(args.config, args.dir, common, setting, value, seed)
            for value in values
            for seed in seeds
            if value != _lookup(config, setting)
        ]
        base_values[setting] = _lookup(config, setting)
    return plans, base_values


def _parse_variation(option: str) -> tuple[str, list[Any]]:
    setting, separator, text = option.partition("=")
    values = [_value(parse_scalar(part)) for part in re.split(r",(?![^\[]*\])", text)]  # not at commas inside brackets
    if not separator or not text or any(isinstance(value, dict) for value in values):
        raise ConfigError(f"--vary must look like learner.mpo.epsilon=0.03,0.1,0.3, got {option!r}")
    if len(set(values)) < len(values):
        raise ConfigError(f"--vary {option!r} names a value twice")
    return setting.strip(), values


def _value(value: Any) -> Any:
    """The value such that it can be a key: a list such as [256, 256] is a text, as YAML reads it."""
    return str(value) if isinstance(value, list) else value


def _lookup(config: Mapping[str, Any], setting: str) -> Any:
    value: Any = config
    for key in setting.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return _value(value)


def _plan(config: Path, directory: Path, common: Sequence[str], setting: str, value: Any, seed: int) -> Plan:
    name = BASE if setting == BASE else f"{setting}={value}".replace("/", "_")
    own = () if setting == BASE else (f"{setting}={'null' if value is None else value}",)
    folder = RunFolder(directory / name / f"seed{seed}")
    training = plan_training(config, (*common, *own, f"seed={seed}"), folder)
    check_last_evaluation(training)
    return Plan(setting, value, seed, training)


def write_study(directory: Path, plans: Sequence[Plan], base_values: Mapping[str, Any], last_step: int) -> str:
    """Write sensitivity.csv and sensitivity.png; returns a table as text.

    `return` is that of the last evaluation, `mean_return` the mean over all of them (the area under the curve).

    Raises:
        ConfigError: no base run has finished.
    """
    results: dict[tuple[str, Any], list[tuple[int, float, float]]] = {}
    for plan in plans:
        returns = list(plan.training.curve(last_step).values())
        results.setdefault((plan.setting, plan.value), []).append((plan.seed, returns[-1], float(np.mean(returns))))
    if (BASE, None) not in results:
        raise ConfigError(f"the base run has not finished, see {directory / BASE}")
    base = results.pop((BASE, None))
    variations = []
    for setting, base_value in base_values.items():
        points = {value: rows for (name, value), rows in results.items() if name == setting}
        points[base_value] = base
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in points)
        ordered = sorted(points, key=float) if numeric else list(points)
        variations.append(
            Variation(setting, base_value, ordered, [np.array([row[1:] for row in points[value]]) for value in ordered])
        )
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        {"setting": name, "value": value, "seed": seed, "return": last, "mean_return": average}
        for (name, value), runs in [((BASE, ""), base), *results.items()]
        for seed, last, average in runs
    ]
    with (directory / "sensitivity.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw_sensitivity(directory / "sensitivity.png", variations, last_step)
    lines = [f"Returns after {last_step:,} environment steps; in brackets the mean over all evaluations."]
    for item in variations:
        lines.append(item.setting)
        for value, outcome in zip(item.values, item.outcomes):
            last, average = outcome.mean(axis=0)
            mark = "  (base)" if value == item.base else ""
            seeds = "1 seed" if len(outcome) == 1 else f"{len(outcome)} seeds"
            lines.append(f"  {value!s:<10} {last:10.1f} ({average:.1f}), {seeds}{mark}")
    return "\n".join([*lines, f"Written to {directory}: sensitivity.csv, sensitivity.png"])
