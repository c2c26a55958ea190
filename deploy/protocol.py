"""The wire protocol: typed messages, msgpack, raw little-endian float32. See docs/wire_protocol.md.

Every message carries `protocol_version`, `spec_hash`, `request_id` (replies repeat the request's) and `sent_ns`, the
sender's monotonic clock, which only the sender may compare. No verb stops the server; those that change which policy is
in force are for operators.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from deploy.numeric import all_finite
from mpo_robot.errors import ConfigError, ProtocolError
from mpo_robot.specs import PolicySpec

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 1 << 20
NO_REQUEST = 0  # request_id of an Error about a frame whose own id could not be read

Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
# In every message: no regular expression there, as the receiver compares it with the one it expects anyway.
KnownHash = Annotated[str, Meta(min_length=64, max_length=64)]
Count = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
SpecJson = Annotated[str, Meta(max_length=MAX_FRAME_BYTES // 4)]


class ErrorCode:
    """Codes of `Error`; a receiver treats a code it does not know like `INTERNAL`."""

    MALFORMED = "malformed"  # the frame is not a message of this protocol version
    SPEC_MISMATCH = "spec_mismatch"  # text names the first differing field if both specs are known
    UNKNOWN_SESSION = "unknown_session"  # no Hello or no BeginEpisode in this server's life: handshake again
    UNKNOWN_VERSION = "unknown_version"  # the policy version to resume is not in the registry
    BUSY = "busy"  # all sessions are taken
    BAD_OBSERVATION = "bad_observation"  # wrong length, NaN or infinity
    POLICY_FAILED = "policy_failed"  # the policy's output is not finite
    FORBIDDEN = "forbidden"  # the key was revoked, or is not an operator's
    TOO_FAST = "too_fast"  # over the rate limit; told once, then frames are dropped until the rate falls
    REFUSED = "refused"  # an operation that is allowed, and cannot be done; text says why
    INTERNAL = "internal"  # a bug; details are in the server's log only


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every message has."""

    protocol_version: int
    spec_hash: KnownHash
    request_id: Count
    sent_ns: int


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """Client -> server: open or renew a session. `client_id` is random per client; a renewed session replaces it."""

    client_id: Name
    spec_json: SpecJson


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """Reply to Hello: specs are equal. `policy_version` is what an episode would get now.

    `takes_outcomes`: EndEpisode is understood; servers from before it leave the field out.
    """

    policy_version: Hash
    spec_json: SpecJson
    stochastic: bool
    takes_outcomes: bool = False


class BeginEpisode(Message, frozen=True, kw_only=True, tag="begin_episode"):
    """Client -> server: pin a policy for an episode. Hot swaps happen here and nowhere else.

    `resume_policy_version` asks for a version again after the server or the connection was lost mid-episode, from
    `step_index` on.
    """

    episode_id: Name
    step_index: Count = 0
    resume_policy_version: Hash | None = None


class EpisodeReady(Message, frozen=True, kw_only=True, tag="episode_ready"):
    """Reply to BeginEpisode: the version pinned until the next BeginEpisode."""

    episode_id: Name
    policy_version: Hash
    stochastic: bool


class ActRequest(Message, frozen=True, kw_only=True, tag="act_request"):
    """Client -> server: an action for this observation, [O] float32 little-endian."""

    step_index: Count
    observation: bytes


class ActReply(Message, frozen=True, kw_only=True, tag="act_reply"):
    """Reply to ActRequest. `action` is [A] float32 little-endian, normalised, not clipped.

    `log_prob` is in nats; None where no density exists. `received_ns` and `sent_ns` are on the server's clock: their
    difference is the time the request spent in the server.
    """

    step_index: Count
    action: bytes
    log_prob: float | None
    policy_version: KnownHash
    inference_ns: Count
    received_ns: int


class EndEpisode(Message, frozen=True, kw_only=True, tag="end_episode"):
    """Client -> server: how the episode that BeginEpisode began has ended. Decides trials and guards, nothing else.

    `undiscounted_return` is None if the robot does not know its rewards; `misses` of its `steps` had no action in time.
    """

    episode_id: Name
    steps: Count
    undiscounted_return: float | None
    misses: Count
    fault: bool
    reason: Name


class EpisodeNoted(Message, frozen=True, kw_only=True, tag="episode_noted"):
    """Reply to EndEpisode."""


