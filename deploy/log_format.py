"""What an episode log holds: topics, metadata names, the JSON of one step, and the schema other tools read.

A step is one JSON object. A float32 is written as the shortest decimal of its exact float64 value, so it comes back
with the same bits. JSON has no NaN or infinity: NaN is `null`, an infinity is `null` plus an entry in `infinities`.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from mpo_robot.episode import STEP_SCHEMA_VERSION, Source, StepRecord
from mpo_robot.errors import EpisodeError

LOG_PROFILE = "mpo_robot"
STEP_TOPIC = "/step"
INVALID_STEP_TOPIC = "/invalid_step"
SIGNALS_TOPIC = "/signals"
EPISODE_METADATA = "mpo_robot.episode"
STATISTICS_METADATA = "mpo_robot.statistics"
LOG_SUFFIX = ".mcap"

VECTOR_FIELDS = ("observation", "policy_action", "sent_action", "command", "applied_command", "next_observation")
SCALAR_FIELDS = ("behavior_log_prob", "reward")

_DESCRIPTIONS = {
    "observation": "what the policy acted on, in the order of the policy spec",
    "policy_action": "normalized action as sampled, before clipping",
    "sent_action": "normalized form of applied_command",
    "command": "physical command before safety",
    "applied_command": "physical command after safety, as the robot reports it",
    "next_observation": "after the action",
    "behavior_log_prob": "nats; null where none exists",
    "reward": "of this step; null if the robot does not know it",
}


class Infinity(msgspec.Struct, frozen=True):
    """Position of one infinite number: `field[index]` (index 0 for a scalar field) is `sign` times infinity."""

    field: str
    index: int
    sign: int


class StepMessage(msgspec.Struct, kw_only=True):
    """The JSON object of one step. Field meanings: `mpo_robot.episode.StepRecord`."""

    episode_id: str
    step_index: int
    observation: list[float | None]
    policy_action: list[float | None]
    sent_action: list[float | None]
    command: list[float | None]
    applied_command: list[float | None]
    next_observation: list[float | None]
    action_modified: bool
    behavior_log_prob: float | None
    reward: float | None
    terminated: bool
    truncated: bool
    policy_version: str
    spec_hash: str
    source: str
    latency_ns: int
    deadline_missed: bool
    monotonic_ns: int
    wall_time_ns: int
    infinities: list[Infinity] = []


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StepMessage)


def encode_step(record: StepRecord) -> bytes:
    """JSON bytes of a record."""
    values: dict[str, Any] = {name: getattr(record, name).tolist() for name in VECTOR_FIELDS}
    message = StepMessage(
        episode_id=record.episode_id,
        step_index=record.step_index,
        action_modified=record.action_modified,
        behavior_log_prob=record.behavior_log_prob,
        reward=record.reward,
        terminated=record.terminated,
        truncated=record.truncated,
        policy_version=record.policy_version,
        spec_hash=record.spec_hash,
        source=record.source.value,
        latency_ns=record.latency_ns,
        deadline_missed=record.deadline_missed,
        monotonic_ns=record.monotonic_ns,
        wall_time_ns=record.wall_time_ns,
        **values,
    )
    data = _encoder.encode(message)  # msgspec writes NaN and infinities as null
    if b"null" not in data:
        return data
    message.infinities = _infinities(record)
    return _encoder.encode(message) if message.infinities else data


def decode_step(data: bytes) -> StepRecord:
    """Inverse of `encode_step`; float arrays come back bit for bit.

    Raises:
        EpisodeError: the bytes are not the JSON of a step.
    """
    try:
        message = _decoder.decode(data)
        vectors: dict[str, Any] = {name: np.array(getattr(message, name), np.float32) for name in VECTOR_FIELDS}
        scalars: dict[str, Any] = {name: _number(getattr(message, name)) for name in SCALAR_FIELDS}
        for infinity in message.infinities:
            value = math.copysign(math.inf, infinity.sign)
            if infinity.field in vectors:
                vectors[infinity.field][infinity.index] = value
            else:
                scalars[infinity.field] = value
        source = Source(message.source)
    except (msgspec.MsgspecError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise EpisodeError(f"a log message is not a step of schema version {STEP_SCHEMA_VERSION}: {error}") from error
    return StepRecord(
        episode_id=message.episode_id,
        step_index=message.step_index,
        action_modified=message.action_modified,
        terminated=message.terminated,
        truncated=message.truncated,
        policy_version=message.policy_version,
        spec_hash=message.spec_hash,
        source=source,
        latency_ns=message.latency_ns,
        deadline_missed=message.deadline_missed,
        monotonic_ns=message.monotonic_ns,
        wall_time_ns=message.wall_time_ns,
        **vectors,
        **scalars,
    )


def step_json_schema() -> bytes:
    """JSON schema of a step for Foxglove and other tools."""
    properties: dict[str, Any] = {
        "episode_id": {"type": "string"},
        "step_index": {"type": "integer", "description": "0-based position in the episode"},
    }
    for name in VECTOR_FIELDS:
        properties[name] = {"type": "array", "items": {"type": "number"}, "description": _DESCRIPTIONS[name]}
    for name in SCALAR_FIELDS:
        properties[name] = {"type": "number", "description": _DESCRIPTIONS[name]}
    for name in ("action_modified", "terminated", "truncated", "deadline_missed"):
        properties[name] = {"type": "boolean"}
    for name in ("latency_ns", "monotonic_ns", "wall_time_ns"):
        properties[name] = {"type": "integer", "description": "nanoseconds"}
    properties["source"] = {"type": "string", "enum": [source.value for source in Source]}
    properties["policy_version"] = {"type": "string"}
    properties["spec_hash"] = {"type": "string"}
    entry = {"field": {"type": "string"}, "index": {"type": "integer"}, "sign": {"type": "integer"}}
    properties["infinities"] = {"type": "array", "items": {"type": "object", "properties": entry}}
    schema = {"title": "mpo_robot.Step", "type": "object", "properties": properties}
    return json.dumps(schema).encode()


def pack_metadata(content: Mapping[str, Any]) -> dict[str, str]:
    """String map for an MCAP metadata record: `json` and its CRC-32, because MCAP does not protect metadata itself."""
    text = json.dumps(jsonable(content), sort_keys=True, allow_nan=False)
    return {"json": text, "crc32": f"{zlib.crc32(text.encode()):08x}"}


def unpack_metadata(record: Mapping[str, str]) -> dict[str, Any]:
    """Inverse of `pack_metadata`.

    Raises:
        EpisodeError: checksum wrong or content missing.
    """
    text = record.get("json", "")
    if f"{zlib.crc32(text.encode()):08x}" != record.get("crc32"):
        raise EpisodeError("the log's metadata fails its checksum")
    return json.loads(text)


def jsonable(value: Any) -> Any:
    """Plain JSON data of nested mappings, sequences, arrays and numbers; NaN and infinities become their names."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Iterable):
        return [jsonable(item) for item in value]
    return str(value)


def _infinities(record: StepRecord) -> list[Infinity]:
    found: list[Infinity] = []
    for name in VECTOR_FIELDS:
        array: npt.NDArray[np.float32] = getattr(record, name)
        found += [Infinity(name, int(i), 1 if array[i] > 0 else -1) for i in np.flatnonzero(np.isinf(array))]
    for name in SCALAR_FIELDS:
        value = getattr(record, name)
        if math.isinf(value):
            found.append(Infinity(name, 0, 1 if value > 0 else -1))
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value
