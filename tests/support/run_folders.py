"""Made-up run folders and episode logs for tests of `inspect` and `report`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from deploy.log_writer import EpisodeLogWriter
from mpo_robot.episode import Source, StepRecord
from tests.support.records import SPEC, make_records

METRICS_HEADER = (
    "environment_steps,learner_steps,wall_time_s,steps_per_second,episode_return,loss_critic,temperature,"
    "penalty_temperature,kl_q_rel,kl_mean_rel,kl_stddev_rel,alpha_mean,alpha_stddev,entropy,stddev_mean,"
    "q_mean,q_min,q_max,trace_coefficient_mean,a_column_of_tomorrow"
)
EVALUATIONS = """environment_steps,learner_steps,wall_time_s,return_mean,return_std,return_min,return_max,episodes
2000,800,20.5,110.5,4.0,101.0,118.0,5
4000,1800,41.0,320.25,12.5,300.0,340.0,5
6000,2800,61.5,299.75,8.5,290.0,310.0,5
"""


def metrics_text(rows: int = 12) -> str:
    """metrics.csv: the first two rows come from before the first update and have no learner columns."""
    lines = [METRICS_HEADER, "500,0,1.0,900.0,12.5" + "," * 15, "1000,0,2.0,910.0," + "," * 15]
    for index in range(2, rows):
        step = 500 * (index + 1)
        lines.append(
            f"{step},{step // 2 - 500},{step / 100},95.5,{20 * index},{1 / index},{0.5 / index},3.0,0.9,0.8,1.2,"
            f"{2.0 + index},{10.0 + index},{3 - index / 4},{0.5 / index},{index},{index - 5},{index + 5},0.6,7"
        )
    return "\n".join(lines) + "\n"


def make_run(path: Path, metrics: str | None = None, evaluations: str | None = EVALUATIONS) -> Path:
    """A run folder with everything but policies."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(
        "environment:\n  task: dm_control:walker-walk\nseed: 3\nlearner:\n  discount: 0.99\n"
    )
    record = {
        "seed": 3,
        "command": ["mpo-robot", "train", "--config", "<walker>.yaml"],
        "started_wall_time": "2026-01-02T03:04:05+0000",
        "versions": {"torch": "2.13.0"},
        "machine": {"cores": 2},
        "git": {"commit": "abc123", "dirty": False},
    }
    (path / "run.json").write_text(json.dumps(record))
    (path / "spec.json").write_text(json.dumps(SPEC.to_dict()))
    (path / "metrics.csv").write_text(metrics_text() if metrics is None else metrics)
    if evaluations is not None:
        (path / "evaluations.csv").write_text(evaluations)
    for step in (4000, 6000):
        (path / "checkpoints" / f"step_{step:012d}").mkdir(parents=True)
        (path / "checkpoints" / f"step_{step:012d}" / "state.pt").touch()
    (path / "checkpoints" / "step_000000008000").mkdir()  # was being written
    return path


def make_empty_run(path: Path) -> Path:
    """A run folder whose training has not logged anything yet: it gives no figures."""
    return make_run(path, metrics=METRICS_HEADER + "\n", evaluations=None)


def episode_records(
    episode_id: str, steps: int = 20, version: str = "a" * 64, reward: float = 1.0, misses: int = 0, seed: int = 0
) -> list[StepRecord]:
    """A truncated episode whose first `misses` steps missed their deadline and were taken by the fallback."""
    records = make_records(steps, SPEC, episode_id, seed)
    changes: list[dict[str, Any]] = [
        {
            "reward": reward,
            "policy_version": version,
            "latency_ns": 100_000 + 1_000 * index,
            "wall_time_ns": records[index].wall_time_ns + seed * 10**9,
        }
        for index in range(steps)
    ]
    for index in range(misses):
        changes[index] |= {"source": Source.FALLBACK, "deadline_missed": True, "action_modified": True}
    return [dataclasses.replace(record, **change) for record, change in zip(records, changes)]


def write_log(
    folder: Path, records: list[StepRecord], statistics: dict[str, Any] | None = None, cut_off: bool = False
) -> Path:
    """A closed log of the records, or with `cut_off` what is left of it when its writer is killed."""
    writer = EpisodeLogWriter(folder, SPEC, records[0].episode_id, robot="bench-arm")
    for record in records:
        assert writer.append(record)
    writer.close(statistics)
    if cut_off:
        data = writer.path.read_bytes()
        writer.path.write_bytes(data[: len(data) * 2 // 3])
    return writer.path
