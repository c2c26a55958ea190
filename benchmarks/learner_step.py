"""Time of one learner update beside its matrix products alone, and beside the same update written the plain way.

    python benchmarks/learner_step.py [--rounds 20] [--output FILE]

The learner runs as it is and with `learner.compile`. The plain version runs with the settings of the process that
training uses (`configure_compute`), and with those of a process that asks for none. One process, one thread, all
variants in turn in each round, CPU time of the thread (so that other programs on the machine do not count as long as
they leave the caches alone). The gradients of the plain version are checked against the learner's first. Prints a table
and writes JSON with the machine, the commit and the date.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _gemm_floor import Sizes, candidates, floating_point_operations, products
from _naive_update import NaiveLearner
from _record import write_record

from mpo_robot.compute import configure_compute, set_heap_thresholds
from mpo_robot.learner import Learner
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.replay import SequenceBatch

OUTPUT = Path(__file__).parent / "results" / "learner_step.json"
OBSERVATION_SIZE, ACTION_SIZE = 17, 6
BAR = 1.15  # of the faster form
GRADIENT_TOLERANCE = 1e-5
NAIVE_BAR = 4.0  # how many times as long the plain version with default settings should take
THREADS = 1
DEFAULTS = "naive, default settings"
LARGEST_AUTOMATIC_THRESHOLD = 32 << 20  # bytes; glibc moves its thresholds up to here by itself


def cases() -> dict[str, LearnerConfig]:
    """The settings that are measured, by name; the bar is for the first two."""
    default = LearnerConfig(discount=0.99, policy_update_period=1)  # every update is a whole one
    hidden = (256, 256)
    plain = dataclasses.replace(
        default,
        policy=dataclasses.replace(default.policy, hidden_sizes=hidden, layer_norm=False),
        critic=dataclasses.replace(default.critic, hidden_sizes=hidden, layer_norm=False, num_critics=2),
        mpo=dataclasses.replace(default.mpo, num_samples=20),
    )
    return {
        "256 transitions (512 states), N=20": dataclasses.replace(plain, batch_sequences=256, sequence_length=1),
        "32 sequences of 8 (288 states), N=20": dataclasses.replace(plain, batch_sequences=32, sequence_length=8),
        "default settings": default,
    }


def make_batch(config: LearnerConfig) -> SequenceBatch:
    """Random rows that are all transitions; one in twenty ends its task (without an episode border after it)."""
    rng = np.random.default_rng(0)
    sequences, steps = config.batch_sequences, config.sequence_length

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return SequenceBatch(
        observation=normal(sequences, steps + 1, OBSERVATION_SIZE),
        action=0.7 * normal(sequences, steps, ACTION_SIZE),
        reward=normal(sequences, steps),
        terminated=(rng.uniform(size=(sequences, steps)) < 0.05).astype(np.float32),
        behavior_log_prob=normal(sequences, steps) - 4.0,
        trace_valid=np.ones((sequences, steps), np.float32),
        is_transition=np.ones((sequences, steps), np.float32),
        policy_state=np.ones((sequences, steps + 1), np.float32),
    )


def sizes(config: LearnerConfig) -> Sizes:
    """Of the update's matrix products."""
    return Sizes(
        sequences=config.batch_sequences,
        steps=config.sequence_length,
        samples=config.mpo.num_samples,
        observation=OBSERVATION_SIZE,
        action=ACTION_SIZE,
        policy_hidden=config.policy.hidden_sizes,
        critic_hidden=config.critic.hidden_sizes,
        critics=config.critic.num_critics,
    )


def check_gradients(config: LearnerConfig, batch: SequenceBatch) -> dict[str, float]:
    """Relative difference of the plain version's gradients to the learner's.

    Raises:
        SystemExit: they differ: the comparison would mean nothing.
    """
    learner = Learner(OBSERVATION_SIZE, ACTION_SIZE, config, seed=0)
    learner.update(batch)  # away from equal online and target networks, where several terms vanish
    naive = NaiveLearner(learner)
    naive.copy_targets(learner)
    learner.backward(batch)
    naive.gradients(batch)
    differences = naive.gradient_differences(learner)
    if not max(differences.values()) < GRADIENT_TOLERANCE:
        raise SystemExit(f"the plain version's gradients differ from the learner's: {differences}")
    return differences


