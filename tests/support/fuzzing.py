"""Hostile input for a policy server: endless, fast and repeatable by its seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from deploy import protocol
from mpo_robot.specs import PolicySpec

_encoder = msgspec.msgpack.Encoder()
_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
    float("nan"),
    float("inf"),
    1e308,
    "",
    "x" * 300,
    "é\x00漢🤖",
    "../../etc/passwd",
    "0" * 64,
    b"",
    b"\x00" * 12,
    b"\xff" * 12,
    b"\x00\x00\x80\x7f" * 3,
    [],
    [[[[]]]],
    {},
    {"type": "hello"},
    msgspec.msgpack.Ext(1, b"x"),
    msgspec.Raw(b"\xc1"),
    msgspec.Raw(b"\xdd\xff\xff\xff\xff"),
    msgspec.Raw(b"\xc6\x7f\xff\xff\xff"),
]
_BOMBS = [
    b"\x91" * 5000,
    b"\x81\xa4type" * 3000,
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff" + b"\xc0" * 1000,
    b"\xc6\xff\xff\xff\xff" + b"x" * 10,
    b"\xdb\xff\xff\xff\xff",
    b"\x80" * 10_000,
    b"",
    b"\xc1",
]


class FrameFuzzer:
    """Makes messages: lists of parts, most of them one part that is nearly right.

    Args:
        seed: Of everything.
        spec: Of the server's policy, so that some messages get far.
        version: A policy version that the server knows.
    """

    def __init__(self, seed: int, spec: PolicySpec, version: str) -> None:
        self._random = random.Random(seed)
        self._spec, self._spec_json = spec, protocol.encode_spec(spec)
        self._version = version
        self._kinds = self._messages()
        self._makers: list[Callable[[], bytes]] = (
            [self._valid] * 6 + [self._flipped] * 5 + [self._changed_field] * 6 + [self._cut] * 2 + [self._noise] * 2
        )

    def next(self) -> list[bytes]:
        """The next message."""
        draw = self._random.random()
        if draw < 0.001:
            return [self._random.choice(_BOMBS)]
        if draw < 0.0012:
            return [self._random.randbytes(self._random.randint(1, 1 << 20))]
        if draw < 0.03:
            return [self._random.choice(self._makers)() for _ in range(self._random.randint(0, 5))] or [b"", b""]
        return [self._random.choice(self._makers)()]

    def _valid(self) -> bytes:
        """Nothing wrong but, perhaps, the moment."""
        return _encoder.encode(self._fields())

    def _flipped(self) -> bytes:
        frame = bytearray(self._valid())
        for _ in range(self._random.randint(1, 6)):
            frame[self._random.randrange(len(frame))] = self._random.randrange(256)
        return bytes(frame)

    def _cut(self) -> bytes:
        frame = self._valid()
        if self._random.random() < 0.5:
            return frame[: self._random.randrange(len(frame))]
        return frame + self._random.randbytes(self._random.randint(1, 40))

    def _changed_field(self) -> bytes:
        fields = self._fields()
        for _ in range(self._random.randint(1, 3)):
            name = self._random.choice([*fields, "unknown"])
            draw = self._random.random()
            if draw < 0.15:
                fields.pop(name, None)
            else:
                fields[name] = self._random.choice(_VALUES)
        if self._random.random() < 0.05:
            return _encoder.encode(list(fields.values()))
        try:
            return _encoder.encode(fields)
        except (ValueError, OverflowError):  # integers beyond msgpack
            return b"\xc1"

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.randint(0, 200))

    def _fields(self) -> dict[str, Any]:
        kind = self._random.choice(self._kinds)
        header = protocol.header(self._spec.spec_hash, self._random.getrandbits(40), self._random.getrandbits(40))
        return {**header, **{key: make() for key, make in kind.items()}}

    def _messages(self) -> list[dict[str, Callable[[], Any]]]:
        """Field makers of what a client may say, and of what only a server may."""
        pick = self._random

        def name() -> str:
            return f"name-{pick.randrange(5)}"

        def observation() -> bytes:
            size = self._spec.observation_size if pick.random() < 0.8 else pick.randrange(10)
            return struct.pack(f"<{size}f", *(pick.choice((0.0, 1.0, -3.5, 1e38)) for _ in range(size)))

        def version() -> str | None:
            return pick.choice((None, None, self._version, "f" * 64))

        hello = {"type": lambda: "hello", "client_id": name, "spec_json": lambda: self._spec_json}
        begin = {"type": lambda: "begin_episode", "episode_id": name, "resume_policy_version": version}
        act = {"type": lambda: "act_request", "step_index": lambda: pick.randrange(1000), "observation": observation}
        end = {
            "type": lambda: "end_episode",
            "episode_id": name,
            "steps": lambda: pick.randrange(100),
            "undiscounted_return": lambda: pick.choice((None, 1.0, -1e308, 1e308, float("inf"))),
            "misses": lambda: pick.randrange(200),
            "fault": lambda: pick.random() < 0.5,
            "reason": name,
        }
        operate = {
            "type": lambda: "operate",
            "command": lambda: pick.choice(("status", "rollback", "promote", "end-trial", "stop")),
            "token": lambda: "t" * pick.choice((0, 64)),
        }
        ping = {"type": lambda: "ping"}
        pong = {"type": lambda: "pong", "session": lambda: True}
        welcome = {"type": lambda: "welcome", "policy_version": lambda: self._version, "stochastic": lambda: True}
        return [hello, begin, act, act, act, end, operate, ping, pong, welcome]


class StreamFuzzer:
    """Makes what a TCP peer may write instead of ZMTP 3: garbage, damaged handshakes, frames of impossible lengths.

    Args:
        seed: Of everything.
    """

    GREETING = b"\xff" + b"\x00" * 8 + b"\x7f" + b"\x03\x01" + b"NULL" + b"\x00" * 16 + b"\x00" + b"\x00" * 31
    READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def next(self) -> bytes:
        """What the next connection writes."""
        pick = self._random
        start = [b"", self.GREETING, self.GREETING, self.GREETING + self.READY, self.GREETING + self.READY][
            pick.randrange(5)
        ]
        data = bytearray(start + b"".join(self._frame() for _ in range(pick.randint(0, 5))))
        for _ in range(pick.choice((0, 0, 1, 3))):
            if data:
                data[pick.randrange(len(data))] = pick.randrange(256)
        return bytes(data[: pick.randint(0, len(data))] if pick.random() < 0.2 else data)

    def _frame(self) -> bytes:
        pick = self._random
        body = pick.randbytes(pick.randint(0, 100))
        draw = pick.random()
        if draw < 0.3:
            return bytes((pick.choice((0, 1, 4, 8, 255)), len(body))) + body
        if draw < 0.5:
            size = pick.choice((len(body), 2**20, 2**20 + 1, 2**32, 2**63, 2**64 - 1))
            return b"\x02" + struct.pack(">Q", size) + body
        if draw < 0.7:
            command = pick.choice((b"\x04PING\x00\x10", b"\x04PONG", b"\x05READY", b"\x05ERROR\xff", b"\x09SUBSCRIBE"))
            return bytes((4, len(command) + len(body))) + command + body
        return body
