"""Steps per second of the environments, nominal and randomised, beside the raw simulators they are made of.

    python benchmarks/sim_rate.py [--rounds 15] [--steps 200] [--output FILE]

One process; in each round every variant takes the same number of steps from the same start with the same actions, one
variant after the other, timed by the CPU time of the thread (so that other programs on the machine do not count as long
as they leave the caches alone). Resets are timed apart. The raw simulator is `dm_control.suite.load` or the Gymnasium
class without wrappers. A second table compares `VectorEnvironment` with its members stepped one by one: CPU time for
the overhead, wall time for threads (which depends on what else the machine does). Prints the tables and writes JSON
with the machine, the commit and the date.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from _record import write_record
from gymnasium.envs.registration import load_env_creator

from sim.backend import quiet_loading
from sim.config import EnvironmentConfig
from sim.dm_control_backend import load_suite
from sim.make import make_environment
from sim.randomization_config import RandomizationConfig, RandomizationTerm
from sim.vector import VectorEnvironment

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
VECTOR_TASKS = ("gymnasium:HalfCheetah-v4", "gymnasium:Humanoid-v4", "dm_control:humanoid-run", "dm_control:dog-run")
VECTOR_SIZE, VECTOR_THREADS = 8, 2
DELAYS = (
    RandomizationTerm("action_delay", low=1, high=3),
    RandomizationTerm("observation_delay", low=1, high=3),
)


class Variant:
    """One thing to step."""

    def __init__(self, reset: Callable[[int | None], Any], step: Callable[[Any], bool]):
        """`reset` takes a seed; `step` returns whether the episode has ended."""
        self._reset, self._step = reset, step
        self.step_us: list[float] = []
        self.reset_us: list[float] = []

    def round(self, actions: np.ndarray, seed: int, keep: bool) -> None:
        """Reset by the seed and take the actions, restarting if an episode ends; note CPU time per step and reset."""
        stepping, resetting, resets = 0, self._timed_reset(seed), 1
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

    def _timed_reset(self, seed: int | None = None) -> int:
        start = time.thread_time_ns()
        self._reset(seed)
        return time.thread_time_ns() - start


def raw_simulator(task: str) -> Variant:
    """The simulator as its users know it."""
    backend, _, name = task.partition(":")
    with quiet_loading():
        if backend == "dm_control":
            domain, _, task_name = name.rpartition("-")
            raw = load_suite().load(domain, task_name, task_kwargs={"random": 0})

            def reset(seed: int | None) -> None:
                if seed is not None:
                    raw.task.random.seed(seed)
                raw.reset()

            return Variant(reset, lambda action: raw.step(action).last())
        entry_point = gymnasium.spec(name).entry_point
        assert isinstance(entry_point, str)
        environment = load_env_creator(entry_point)()
    return Variant(lambda seed: environment.reset(seed=seed), lambda action: any(environment.step(action)[2:4]))


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
            variant.round(commands if name == "raw" else actions, seed=index, keep=index > 0)
    step_us = {name: float(np.median(variant.step_us)) for name, variant in variants.items()}
    return {
        "step_us": step_us,
        "reset_us": {name: float(np.median(variant.reset_us)) for name, variant in variants.items()},
        "steps_per_second": {name: 1e6 / value for name, value in step_us.items()},
        "rate_over_raw": {name: step_us["raw"] / value for name, value in step_us.items()},
    }


def measure_vector(task: str, rounds: int, steps: int) -> dict[str, Any]:
    """Time per environment step of single environments, a vector, and a vector with threads; medians and ratios."""
    config = EnvironmentConfig(task)
    single, serial = VectorEnvironment(config, VECTOR_SIZE), VectorEnvironment(config, VECTOR_SIZE)
    threaded = VectorEnvironment(config, VECTOR_SIZE, VECTOR_THREADS)
    shape = (steps, VECTOR_SIZE, single.spec.action_size)
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    def one_by_one() -> None:
        for row in actions:
            for environment, action in zip(single.environments, row):
                result = environment.step(action)
                if result.terminated or result.truncated:
                    environment.reset()

    def together(vector: VectorEnvironment) -> None:
        for row in actions:
            step = vector.step(row)
            for index in np.flatnonzero(step.ended):
                vector.reset_at(index)

    runs = {
        "single": one_by_one,
        "vector": lambda: together(serial),
        f"vector, {VECTOR_THREADS} threads": lambda: together(threaded),
    }
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for vector in (single, serial, threaded):
            vector.reset(seed=index)
        for name, run in runs.items():
            start, start_cpu = time.perf_counter_ns(), time.process_time_ns()
            run()
            if index:
                wall[name].append((time.perf_counter_ns() - start) / actions[..., 0].size / 1e3)
                cpu[name].append((time.process_time_ns() - start_cpu) / actions[..., 0].size / 1e3)
    threaded.close()
    wall_us = {name: float(np.median(values)) for name, values in wall.items()}
    cpu_us = {name: float(np.median(values)) for name, values in cpu.items()}
    return {
        "environments": VECTOR_SIZE,
        "wall_us": wall_us,
        "cpu_us": cpu_us,
        "cpu_rate_over_single": {name: cpu_us["single"] / value for name, value in cpu_us.items()},
        "wall_rate_over_single": {name: wall_us["single"] / value for name, value in wall_us.items()},
    }


def print_vector_table(results: dict[str, dict[str, Any]]) -> None:
    """For people."""
    print(f"\n{'vector of ' + str(VECTOR_SIZE):30}{'rate over single: CPU':>25}{'wall':>10}{'wall, threads':>16}")
    for task, row in results.items():
        cpu, wall = row["cpu_rate_over_single"]["vector"], list(row["wall_rate_over_single"].values())
        print(f"{task:30}{cpu:>25.2f}{wall[1]:>10.2f}{wall[2]:>16.2f}")


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
    parser.add_argument("--vector-rounds", type=int, default=3)
    parser.add_argument("--vector-tasks", nargs="*", default=VECTOR_TASKS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    results = {task: measure(task, arguments.rounds, arguments.steps) for task in arguments.tasks}
    print_table(results)
    sys.stdout.flush()
    vectors = {
        task: measure_vector(task, arguments.vector_rounds, arguments.steps // 8) for task in arguments.vector_tasks
    }
    print_vector_table(vectors)
    write_record(
        arguments.output,
        "sim_rate",
        versions={name: importlib.metadata.version(name) for name in ("mujoco", "dm-control", "gymnasium", "numpy")},
        rounds=arguments.rounds,
        steps=arguments.steps,
        results=results,
        vector=vectors,
    )


if __name__ == "__main__":
    main()
