"""Where the CPU time of a training goes: environment, acting, replay and update, at one update per step.

    python benchmarks/training_split.py [--steps 1500] [--output FILE]

The training loop itself on HalfCheetah-v4 with the default settings, its parts timed by the CPU time of the process
(one thread, so other programs on the machine do not count as long as they leave the caches alone), with one environment
and with eight. The replay is filled with random rows first, so that samples come from memory and not from the cache as
at the beginning of a training. Evaluations, rows of metrics and checkpoints are left out. Prints a table and writes
JSON with the machine, the commit and the date.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from _record import write_record

from mpo_robot.cli.settings import load_run_config
from mpo_robot.cli.train import make_trainer
from mpo_robot.collection import Shared
from mpo_robot.episode import Episode
from mpo_robot.run_folder import RunFolder
from mpo_robot.sampling import normalize
from mpo_robot.trainer import Trainer

OUTPUT = Path(__file__).parent / "results" / "training_split.json"
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "train" / "halfcheetah-v4.yaml"
PARTS = ("environment", "acting", "insert", "statistics", "sample", "update")
FILLED_ROWS = 200_000
WARMUP = 400
BAR = 0.10


class Stopwatch:
    """CPU time by part, in nanoseconds."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, on the clock."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[part] += time.process_time_ns() - start

        return call


class TimedShared(Shared):
    """`Shared` whose choice of an action, normalisation included, is on a clock."""

    stopwatch: Stopwatch

    def choose(self, *args: Any) -> Any:
        """As of the base class."""
        return self.stopwatch.timed("acting", super().choose)(*args)


def attach(stopwatch: Stopwatch, trainer: Trainer) -> None:
    """Put the parts of a trainer on the clock. Resets count as the environment's."""
    timed, replay, environment = stopwatch.timed, trainer.replay, trainer.environment
    TimedShared.stopwatch = stopwatch
    shared = trainer.collector.shared
    trainer.collector.shared = TimedShared(**{item.name: getattr(shared, item.name) for item in fields(shared)})
    reset = "reset_at" if hasattr(environment, "reset_at") else "reset"
    for part, owner, names in (
        ("environment", environment, ("step", reset)),
        ("insert", replay, ("add", "end_episode")),
        ("statistics", trainer.normalizer, ("update",)),
        ("statistics", trainer.return_scale, ("update",) if reset == "reset" else ("add",)),
        ("sample", replay, ("sample",)),
        ("update", trainer.learner, ("update",)),
    ):
        for name in names:
            setattr(owner, name, timed(part, getattr(owner, name)))


def fill(trainer: Trainer) -> None:
    """Random transitions, so many that they do not fit the processor's caches."""
    rng, spec, steps = np.random.default_rng(0), trainer.environment.spec, 1000
    for _ in range(FILLED_ROWS // (steps + 1)):
        episode = Episode(
            observations=rng.standard_normal((steps + 1, spec.observation_size)).astype(np.float32),
            actions=rng.standard_normal((steps, spec.action_size)).astype(np.float32),
            behavior_log_probs=rng.normal(-8.0, 1.0, steps).astype(np.float32),
            trace_valid=np.ones(steps, np.bool_),
            rewards=rng.standard_normal(steps).astype(np.float32),
            terminated=False,
            spec_hash=spec.spec_hash,
        )
        trainer.replay.add_episode(episode)


def measure(environments: int, steps: int) -> dict[str, Any]:
    """Microseconds per environment step of each part, and what all but the update take relative to it."""
    settings = [
        "training.updates_per_step=1",
        "training.threads=1",
        f"training.environments={environments}",
        f"training.warmup_steps={WARMUP}",
    ]
    with tempfile.TemporaryDirectory() as directory:
        trainer = make_trainer(load_run_config(CONFIG, settings), RunFolder(Path(directory) / "run"))
    fill(trainer)
    trainer.collector.start(trainer.seed)
    while trainer.environment_steps < 2 * WARMUP:  # the second half is as what follows, to warm up the machine
        trainer._collect_step()
        trainer._learn()
    stopwatch = Stopwatch()
    attach(stopwatch, trainer)
    first_step, first_update = trainer.environment_steps, trainer.learner.learner_steps
    with mock.patch("mpo_robot.trainer.normalize", stopwatch.timed("sample", normalize)):
        start = time.process_time_ns()
        while trainer.environment_steps < first_step + steps:
            trainer._collect_step()
            trainer._learn()
        total = time.process_time_ns() - start
    done, updates = trainer.environment_steps - first_step, trainer.learner.learner_steps - first_update
    if done != updates:
        raise SystemExit(f"{updates} updates in {done} steps: this is not one update per step")
    spent = {part: value / done / 1e3 for part, value in stopwatch.spent.items()}
    spent["loop"] = total / done / 1e3 - sum(spent.values())
    return {
        "environments": environments,
        "steps": done,
        "us_per_step": spent,
        "share_of_total": {part: value / sum(spent.values()) for part, value in spent.items()},
        "bar_parts_over_update": sum(spent[part] for part in PARTS if part not in ("update", "statistics"))
        / spent["update"],
        "all_but_update_over_update": sum(value for part, value in spent.items() if part != "update") / spent["update"],
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """For people."""
    print(f"{'us per step':16}" + "".join(f"{name:>14}" for name in (*PARTS, "loop")) + f"{'rest/update':>14}")
    for name, row in results.items():
        numbers = "".join(f"{value:14.1f}" for value in row["us_per_step"].values())
        print(f"{name:16}{numbers}{row['all_but_update_over_update']:14.1%}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="CPU time of a training by part, at one update per step.")
    parser.add_argument("--steps", type=int, default=1500, help="environment steps that are measured")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    results = {f"{count} environment{'s' * (count > 1)}": measure(count, args.steps) for count in (1, 8)}
    print_table(results)
    met = results["1 environment"]["all_but_update_over_update"] < BAR
    print(f"bar: all but the update below {BAR:.0%} of the update, one environment: {'met' if met else 'missed'}")
    write_record(
        args.output,
        "training_split",
        torch=torch.__version__,
        task="gymnasium:HalfCheetah-v4",
        threads=torch.get_num_threads(),
        replay_rows=FILLED_ROWS,
        parts={
            "environment": "steps and resets",
            "acting": "normalisation, policy, noise, log density",
            "insert": "rows of the replay",
            "statistics": "observation normaliser and return scale",
            "sample": "windows from the replay, normalised",
            "update": "learner",
            "loop": "what is left of the loop",
        },
        results=results,
        bar={"all_but_update_over_update": BAR, "met": met},
    )
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