class Operate(Message, frozen=True, kw_only=True, tag="operate"):
    """Operator -> server: `command` is one of `deploy.operations.COMMANDS`. `spec_hash` is not looked at.

    `token` counts on loopback without CURVE only; with CURVE the connection's key has to be an operator's. A change is
    made only if the registry is still as `expect` says: the `state` that `status` gave, the version in force, or the
    trial's candidate; empty: whatever it is. So with it a message that comes twice acts once.
    """

    command: Name
    reason: Name = ""
    token: Name = ""
    expect: Name = ""


class Operated(Message, frozen=True, kw_only=True, tag="operated"):
    """Reply to Operate: the state of the registry after it, as JSON."""

    state_json: SpecJson


class Ping(Message, frozen=True, kw_only=True, tag="ping"):
    """Client -> server: are you there? Keeps an idle session alive."""


class Pong(Message, frozen=True, kw_only=True, tag="pong"):
    """Reply to Ping. `session` tells whether the server knows this client."""

    session: bool


class Error(Message, frozen=True, kw_only=True, tag="error"):
    """Reply instead of the expected one. Never holds a traceback, a path or an observation."""

    code: Name
    text: Text


AnyMessage = (
    Hello
    | Welcome
    | BeginEpisode
    | EpisodeReady
    | ActRequest
    | ActReply
    | EndEpisode
    | EpisodeNoted
    | Operate
    | Operated
    | Ping
    | Pong
    | Error
)
_FLOAT32 = np.dtype("<f4")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


class _Version(msgspec.Struct):
    protocol_version: int


_version_decoder = msgspec.msgpack.Decoder(_Version)


def header(spec_hash: str, request_id: int, sent_ns: int) -> dict[str, Any]:
    """The fields every message has, for `Hello(**header(...), ...)`."""
    return {
        "protocol_version": PROTOCOL_VERSION,
        "spec_hash": spec_hash,
        "request_id": request_id,
        "sent_ns": sent_ns,
    }


def encode(message: Message) -> bytes:
    """One frame.

    Raises:
        ProtocolError: the frame would be larger than a receiver accepts.
    """
    frame = _encoder.encode(message)
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(f"message of {len(frame)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return frame


def decode(frame: bytes) -> AnyMessage:
    """The message in a frame; any bytes give either a message or an error.

    Raises:
        ProtocolError: too large, not msgpack, not a known message, a field out of range, or another protocol version.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(frame)} bytes is over the limit of {MAX_FRAME_BYTES}")
    try:
        message = _decoder.decode(frame)
    except Exception as error:  # hostile bytes: whatever the decoder raises, the answer is the same
        raise ProtocolError(_explain(frame, error)) from error
    if message.protocol_version != PROTOCOL_VERSION:
        raise ProtocolError(_version_text(message.protocol_version))
    return message


def encode_array(values: npt.ArrayLike) -> bytes:
    """Raw little-endian float32 of a vector."""
    return np.asarray(values, _FLOAT32).tobytes()


def decode_array(data: bytes, size: int, name: str) -> npt.NDArray[np.float32]:
    """Writable float32 [size] from `encode_array`.

    Raises:
        ProtocolError: another length, or a value that is not finite.
    """
    if len(data) != 4 * size:
        raise ProtocolError(f"{name} has {len(data)} bytes, expected {4 * size} ({size} float32)")
    values = np.frombuffer(data, _FLOAT32).astype(np.float32)
    if not all_finite(values):
        raise ProtocolError(f"{name} holds NaN or infinity")
    return values


def encode_spec(spec: PolicySpec) -> str:
    """Spec as JSON text for Hello and Welcome."""
    return json.dumps(spec.to_dict(), separators=(",", ":"), allow_nan=False)


def decode_spec(text: str) -> PolicySpec:
    """Inverse of `encode_spec`.

    Raises:
        ProtocolError: not JSON, or not a policy spec.
    """
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ProtocolError(f"spec is a JSON {type(data).__name__}, expected an object")
        return PolicySpec.from_dict(data)
    except (ValueError, RecursionError, AttributeError, OverflowError, ConfigError) as error:
        raise ProtocolError(f"spec cannot be read: {error}") from error


def _explain(frame: bytes, error: Exception) -> str:
    """Why a frame was refused; the version comes first, since another version may have other fields."""
    try:
        version = _version_decoder.decode(frame).protocol_version
    except Exception:
        version = PROTOCOL_VERSION
    if version != PROTOCOL_VERSION:
        return _version_text(version)
    return f"not a message of protocol version {PROTOCOL_VERSION}: {str(error)[:200]}"


def _version_text(version: int) -> str:
    return f"protocol version {version} is not supported, this side speaks {PROTOCOL_VERSION}: update the older side"
