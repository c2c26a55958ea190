"""Where the state of a robot's body comes from: orientation, for example, which no servo measures.

Any object with the members of `BodySource` will do. `DatagramBody` takes readings from a process of their own on the
same computer, which reads an IMU in whatever language its driver is written in.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from deploy.robot import RobotError
from deploy.security import LAST_PORT
from mpo_robot.errors import ConfigError
from mpo_robot.specs import TermSpec

FloatArray = npt.NDArray[np.float32]
IMU_TERMS = (TermSpec("orientation", 4, "1"), TermSpec("angular_velocity", 3, "rad/s"))


class BodyReading(NamedTuple):
    """Values [B] in the order of the terms, and when they were measured (the computer's monotonic clock)."""

    values: FloatArray
    monotonic_ns: int


class BodySource(Protocol):
    """Something that knows the body's state."""

    @property
    def terms(self) -> tuple[TermSpec, ...]:
        """Observation terms that it fills; readable before `open`."""
        ...

    def open(self) -> None:
        """Start. May raise."""
        ...

    def read(self) -> BodyReading | None:
        """The newest reading, or None if there is none yet. Must not block."""
        ...

    def close(self) -> None:
        """Release everything. May be called twice, also unopened."""
        ...


class DatagramBody:
    """The newest of the readings that come as UDP datagrams on 127.0.0.1.

    Each datagram holds, little-endian: int64 time of the measurement by CLOCK_MONOTONIC in ns (the same for all
    processes of a computer), then float32 orientation as a quaternion w, x, y, z (world from body) and angular velocity
    in the body's frame, rad/s. Others are passed over, and so are older ones and those from the future. Any process
    on this computer can send; a robot on which that matters needs a source of its own.
    """

    terms = IMU_TERMS

    def __init__(self, port: int, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Remember the UDP port; 0 lets the system choose (see `address`)."""
        if not 0 <= port <= LAST_PORT:
            raise ConfigError(f"body.options.port must be 0 to {LAST_PORT}, got {port}")
        self._port, self._clock = port, clock
        self._message = struct.Struct(f"<q{sum(term.size for term in self.terms)}f")
        self._socket: socket.socket | None = None
        self._newest: BodyReading | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where datagrams are expected, once open."""
        if self._socket is None:
            raise RuntimeError("the body source is not open")
        return self._socket.getsockname()

    def open(self) -> None:
        """Listen.

        Raises:
            RobotError: somebody else listens there.
        """
        self.close()
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            listener.setblocking(False)
            listener.bind(("127.0.0.1", self._port))
        except OSError as error:
            listener.close()
            raise RobotError(f"cannot listen on UDP port {self._port} for the body's state: {error}") from error
        self._socket, self._newest = listener, None

    def read(self) -> BodyReading | None:
        """The newest reading."""
        while self._socket is not None:
            try:
                data = self._socket.recv(self._message.size + 1)
            except OSError:  # none waiting, or closed by another thread
                break
            self._take(data)
        return self._newest

    def close(self) -> None:
        """Stop listening."""
        listener, self._socket = self._socket, None
        if listener is not None:
            listener.close()

    def _take(self, data: bytes) -> None:
        if len(data) != self._message.size:
            return
        time_ns, *values = self._message.unpack(data)
        is_newer = self._newest is None or time_ns > self._newest.monotonic_ns
        if is_newer and time_ns <= self._clock():
            self._newest = BodyReading(np.array(values, np.float32), time_ns)
