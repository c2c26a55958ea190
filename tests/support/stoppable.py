"""A robot behind a real e-stop endpoint, whose stop works, raises each time, or does not return."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Literal

from deploy.estop import EStop, EStopGuard
from deploy.estop_topic import TopicEStop
from tests.support.fake_robot import FakeRobot

How = Literal["works", "raises", "hangs"]


class StoppableRobot(FakeRobot):
    """Context of the robot with its guard and listener.

    Attributes:
        estop: Its e-stop.
        topic: What listens.
        is_free: Set: a stop that hangs returns.
    """

    def __init__(self, how: How = "works") -> None:
        super().__init__()
        self._how = how
        self.estop, self.is_free = EStop(), threading.Event()
        self._guard = EStopGuard(self, self.estop)
        state = lambda: "FAULT" if self.estop.tripped else "RUN"  # noqa: E731
        self.topic = TopicEStop(self.estop, "tcp://127.0.0.1:*", None, state)

    def stop(self) -> None:
        super().stop()
        if self._how == "raises":
            raise OSError("bus")
        if self._how == "hangs":
            assert self.is_free.wait(60)

    def __enter__(self) -> StoppableRobot:
        self._guard.__enter__()
        self.topic.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.topic.__exit__()
        self.is_free.set()
        self._guard.__exit__()
