"""Advancing a task by any number of physics steps, as a clock demands, while rewards stay those of whole periods.

Tasks compute a reward from the states at both ends of a control period, in one call. That call is made when the
period is complete: the state of its beginning is put back, and the task's own stepping is replaced by putting the
state of its end in place.
"""

from __future__ import annotations

import mujoco

from mpo_robot.types import FloatArray, StepResult
from sim.environment import SimEnvironment


class PartialStepper:
    """Steps an environment that was made with `stepwise=True`; use instead of its `step`, after its `reset`."""

    def __init__(self, environment: SimEnvironment):
        self._environment = environment
        self._backend = environment.backend
        self._before = mujoco.MjData(self._backend.model)
        self._after = mujoco.MjData(self._backend.model)
        self._done = 0

    def start(self) -> None:
        """Forget the period that a reset cut short."""
        self._done = 0

    def run(self, command: FloatArray, steps: int) -> list[StepResult]:
        """Hold a command [A] for `steps` physics steps, or until the episode ends.

        Returns:
            One result for each control period that was completed; often none.
        """
        results: list[StepResult] = []
        actuation, length = self._environment.actuation, self._backend.physics_steps
        while steps > 0 and not self._environment.ended:
            if self._done == 0:
                self._environment.begin_period()
                mujoco.mj_copyData(self._before, self._backend.model, self._backend.data)
            part = min(steps, length - self._done)
            self._backend.write_control(command)
            actuation.issue()
            actuation.run(part)
            steps -= part
            self._done += part
            if self._done == length:
                self._done = 0
                results.append(self._finish(command))
        return results

    @property
    def steps_into_period(self) -> int:
        """Physics steps since the last control period was completed."""
        return self._done

    def _finish(self, command: FloatArray) -> StepResult:
        backend = self._backend
        model, data, after = backend.model, backend.data, self._after
        mujoco.mj_copyData(after, model, data)
        mujoco.mj_copyData(data, model, self._before)
        backend.advance = lambda: mujoco.mj_copyData(data, model, after)
        try:
            return self._environment.finish_period(backend.step(command))
        finally:
            backend.advance = self._environment.actuation.advance_period
