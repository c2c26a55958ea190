"""`Bus`: transfers with servos on one serial port. Every transfer is bounded in time; sync reads may be partial."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from deploy.dynamixel.control_table import Register
from deploy.robot import RobotError

ALERT = 0x80  # of a status packet's error byte: see the register hardware_error_status
ATTEMPTS = 5  # of transfers that must succeed, none of which happens while a policy acts
_ASK_TIMEOUT_S = 0.05  # of those
_SETTLE_S = 0.02  # after an exchange that failed, for answers that come late
_LOCK_S = 0.25
_ERRORS = {
    1: "could not carry out the instruction",
    2: "does not know the instruction",
    3: "got a damaged packet",
    4: "refuses a value out of range",
    5: "refuses a value of a wrong length",
    6: "refuses a value beyond its limit",
    7: "refuses access to that address",
}


class BusError(RuntimeError):
    """The bus or a servo failed. While a robot runs, the control loop ends in the stop command and exit code 1."""


class StoppedError(BusError):
    """The robot was stopped before a transfer that could have moved it, so that was left out."""


class Reply(NamedTuple):
    """A servo's answer to a sync read: its data, and whether it has a hardware error."""

    data: bytes
    alert: bool


class Bus:
    """Serial bus with the vendor's library behind it. Calls from several threads wait for each other.

    A transfer that could move a motor asks `is_stopped` when the bus is its own and before it sends, every time it
    tries: so it either ends before a stop of another thread begins to send, or does not happen.

    Attributes:
        missing: Servo answers that did not come in time, so far.
        damaged: Packets that came damaged, so far.
    """

    def __init__(
        self, port: str, baud_rate: int, timeout_s: float, is_stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Remember the port; `timeout_s` bounds each sync read from its request to its last answer."""
        self._name, self._baud_rate, self._timeout_s = port, baud_rate, timeout_s
        self._is_stopped = is_stopped
        self._lock = threading.Lock()
        self._port: Any = None
        self._handler: Any = None
        self._skip_fast = self._late = False
        self.missing = self.damaged = 0

    @property
    def is_open(self) -> bool:
        """Whether the port is open."""
        return self._port is not None

    def open(self) -> None:
        """Open the port.

        Raises:
            RobotError: the vendor's library is not installed, or the port cannot be opened.
        """
        try:
            from deploy.dynamixel.sdk import DeadlinePort, PacketHandler
        except ModuleNotFoundError as error:
            raise RobotError(
                f"package {error.name!r} is not installed: use pip install 'mpo-robot[dynamixel]'"
            ) from error
        port = DeadlinePort(self._name)
        try:
            is_known = port.setBaudRate(self._baud_rate)
        except OSError as error:
            raise RobotError(f"cannot open the motor bus {self._name}: {error}") from error
        if not is_known:
            raise RobotError(f"the servos know no baud rate of {self._baud_rate}")
        self._port, self._handler = port, PacketHandler()

    def close(self) -> None:
        """Close the port. May be called twice."""
        port, self._port = self._port, None
        if port is not None:
            with contextlib.suppress(OSError):
                port.closePort()

    def read_all(self, identifiers: Sequence[int], address: int, size: int) -> dict[int, Reply]:
        """Answers of several servos to a sync read, all of them; tried several times.

        Raises:
            BusError: one does not answer, or the port failed.
        """
        replies: dict[int, Reply] = {}
        for _ in range(ATTEMPTS):
            wanted = [identifier for identifier in identifiers if identifier not in replies]
            replies |= self.sync_read(wanted, address, size, timeout_s=_ASK_TIMEOUT_S)
            if len(replies) == len(identifiers):
                return replies
        silent = ", ".join(str(identifier) for identifier in identifiers if identifier not in replies)
        raise BusError(f"no answer on {self._name} from servo {silent}")

    def write(self, identifier: int, register: Register, value: int) -> None:
        """Set a register of one servo.

        Raises:
            StoppedError: the robot is stopped.
            BusError: it does not answer, or refuses.
        """
        data = _encode(register, value)
        for _ in range(ATTEMPTS):
            if self._late:  # nothing in an acknowledgement says which write it belongs to
                time.sleep(_SETTLE_S)
            with self._exclusive() as port:
                self._require_not_stopped()
                port.timeout_s = _ASK_TIMEOUT_S
                result, error = self._handler.writeTxRx(port, identifier, register.address, register.size, data)
            self._late = result != 0
            if result == 0:
                return _require_accepted(identifier, error)
            self.missing += 1
        raise BusError(f"servo {identifier} on {self._name} does not answer")

    def reboot(self, identifier: int) -> None:
        """Send a servo the reboot instruction. Whether it obeyed shows when it answers again.

        Raises:
            StoppedError: the robot is stopped.
        """
        with self._exclusive() as port:
            self._require_not_stopped()
            port.timeout_s = _ASK_TIMEOUT_S
            self._handler.reboot(port, identifier)

    def sync_read(
        self, identifiers: Sequence[int], address: int, size: int, fast: bool = False, timeout_s: float | None = None
    ) -> dict[int, Reply]:
        """Answers to one request to several servos, by id; those that did not come intact in time are missing.

        Args:
            identifiers: Of the servos.
            address: Of the first byte.
            size: Number of bytes. An answer says no more about its request than that: to tell a late one from another,
                requests of different kinds should differ in it.
            fast: Ask for one common packet. One servo that does not answer spoils it for all; the next request after
                such a failure is therefore an ordinary one.
            timeout_s: Instead of the bus's own.

        Raises:
            BusError: the port failed.
        """
        fast, self._skip_fast = fast and not self._skip_fast, False
        with self._exclusive() as port:
            port.timeout_s = self._timeout_s if timeout_s is None else timeout_s
            sent = self._handler.syncReadTx(port, address, size, list(identifiers), len(identifiers), fast)
            if sent != 0:
                raise BusError(f"the motor bus {self._name} does not take what is sent")
            replies = self._fast_reply(port, identifiers, size) if fast else self._replies(port, identifiers, size)
        self._late = len(replies) < len(identifiers)
        self.missing += len(identifiers) - len(replies)
        self._skip_fast = fast and self._late
        return replies

    def sync_write(self, register: Register, values: Mapping[int, int], force: bool = False) -> None:
        """Set a register of several servos by one packet, which is not answered.

        Args:
            register: Which.
            values: By id.
            force: Send even if the robot is stopped, or another thread hangs in a transfer. For stopping.

        Raises:
            StoppedError: the robot is stopped.
            BusError: the port failed.
        """
        parameters = [byte for key, value in values.items() for byte in (key, *_encode(register, value))]
        with self._exclusive(force) as port:
            if not force:
                self._require_not_stopped()
            if self._handler.syncWriteTxOnly(port, register.address, register.size, parameters, len(parameters)) != 0:
                raise BusError(f"the motor bus {self._name} does not take what is sent")

    def _require_not_stopped(self) -> None:
        if self._is_stopped():
            raise StoppedError(f"the robot was stopped: nothing more is sent on {self._name}")

    def _replies(self, port: Any, identifiers: Sequence[int], size: int) -> dict[int, Reply]:
        """Whatever intact answers come, in any order, until all are there or the time is over."""
        replies: dict[int, Reply] = {}
        while len(replies) < len(identifiers):
            packet, result = self._handler.rxPacket(port, False)
            if result == 0 and packet[4] in identifiers and len(packet) == size + 11:
                replies[packet[4]] = Reply(bytes(packet[9:-2]), bool(packet[8] & ALERT))
            else:
                self.damaged += bool(packet)
                if port.is_over():
                    break
        return replies

    def _fast_reply(self, port: Any, identifiers: Sequence[int], size: int) -> dict[int, Reply]:
        packet, result = self._handler.rxPacket(port, True)
        length = size + 4
        if result != 0 or len(packet) != 8 + length * len(identifiers):
            self.damaged += bool(packet)
            return {}
        blocks = [packet[start : start + length] for start in range(8, len(packet), length)]
        return {
            block[1]: Reply(bytes(block[2:-2]), bool(block[0] & ALERT)) for block in blocks if block[1] in identifiers
        }

    @contextlib.contextmanager
    def _exclusive(self, force: bool = False) -> Iterator[Any]:
        """The port for one transfer. The library's errors come out as `BusError`."""
        locked = self._lock.acquire(timeout=_LOCK_S)
        try:
            port = self._port
            if port is None:
                raise BusError(f"the motor bus {self._name} is not open")
            if not (locked or force):
                raise BusError(f"the motor bus {self._name} is held by another thread")
            port.is_using = False
            try:
                yield port
            except BusError:
                raise
            except Exception as error:  # operating system, terminal, serial: each has its own, also for a closed port
                raise BusError(f"the motor bus {self._name} failed: {error}") from error
        finally:
            if locked:
                self._lock.release()


def _encode(register: Register, value: int) -> list[int]:
    return list(value.to_bytes(register.size, "little", signed=register.signed))


def _require_accepted(identifier: int, error: int) -> None:
    code = error & ~ALERT
    if code:
        raise BusError(f"servo {identifier} {_ERRORS.get(code, f'answers with error {code}')}")
