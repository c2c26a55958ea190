"""Steps per second of the environments, nominal and randomised, beside the raw simulators they are made of.

    python benchmarks/sim_rate.py [--rounds 15] [--steps 200] [--output FILE]

One process; in each round every variant takes the same number of steps with the same actions, one variant after the
other, timed by the CPU time of the thread (so that other programs on the machine do not count as long as they leave
the caches alone). Resets are timed apart. The raw simulator is `dm_control.suite.load` or the Gymnasium class without
wrappers. Prints a table and writes JSON with the machine, the commit and the date.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

from mpo_robot.run_folder import git_state, processor_name
from sim.backend import quiet_loading
from sim.config import EnvironmentConfig
from sim.dm_control_backend import load_suite
from sim.make import make_environment
from sim.randomization_config import RandomizationConfig, RandomizationTerm

OUTPUT = Path(__file__).parent / "results" / "sim_rate.json"
CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "randomization"
TASKS = (
    "dm_control:cartpole-swingup",
    "dm_control:walker-walk",
    "dm_control:cheetah-run",
    "dm_control:humanoid-run",
    "gymnasium:HalfCheetah-v4",
    "gymnasium:Hopper-v4",
    "gymnasium:Walker2d-v4",
    "gymnasium:Ant-v4",
    "gymnasium:Humanoid-v4",
)
DELAYS = (
    RandomizationTerm("action_delay", low=1, high=3),
    RandomizationTerm("observation_delay", low=1, high=3),
)


class Variant:
    """One thing to step."""

    def __init__(self, reset: Callable[[], Any], step: Callable[[Any], bool]):
        """`step` returns whether the episode has ended."""
        self._reset, self._step = reset, step
        self.step_us: list[float] = []
        self.reset_us: list[float] = []

    def round(self, actions: np.ndarray, keep: bool) -> None:
        """Reset, then take the actions, restarting if an episode ends; note the CPU time per step and per reset."""
        stepping, resetting, resets = 0, self._timed_reset(), 1
        start = time.thread_time_ns()
        for action in actions:
            if self._step(action):
                stepping += time.thread_time_ns() - start
                resetting += self._timed_reset()
                resets += 1
                start = time.thread_time_ns()
        stepping += time.thread_time_ns() - start
        if keep:
            self.step_us.append(stepping / len(actions) / 1e3)
            self.reset_us.append(resetting / resets / 1e3)

    def _timed_reset(self) -> int:
        start = time.thread_time_ns()
        self._reset()
        return time.thread_time_ns() - start


def raw_simulator(task: str) -> Variant:
    """The simulator as its users know it."""
    backend, _, name = task.partition(":")
    with quiet_loading():
        if backend == "dm_control":
            domain, _, task_name = name.rpartition("-")
            raw = load_suite().load(domain, task_name, task_kwargs={"random": 0})
            return Variant(raw.reset, lambda action: raw.step(action).last())
        entry_point = gymnasium.spec(name).entry_point
        assert isinstance(entry_point, str)
        environment = load_env_creator(entry_point)()
    return Variant(environment.reset, lambda action: any(environment.step(action)[2:4]))


def environment(task: str, randomization: RandomizationConfig | str | None) -> Variant:
    """Ours."""
    made = make_environment(EnvironmentConfig(task, randomization))

    def step(action: Any) -> bool:
        result = made.step(action)
        return result.terminated or result.truncated

    return Variant(made.reset, step)


def measure(task: str, rounds: int, steps: int) -> dict[str, Any]:
    """Medians over all rounds, and steps per second relative to the raw simulator."""
    light = EnvironmentConfig(task, str(CONFIGS / "light.yaml")).resolved().randomization
    assert isinstance(light, RandomizationConfig)
    variants = {
        "raw": raw_simulator(task),
        "nominal": environment(task, None),
        "light": environment(task, light),
        "light + delays": environment(task, RandomizationConfig(light.terms + DELAYS)),
    }
    spec = make_environment(EnvironmentConfig(task)).spec
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, spec.action_size)).astype(np.float32)
    commands = spec.to_command(actions)
    for index in range(rounds + 1):
        for name, variant in variants.items():
            variant.round(commands if name == "raw" else actions, keep=index > 0)
    step_us = {name: float(np.median(variant.step_us)) for name, variant in variants.items()}
    return {
        "step_us": step_us,
        "reset_us": {name: float(np.median(variant.reset_us)) for name, variant in variants.items()},
        "steps_per_second": {name: 1e6 / value for name, value in step_us.items()},
        "rate_over_raw": {name: step_us["raw"] / value for name, value in step_us.items()},
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """For people."""
    names = next(iter(results.values()))["step_us"]
    print(f"{'steps/s (ratio to raw)':30}" + "".join(f"{name:>20}" for name in names))
    for task, row in results.items():
        cells = (f"{row['steps_per_second'][name]:,.0f} ({row['rate_over_raw'][name]:.2f})" for name in names)
        print(f"{task:30}" + "".join(f"{cell:>20}" for cell in cells))


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200, help="per variant and round")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    results = {task: measure(task, arguments.rounds, arguments.steps) for task in arguments.tasks}
    print_table(results)
    record = {
        "benchmark": "sim_rate",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git": git_state(),
        "machine": {"cpu": processor_name(), "cores": os.cpu_count(), "load_average_1min": os.getloadavg()[0]},
        "versions": {name: importlib.metadata.version(name) for name in ("mujoco", "dm-control", "gymnasium", "numpy")},
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "results": results,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
