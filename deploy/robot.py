"""The `Robot` protocol: all that the control loop asks of a real or simulated robot.

A driver needs no base class: any object with these members is a robot (`mpo-robot run-robot` takes
`module: "package.module:Factory"`). Shapes: O observation size, A action size.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import MpoRobotError
from mpo_robot.specs import PolicySpec

FloatArray = npt.NDArray[np.float32]


class RobotError(MpoRobotError):
    """A robot driver cannot be loaded or breaks the `Robot` protocol."""


class Measurement(NamedTuple):
    """One reading of a robot.

    Attributes:
        observation: float32 [O] in the order and units of the spec. NaN marks a failed sensor.
        monotonic_ns: When it was taken: the robot computer's monotonic clock (`time.monotonic_ns`). Must grow from one
            reading to the next; a driver that returns an old reading again must return its old time with it. A
            simulated robot that does not run in real time may count simulated time instead.
        reward: Of the transition that ended with this reading; NaN if unknown here (then a function of `learn`
            computes it, docs/log_format.md), 0 for the first of an episode.
        terminated: The task has ended (fallen, goal reached): no value after this state.
        truncated: The robot cut the episode for another reason, for example a time limit.
        info: Anything else; under domain randomisation `info["randomization"]` holds the drawn values. The info of
            the first reading goes into the log. `safety.watch` can limit its numbers (`info.temperature`,
            `info.battery_v`), which must then be there in every reading.
    """

    observation: FloatArray
    monotonic_ns: int
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Robot(Protocol):
    """A robot, driven by one thread except for `stop`.

    Every method may raise; the control loop then calls `stop` and `disconnect`. `read` and `send_command` must return
    well within `spec.control_dt`, and `send_command` within the period of `loop.command_rate`: the loop counts a slow
    driver as an overrun, and its watchdog, if configured, stops the robot when a call does not return.
    """

    @property
    def spec(self) -> PolicySpec:
        """Interface of a policy for this robot; readable before `connect`."""
        ...

    def connect(self) -> None:
        """Open the connection and check the hardware. Motors stay off or hold still."""
        ...

    def start_episode(self, seed: int | None = None) -> Measurement:
        """Bring the robot to its start pose, switch it to policy control and return the first reading. May block."""
        ...

    def send_command(self, command: FloatArray) -> FloatArray:
        """Send a physical command [A]; return what was really applied [A], for example after the driver's own limits.

        The command stays in force until the next one, or until `stop`.
        """
        ...

    def read(self) -> Measurement:
        """The newest reading. Blocks no longer than one bus transfer."""
        ...

    def safe_pose_command(self) -> FloatArray:
        """Command [A] that leads to, or keeps, a pose in which waiting is harmless.

        Straight after `start_episode` it must also be a command the robot can take without a jump: the rate limit of
        the first command counts from it.
        """
        ...

    def stop(self) -> None:
        """Motors off or damped. Callable at any time, from any thread, any number of times, also unconnected.

        An e-stop calls it while the loop's thread may be inside another call of the driver. A command that arrives
        afterwards must not switch the motors on again; only the next `start_episode` does.
        """
        ...

    def disconnect(self) -> None:
        """Close the connection. Callable at any time, any number of times."""
        ...
