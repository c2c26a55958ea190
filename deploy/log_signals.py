"""The optional `/signals` topic: the numbers of a step under the names of the policy spec, for plotting.

In a plotting tool, `/signals.observation.joint_position[0]` is easier to find than `/step.observation[7]`.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from mpo_robot.episode import StepRecord
from mpo_robot.specs import PolicySpec, TermSpec

_encoder = msgspec.json.Encoder()


def encode_signals(record: StepRecord, spec: PolicySpec) -> bytes:
    """JSON bytes: observation, command and applied_command by term name, reward, latency, flags."""
    return _encoder.encode(
        {
            "step_index": record.step_index,
            "reward": record.reward,
            "latency_ms": record.latency_ns / 1e6,
            "deadline_missed": record.deadline_missed,
            "action_modified": record.action_modified,
            "source": record.source.value,
            "observation": _by_term(record.observation, spec.observation),
            "command": _by_term(record.command, spec.command),
            "applied_command": _by_term(record.applied_command, spec.command),
        }
    )


def signals_json_schema(spec: PolicySpec) -> bytes:
    """JSON schema of `encode_signals` for this spec; units are in the descriptions."""
    properties: dict[str, Any] = {
        "step_index": {"type": "integer"},
        "reward": {"type": "number"},
        "latency_ms": {"type": "number"},
        "deadline_missed": {"type": "boolean"},
        "action_modified": {"type": "boolean"},
        "source": {"type": "string"},
        "observation": _vector_schema(spec.observation),
        "command": _vector_schema(spec.command),
        "applied_command": _vector_schema(spec.command),
    }
    return json.dumps({"title": "mpo_robot.Signals", "type": "object", "properties": properties}).encode()


def _by_term(vector: npt.NDArray[np.float32], terms: tuple[TermSpec, ...]) -> dict[str, list[float]]:
    values, start, named = vector.tolist(), 0, {}
    for term in terms:
        named[term.name] = values[start : start + term.size]
        start += term.size
    return named


def _vector_schema(terms: tuple[TermSpec, ...]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            term.name: {"type": "array", "items": {"type": "number"}, "description": f"unit: {term.unit}"}
            for term in terms
        },
    }
