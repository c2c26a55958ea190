"""Physics stepping with delayed commands, forces that end within a period, and observations taken on the way.

Time is counted in whole physics steps since the start of the episode. Steps in which nothing changes are run in one
call of the simulator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.backend import Backend

Arrays = dict[str, npt.NDArray[Any]]


class Actuation:
    """Carries the controls that a backend writes to `data.ctrl` to the physics, `delay` physics steps later.

    Attributes:
        now: Physics steps since the start of the episode.
        delay: Physics steps from a command to its effect.
        observation_delay: Physics steps by which captured observations will be read late; None captures nothing.
        capture_all: Capture after every physics step, for reading at any time and not just at the end of periods.
        on_capture: Called with (`now`) when an observation must be taken.
    """

    def __init__(self, backend: Backend, on_capture: Callable[[int], None]):
        self._backend = backend
        self.on_capture = on_capture
        self.now = 0
        self.delay = 0
        self.observation_delay: int | None = None
        self.capture_all = False
        self._queue: deque[tuple[int, npt.NDArray[np.float64]]] = deque()
        self._force_ends: dict[int, int] = {}
        self._clear_force: dict[int, Callable[[], None]] = {}

    def start(self) -> None:
        """Begin an episode with whatever control the reset left."""
        self.now = 0
        self._queue = deque([(0, self._backend.data.ctrl.copy())])
        self._force_ends = {}

    def register_force(self, key: int, clear: Callable[[], None]) -> None:
        """Name the function that ends a force."""
        self._clear_force[key] = clear

    def start_force(self, key: int, steps: int) -> None:
        """A force was put on; end it after `steps` physics steps."""
        self._force_ends[key] = self.now + steps

    def advance_period(self) -> None:
        """Backend hook: take the control just written and run one control period."""
        self.issue()
        self.run(self._backend.physics_steps)

    def issue(self) -> None:
        """Take the control in `data.ctrl` as the newest command."""
        self._queue.append((self.now, self._backend.data.ctrl.copy()))

    def run(self, steps: int) -> None:
        """Advance the physics; commands take effect when they are `delay` steps old."""
        end = self.now + steps
        while self.now < end:
            control = self._due_control()
            self._backend.data.ctrl[:] = control
            stop = self._next_event(end)
            self._backend.run_physics(stop - self.now)
            self.now = stop
            for key in [key for key, step in self._force_ends.items() if step <= self.now]:
                del self._force_ends[key]
                self._clear_force[key]()
            if self._captures_at(self.now, end):
                self.on_capture(self.now)

    def _due_control(self) -> npt.NDArray[np.float64]:
        """The newest command that is old enough; until there is one, the one in force."""
        queue = self._queue
        while len(queue) > 1 and queue[1][0] + self.delay <= self.now:
            queue.popleft()
        return queue[0][1]

    def _next_event(self, end: int) -> int:
        """First step after `now` at which a control changes, a force ends or an observation is due; at most `end`."""
        events = [end, *self._force_ends.values()]
        if len(self._queue) > 1:
            events.append(self._queue[1][0] + self.delay)
        if self.observation_delay is not None:
            offset = self.observation_delay % self._backend.physics_steps
            events.append(self.now + 1 if self.capture_all else end - offset)
        return min(step for step in events if step > self.now)

    def _captures_at(self, step: int, end: int) -> bool:
        if self.observation_delay is None:
            return False
        return self.capture_all or (end - step) % self._backend.physics_steps == (
            self.observation_delay % self._backend.physics_steps
        )

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """What `set_state` needs: JSON-able values and arrays."""
        values = {
            "now": self.now,
            "delay": self.delay,
            "observation_delay": self.observation_delay,
            "issued": [step for step, _ in self._queue],
            "forces": [[key, step] for key, step in self._force_ends.items()],
        }
        size = self._backend.data.ctrl.size
        controls = np.array([control for _, control in self._queue]).reshape(-1, size)
        return values, {"controls": controls}

    def set_state(self, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `state`."""
        self.now, self.delay = values["now"], values["delay"]
        self.observation_delay = values["observation_delay"]
        self._queue = deque(zip(values["issued"], arrays["controls"].copy()))
        self._force_ends = dict(values["forces"])
