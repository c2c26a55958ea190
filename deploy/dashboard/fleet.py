"""`Fleet`: asks each robot for its state, and stops all of them, over their e-stop endpoints."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import msgspec

from deploy.estop import Confirmation
from deploy.estop_topic import STOP_WORDS, send_estop
from deploy.security import ClientSecurity
from mpo_robot.errors import MpoRobotError

POLL_S = 0.5
TIMEOUT_S = 2.0
LATE_S = 5.0  # a state older than that is not shown as the present one


@dataclasses.dataclass(frozen=True)
class RobotView:
    """What is known about a robot.

    Attributes:
        name: In the configuration.
        endpoint: Of its e-stop.
        state: As in docs/safety.md; empty if unknown.
        tripped: Whether its e-stop is in force.
        reason: Why.
        error: Why it could not be asked; empty if it has answered.
        at_s: When that was, monotonic.
        confirmation: Whether it is known to have stopped, see `EStop.confirmation`.
    """

    name: str
    endpoint: str
    state: str = ""
    tripped: bool = False
    reason: str = ""
    error: str = ""
    at_s: float = 0.0
    confirmation: Confirmation = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with its age in place of its time, and with its stop in words."""
        data = dataclasses.asdict(self)
        at_s = data.pop("at_s")
        data["age_s"] = max(0.0, time.monotonic() - at_s) if at_s else None
        data["stop"] = STOP_WORDS[self.confirmation] if self.confirmation or not self.error else self.error
        return data


class Fleet:
    """A thread per robot, so that one that does not answer delays no other. `stop` may be called from any thread.

    Args:
        robots: Name -> e-stop endpoint and keys.
    """

    def __init__(self, robots: Mapping[str, tuple[str, ClientSecurity | None]]) -> None:
        self._robots = dict(robots)
        self._views = {name: RobotView(name, endpoint) for name, (endpoint, _) in robots.items()}

    def start(self) -> None:
        """Begin to ask."""
        for name in self._robots:
            threading.Thread(target=self._watch, args=(name,), name=f"robot {name}", daemon=True).start()

    def views(self) -> list[dict[str, Any]]:
        """The newest state of every robot."""
        return [view.to_dict() for view in self._views.values()]

    def stop(self, reason: str) -> list[dict[str, Any]]:
        """Stop all robots at the same time; returns how each answered, after `TIMEOUT_S` at the latest."""
        if not self._robots:
            return []
        with ThreadPoolExecutor(len(self._robots), thread_name_prefix="e-stop") as pool:
            views = list(pool.map(lambda name: self.ask(name, "stop", reason), self._robots))
        return [view.to_dict() for view in views]

    def ask(self, name: str, verb: Literal["stop", "status"], reason: str = "") -> RobotView:
        """Send one message; returns what is known then, and remembers it. Never raises."""
        endpoint, security = self._robots[name]
        try:
            reply = send_estop(endpoint, reason, verb=verb, security=security, timeout_s=TIMEOUT_S)
        except MpoRobotError as error:
            # The last known state stays: a robot that has stopped and gone silent is still known to have stopped.
            view = dataclasses.replace(self._views[name], error=str(error))
        else:
            answer = msgspec.structs.asdict(reply)
            view = RobotView(name, endpoint, **answer, at_s=time.monotonic())
        self._views[name] = view
        # What a stop returns is about this stop alone.
        is_refused = verb == "stop" and bool(view.error)
        return dataclasses.replace(view, tripped=False, confirmation="") if is_refused else view

    def _watch(self, name: str) -> None:
        while True:
            self.ask(name, "status")
            time.sleep(POLL_S)