def use_default_settings(largest_block: int) -> None:
    """What a process has that never called `configure_compute`.

    torch's own choice of matrix product, and the heap thresholds that glibc arrives at by itself: the largest block
    freed so far, here of `largest_block` bytes, and twice that (mallopt(3), M_MMAP_THRESHOLD).
    """
    torch.set_float32_matmul_precision("highest")
    threshold = min(largest_block, LARGEST_AUTOMATIC_THRESHOLD)
    set_heap_thresholds(mmap_bytes=threshold, trim_bytes=2 * threshold)


def measure(config: LearnerConfig, rounds: int) -> dict[str, Any]:
    """Milliseconds of each variant (median and smallest of all rounds), and the ratios of the medians."""
    batch = make_batch(config)
    differences = check_gradients(config, batch)
    items = products(sizes(config))
    learner = Learner(OBSERVATION_SIZE, ACTION_SIZE, config, seed=0)
    naive = NaiveLearner(learner)
    floors = candidates(items)
    compiled = Learner(OBSERVATION_SIZE, ACTION_SIZE, dataclasses.replace(config, compile=True), seed=0)
    rows = config.mpo.num_samples * sizes(config).states
    largest_block = 4 * rows * max(config.critic.hidden_sizes) + 4096  # one hidden layer of fp32 and malloc's own bytes
    variants: dict[str, Callable[[], Any]] = {
        "learner": lambda: learner.update(batch),
        "compiled": lambda: compiled.update(batch),
        "naive": lambda: naive.update(batch),
        DEFAULTS: lambda: naive.update(batch),
        **floors,
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + 2):
        for name, run in variants.items():
            if name == DEFAULTS:
                use_default_settings(largest_block)
            else:
                configure_compute(THREADS)
            start = time.thread_time_ns()
            run()
            if index >= 2:  # warm-up
                times[name].append((time.thread_time_ns() - start) / 1e6)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    floor = min(floors, key=lambda name: medians[name])
    return {
        "states": sizes(config).states,
        "num_samples": config.mpo.num_samples,
        "gigaflop": floating_point_operations(items) / 1e9,
        "median_ms": medians,
        "min_ms": {name: min(values) for name, values in times.items()},
        "floor": floor,
        "learner_over_floor": medians["learner"] / medians[floor],
        "compiled_over_floor": medians["compiled"] / medians[floor],
        "naive_over_learner": medians["naive"] / medians["learner"],
        "naive_over_compiled": medians["naive"] / medians["compiled"],
        "naive_with_default_settings_over_compiled": medians[DEFAULTS] / medians["compiled"],
        "naive_gradient_difference": differences,
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """For people."""
    ratios = {
        "eager/floor": "learner_over_floor",
        "compiled/floor": "compiled_over_floor",
        "naive/compiled": "naive_over_compiled",
        "default/compiled": "naive_with_default_settings_over_compiled",
    }
    columns = ("floor ms", "eager ms", "compiled ms", "naive ms", "default ms", *ratios)
    head = f"{'':40}" + "".join(f"{name:>18}" for name in columns)
    print(head)
    for name, row in results.items():
        median = row["median_ms"]
        values = [median[key] for key in (row["floor"], "learner", "compiled", "naive", DEFAULTS)]
        values += [row[key] for key in ratios.values()]
        print(f"{name:40}" + "".join(f"{value:18.2f}" for value in values))
    for name, row in results.items():
        rate = row["gigaflop"] / row["median_ms"][row["floor"]] * 1e3
        print(f"fastest matrix products, {name}: {row['floor']} ({rate:.0f} GFLOP/s)")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Milliseconds per learner update, beside a floor and a plain version.")
    parser.add_argument("--rounds", type=int, default=20, help="each round runs every variant once")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    precision = configure_compute(THREADS)
    torch.manual_seed(0)
    results = {name: measure(config, args.rounds) for name, config in cases().items()}
    print_table(results)
    bar_rows = list(results.values())[:2]
    met = all(min(row["learner_over_floor"], row["compiled_over_floor"]) <= BAR for row in bar_rows)
    print(f"bar: at most {BAR} times the floor at N=20: {'met' if met else 'missed'}")
    naive = min(row["naive_with_default_settings_over_compiled"] for row in bar_rows)
    naive_met = naive >= NAIVE_BAR
    print(
        f"bar: the plain version with default settings takes {NAIVE_BAR} times the compiled learner's time:"
        f" {naive:.2f}, {'met' if naive_met else 'missed'}"
    )
    write_record(
        args.output,
        "learner_step",
        torch=torch.__version__,
        float32_matmul_precision=precision,
        threads=THREADS,
        rounds=args.rounds,
        results=results,
        bar={"over_floor": BAR, "met": met, "naive_over_learner": NAIVE_BAR, "naive_met": naive_met},
    )
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
