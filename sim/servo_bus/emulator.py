"""`Emulator`: the servo bus on a pseudo-terminal, in real time.

One thread, in a loop: advance the physics to the present, answer what has come over the wire, send the IMU's reading.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mpo_robot.errors import ConfigError
from sim.servo_bus.ant import AntBody, Mount
from sim.servo_bus.bus import ServoBus
from sim.servo_bus.faults import FaultConfig, ServoFaults, WireNoise
from sim.servo_bus.packets import Packet, Parser
from sim.servo_bus.servo import EmulatedServo

IMU_MESSAGE = struct.Struct("<q7f")  # time by the machine's monotonic clock in ns; quaternion w, x, y, z; rad/s x, y, z
_POLL_S = 0.002
_PAUSE_S = 0.005  # a packet whose bytes pause for longer is given up
_CATCH_UP_S = 0.1  # a process that was suspended does not simulate what it missed


def _default_mounts() -> tuple[Mount, ...]:
    """Every other servo turned round, ankles on their brackets at an angle: mistakes in a driver's mapping show."""
    return tuple(
        Mount(f"{part}_{leg}", 2 * leg - 1 + (part == "ankle"), 1 if leg % 2 else -1, 0.4 if part == "ankle" else 0.0)
        for leg in (1, 2, 3, 4)
        for part in ("hip", "ankle")
    )


@dataclass(frozen=True)
class EmulatorConfig:
    """An emulated bus.

    Attributes:
        link: Path of a symbolic link to the pseudo-terminal, so that a robot's configuration can name it; empty: none.
        baud_rate: Answers take as long as they would at this speed; 0 answers at once.
        imu_port: UDP port on 127.0.0.1 that gets the IMU's readings; 0 sends none.
        imu_rate_hz: How often.
        servos: How the servos are mounted.
        faults: What goes wrong.
    """

    link: str = ""
    baud_rate: int = 1_000_000
    imu_port: int = 0
    imu_rate_hz: float = 200.0
    servos: tuple[Mount, ...] = field(default_factory=_default_mounts)
    faults: FaultConfig = field(default_factory=FaultConfig)

    def __post_init__(self) -> None:
        if self.baud_rate < 0 or not 0 <= self.imu_port <= 65_535 or self.imu_rate_hz <= 0:
            raise ConfigError("emulator: baud_rate not negative, imu_port 0 to 65535, imu_rate_hz positive")
        unknown = {fault.id for fault in self.faults.servos} - {mount.id for mount in self.servos}
        if unknown:
            raise ConfigError(f"faults.servos: no servo has the id {min(unknown)}")


class Emulator:
    """The bus with its ant. A context; `run` serves until told to stop.

    Attributes:
        path: Of the pseudo-terminal that a driver opens.
        bus: The servos.
        body: The ant.
    """

    def __init__(self, config: EmulatorConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """Open the pseudo-terminal.

        Raises:
            ConfigError: servos that do not fit the ant, or a link that cannot be made.
        """
        self._config, self._clock = config, clock
        self.body = AntBody(config.servos)
        self.bus = ServoBus(EmulatedServo(mount.id) for mount in config.servos)
        self._noise, self._faults = WireNoise(config.faults), ServoFaults(config.faults)
        self._parser = Parser()
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self._link = Path(config.link) if config.link else None
        self._imu: socket.socket | None = None
        if config.imu_port:
            self._imu = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._start = self._now = self._next_imu = self._heard = clock()
        try:
            self._make_link()
        except BaseException:
            self.close()
            raise
        self._sense()

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything; a driver sees its port vanish. May be called twice."""
        for descriptor in (self._master, self._slave):
            if descriptor >= 0:
                os.close(descriptor)
        self._master = self._slave = -1
        if self._imu is not None:
            self._imu.close()
        if self._link is not None and self._link.is_symlink() and os.readlink(self._link) == self.path:
            self._link.unlink()

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Serve until `should_stop`, which is asked every few milliseconds."""
        while not should_stop():
            self.serve(_POLL_S)

    def serve(self, wait_s: float) -> None:
        """One turn of the loop; waits for bytes for `wait_s` at most."""
        ready, _, _ = select.select([self._master], [], [], wait_s)
        self.advance()
        if ready:
            self._heard = self._now
            data = self._noise.spoil(os.read(self._master, 4096))
            for packet in self._parser.feed(data):
                if not self._noise.loses_packet():
                    self._answer(packet)
        elif self._now - self._heard > _PAUSE_S:
            self._parser.forget()
        self._send_imu()

    def advance(self) -> None:
        """Bring physics and servos to the present."""
        now = self._clock()
        if now - self._now > _CATCH_UP_S:
            self._now = now - _CATCH_UP_S
        start, step = self._now, self.body.step_s
        while self._now + step <= now:
            self._now += step
            self.body.step(self.bus.servos)
        self._faults.advance(self._now, self._now - start, self.bus.servos)
        self._sense()

    def _sense(self) -> None:
        for mount in self._config.servos:
            self.bus.servos[mount.id].sense(self._now, self.body.shaft(mount))

    def _answer(self, packet: Packet) -> None:
        answers = [answer for answer in self.bus.handle(packet, self._clock()) if not self._noise.loses_packet()]
        data = self._noise.spoil(b"".join(answers))
        if not data:
            return
        if self._config.baud_rate:
            time.sleep(10 * len(data) / self._config.baud_rate)
        with contextlib.suppress(BlockingIOError):  # nobody reads: a wire keeps nothing either
            os.write(self._master, data)

    def _send_imu(self) -> None:
        if self._imu is None or self._now < self._next_imu:
            return
        self._next_imu = max(self._next_imu + 1 / self._config.imu_rate_hz, self._now)
        message = IMU_MESSAGE.pack(round(self._now * 1e9), *self.body.imu().tolist())
        with contextlib.suppress(OSError):  # nobody listens
            self._imu.sendto(message, ("127.0.0.1", self._config.imu_port))

    def _make_link(self) -> None:
        if self._link is None:
            return
        try:
            if self._link.is_symlink():
                self._link.unlink()
            self._link.symlink_to(self.path)
        except OSError as error:
            raise ConfigError(f"cannot make the link {self._link}: {error.strerror}") from error
