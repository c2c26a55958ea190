"""How a simulated robot's time passes: one control period per command, or with the clock.

Shapes: O observation size, A command size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mpo_robot.types import FloatArray, StepResult
from sim.environment import SimEnvironment
from sim.partial import PartialStepper


class Measurement(NamedTuple):
    """One reading of a simulated robot; the fields of deploy's `Measurement`.

    Attributes:
        observation: float32 [O].
        monotonic_ns: When it was taken: by the clock in real time, else in simulated time.
        reward: Of the transition that ended with this reading; 0 for the first of an episode.
        terminated: The task has ended.
        truncated: The episode was cut, by its time limit for example.
        info: `info["randomization"]` holds the drawn values.
    """

    observation: FloatArray
    monotonic_ns: int
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class FastPace:
    """A reading after a command advances one control period; simulated time is counted through all episodes."""

    def __init__(self, environment: SimEnvironment):
        self._environment = environment
        self._period_ns = round(environment.spec.control_dt * 1e9)
        self._time_ns = 0
        self._fresh = False

    def start(self) -> int:
        """An episode begins; its time in ns."""
        self._fresh = False
        self._time_ns += self._period_ns
        return self._time_ns

    def command(self, held: FloatArray) -> None:
        """A new command is about to replace `held`."""
        self._fresh = True

    def read(self, held: FloatArray) -> Measurement | None:
        """The reading after one period of the command `held` [A]; None if it is not new, for time stands still."""
        if not self._fresh:
            return None
        self._fresh = False
        result = self._environment.step_command(held)
        self._time_ns += self._period_ns
        return Measurement(
            result.observation, self._time_ns, result.reward, result.terminated, result.truncated, result.info
        )


class SubstepPace:
    """`FastPace` for `count` motor commands per period, which share its physics steps evenly.

    The command after which the robot is read acts until the end of the period, so that fewer commands than `count`
    are fine too.
    """

    def __init__(self, environment: SimEnvironment, count: int):
        self._environment, self._count = environment, count
        self._stepper = PartialStepper(environment)
        self._steps = environment.backend.physics_steps * environment.config.action_repeat
        self._period_ns = round(environment.spec.control_dt * 1e9)
        self._time_ns = 0
        self._sent = self._done = 0
        self._results: list[StepResult] = []

    def start(self) -> int:
        """An episode begins; its time in ns."""
        self._stepper.start()
        self._sent = self._done = 0
        self._results = []
        self._time_ns += self._period_ns
        return self._time_ns

    def command(self, held: FloatArray) -> None:
        """A new command is about to replace `held`, whose share of the period has passed."""
        self._advance(held, min(self._sent, self._count) * self._steps // self._count)
        self._sent += 1

    def read(self, held: FloatArray) -> Measurement | None:
        """The reading at the end of the period; None if no command was sent since the last one."""
        if self._sent == 0:
            return None
        self._advance(held, self._steps)
        results, self._results, self._sent, self._done = self._results, [], 0, 0
        self._time_ns += self._period_ns
        reward, last = sum(result.reward for result in results), results[-1]
        return Measurement(last.observation, self._time_ns, reward, last.terminated, last.truncated, last.info)

    def _advance(self, held: FloatArray, until: int) -> None:
        if until > self._done and not self._environment.ended:
            self._results += self._stepper.run(held, until - self._done)
        self._done = max(self._done, until)


_READ_PHASE = 0.25  # of a physics step: a reader may be three quarters of a step late, or a quarter early


class RealTimePace:
    """Physics follows the clock in whole physics steps; rewards are those of the control periods completed.

    Where a physics step lasts about as long as a control period, a loop that happens to read where one step ends and
    the next begins would, with the slightest jitter, get some readings twice and others a period old. The first
    reading of an episode therefore sets the physics' clock: it falls a quarter of a step behind a whole step.
    """

    def __init__(self, environment: SimEnvironment, clock: Callable[[], int]):
        self._environment, self._clock = environment, clock
        self._stepper = PartialStepper(environment)
        self._step_ns = environment.backend.physics_dt * 1e9
        self._is_first = True
        self._is_coarse = 2 * self._step_ns > environment.spec.control_dt * 1e9
        self._start_ns = self._steps = self._read_steps = 0
        self._reward = 0.0
        self._boundary: tuple[int, StepResult] | None = None

    def start(self) -> int:
        """An episode begins now; the time in ns."""
        self._stepper.start()
        self._is_first = True
        self._start_ns, self._steps, self._read_steps = self._clock(), 0, 0
        self._reward, self._boundary = 0.0, None
        return self._start_ns

    def command(self, held: FloatArray) -> None:
        """A new command is about to replace `held`, which was in force until now."""
        self._catch_up(held)

    def read(self, held: FloatArray) -> Measurement | None:
        """The reading at the last whole physics step; None if none has passed since the reading before."""
        if self._is_first:
            self._is_first = False
            if self._is_coarse:
                self._align()
        self._catch_up(held)
        if self._steps == self._read_steps:
            return None
        self._read_steps = self._steps
        reward, self._reward = self._reward, 0.0
        time_ns = self._start_ns + round(self._steps * self._step_ns)
        if self._boundary is not None and self._boundary[0] == self._steps:
            result = self._boundary[1]
            return Measurement(result.observation, time_ns, reward, result.terminated, result.truncated, result.info)
        observation, info = self._environment.reading()
        return Measurement(observation, time_ns, reward, False, False, info)

    def _align(self) -> None:
        """Shift the start by less than a step, so that a reading now is `_READ_PHASE` behind a whole step."""
        now = self._clock()
        steps = math.floor((now - self._start_ns) / self._step_ns + 1e-6)
        if steps >= 1:
            self._start_ns = now - round((steps + _READ_PHASE) * self._step_ns)

    def _catch_up(self, held: FloatArray) -> None:
        due = math.floor((self._clock() - self._start_ns) / self._step_ns + 1e-6)
        if due <= self._steps or self._environment.ended:
            return
        results = self._stepper.run(held, due - self._steps)
        self._steps = due
        if results:
            self._reward += sum(result.reward for result in results)
            boundary = due - self._stepper.steps_into_period
            self._boundary = (due if self._environment.ended else boundary, results[-1])
