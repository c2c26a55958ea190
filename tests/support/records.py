"""Step records for log tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mpo_robot.episode import Source, StepRecord
from mpo_robot.specs import PolicySpec
from tests.support.onnx_files import small_spec

SPEC = small_spec()


def make_records(count: int, spec: PolicySpec = SPEC, episode_id: str = "test", seed: int = 0) -> list[StepRecord]:
    """Consecutive random records; the last one is truncated."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((count + 1, spec.observation_size)).astype(np.float32)
    records = []
    for index in range(count):
        action = rng.standard_normal(spec.action_size).astype(np.float32)
        command = spec.to_command(action)
        records.append(
            StepRecord(
                episode_id=episode_id,
                step_index=index,
                observation=states[index],
                policy_action=action,
                sent_action=spec.to_action(command),
                command=command,
                applied_command=command,
                action_modified=False,
                behavior_log_prob=float(rng.standard_normal()),
                reward=float(rng.standard_normal()),
                terminated=False,
                truncated=index == count - 1,
                next_observation=states[index + 1],
                policy_version="a" * 64,
                spec_hash=spec.spec_hash,
                source=Source.POLICY,
                latency_ns=123_456,
                monotonic_ns=1_000_000 * index,
                wall_time_ns=1_700_000_000_000_000_000 + 1_000_000 * index,
            )
        )
    return records


def identity(record: StepRecord) -> tuple[Any, ...]:
    """Everything in a record in a form that compares bit for bit, NaN included."""
    values = []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            value = (value.dtype.str, value.shape, value.tobytes())
        elif isinstance(value, float):
            value = np.float64(value).tobytes()
        values.append(value)
    return tuple(values)
