"""One running episode: tick after tick until something ends it.

Each tick: read the robot, ask for an action until an absolute deadline, fall back if none came, filter the command,
send it, and only then do the bookkeeping (log the step that ended with this reading, keep the connection). The robot
owns the clock; nothing else may delay it. Shapes: O observation size, A action size.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from deploy.action_source import Action
from deploy.fallback import LadderState, Mode, advance, mode_of, pass_over
from deploy.log_writer import EpisodeLogWriter
from deploy.loop_parts import EndReason, LoopParts
from deploy.loop_statistics import LoopStatistics
from deploy.observation_checks import ObservationMonitor, Verdict
from deploy.robot import Measurement, Robot, RobotError
from deploy.safety import CommandLimits, filter_command
from deploy.step_builder import Decision, OpenStep, StepBuilder
from deploy.stopping import Watchdog
from deploy.timing import FastSchedule, RateSchedule, Tick
from deploy.watch import TermWatch

FloatArray = npt.NDArray[np.float32]
End = tuple[EndReason, str]


class EpisodeRunner:
    """State of one episode.

    Attributes:
        statistics: Timing and counters so far.
        completed: Steps whose outcome is known.
        total_reward: Sum of their known rewards.
    """

    def __init__(
        self,
        robot: Robot,
        parts: LoopParts,
        limits: CommandLimits,
        episode_id: str,
        first: Measurement,
        log: EpisodeLogWriter | None,
    ) -> None:
        """Take over after `Robot.start_episode` returned `first`."""
        spec, clock, loop = robot.spec, parts.clock, parts.loop
        self.statistics = LoopStatistics(spec.control_dt)
        self.completed = 0
        self.total_reward = 0.0
        self._robot, self._parts, self._limits = robot, parts, limits
        self._spec, self._clock = spec, clock
        self._first: Measurement | None = first
        self._monitor = ObservationMonitor(parts.observation, spec.control_dt, check_age=loop.is_real_time)
        self._watch = TermWatch(parts.safety.watch, spec)
        wall_time_ns = clock.wall_time_ns()
        self._builder = StepBuilder(spec, episode_id, wall_time_ns - first.monotonic_ns)
        self._ladder = LadderState()
        self._previous = _vector(robot.safe_pose_command(), spec.action_size, "safe_pose_command() returned")
        self._open: OpenStep | None = None
        self._sent = 0
        period_ns = round(spec.control_dt * 1e9)
        self._deadline_ns = round(loop.deadline * period_ns if loop.is_real_time else loop.fast_timeout_s * 1e9)
        self._schedule = (
            RateSchedule(clock, period_ns, round(loop.late_tolerance * period_ns))
            if loop.is_real_time
            else FastSchedule(clock)
        )
        self._log = log
        if log is not None:
            log.describe(first.info, first.monotonic_ns, wall_time_ns)

    def run(self, watchdog: Watchdog) -> End:
        """Tick until the episode ends; returns the reason and, for faults, what happened."""
        end = None
        while end is None:
            tick = self._schedule.next_tick()
            watchdog.feed()
            end = self._tick(tick, watchdog)
        return end

    def close_log(self, reason: str, detail: str) -> str:
        """Close the log with the statistics; returns why logging failed, or an empty text."""
        if self._log is None:
            return ""
        self.statistics.log_dropped = self._log.dropped
        self._log.close({**self.statistics.summary(), "end_reason": reason, "end_detail": detail})
        self.statistics.log_dropped = self._log.dropped
        return "" if self._log.error is None else str(self._log.error) or repr(self._log.error)

    def _tick(self, tick: Tick, watchdog: Watchdog) -> End | None:
        stats = self.statistics
        stats.jitter.append(tick.started_ns - tick.scheduled_ns)
        stats.overruns += tick.skipped > 0
        stats.skipped_periods += tick.skipped
        measurement = self._read()
        verdict = self._monitor.check(measurement, self._clock.monotonic_ns())
        stats.faults.update(verdict.faults)
        finished, self._open, end = self._open, None, None
        try:
            end = self._end_of(measurement, verdict, watchdog) or self._act(measurement, verdict, tick)
            if end is None:
                stats.work.append(self._clock.monotonic_ns() - tick.started_ns)
                self._parts.source.maintain()
        finally:
            if finished is not None:
                self._complete(finished, measurement, verdict, truncated=end is not None)
        return end

    def _read(self) -> Measurement:
        measurement, self._first = self._first or self._robot.read(), None
        observation = _vector(measurement.observation, self._spec.observation_size, "read() returned an observation")
        return measurement._replace(observation=observation)

    def _end_of(self, measurement: Measurement, verdict: Verdict, watchdog: Watchdog) -> End | None:
        if measurement.terminated:
            return EndReason.TERMINATED, ""
        if measurement.truncated:
            return EndReason.TRUNCATED, ""
        if watchdog.fired:
            return EndReason.WATCHDOG, "the robot's driver did not return in time"
        watched = self._watch.check(measurement)
        self.statistics.faults.update(watched.violations)
        if verdict.stop or watched.fault:
            return EndReason.SAFETY, verdict.stop or watched.fault
        if self._parts.should_stop():
            return EndReason.OPERATOR, ""
        if 0 < self._parts.loop.max_steps <= self._sent:
            return EndReason.MAX_STEPS, ""
        return None

    def _act(self, measurement: Measurement, verdict: Verdict, tick: Tick) -> End | None:
        """Decide, make safe, send. Returns the end of the episode if no command may be sent."""
        stats = self.statistics
        decision = self._decide(measurement.observation, verdict.usable, tick)
        if decision is None:
            cause = self._parts.source.last_error
            return EndReason.FALLBACK, "no usable action until the end of the ladder" + (f": {cause}" if cause else "")
        safe = filter_command(decision.command, self._previous, self._limits)
        stats.faults.update(safe.violations)
        if safe.command is None:
            return EndReason.SAFETY, safe.stop
        applied = _vector(
            self._robot.send_command(safe.command.copy()), self._spec.action_size, "send_command() returned"
        )
        modified = decision.action is None or safe.modified or not self._is_same(applied, safe.command)
        stats.modified += modified
        stats.steps += 1
        usable = verdict.usable and bool(np.isfinite(applied).all())
        self._open = OpenStep(
            self._sent, measurement.observation, measurement.monotonic_ns, usable, decision, applied, modified
        )
        self._previous = applied
        self._sent += 1
        return None

    def _decide(self, observation: FloatArray, usable: bool, tick: Tick) -> Decision | None:
        """Command of the policy or of the ladder; None if the ladder has come to its end."""
        stats, parts = self.statistics, self._parts
        asked_ns = self._clock.monotonic_ns()
        deadline_ns = self._deadline_ns + (tick.scheduled_ns if parts.loop.is_real_time else asked_ns)
        action, missed = None, False
        if usable:
            action = parts.source.act(observation, self._sent, deadline_ns)
            missed = action is None or self._clock.monotonic_ns() > deadline_ns
            stats.deadline_misses += missed
            action = self._checked(action)
        state = advance(self._ladder, parts.fallback, has_action=action is not None, local_usable=usable)
        if mode_of(state, parts.fallback) is not Mode.POLICY:
            action = None
        if mode_of(state, parts.fallback) is Mode.LOCAL and parts.local is not None:
            action = self._checked(parts.local.act(observation, self._sent, deadline_ns))
            if action is None:
                state = pass_over(state, parts.fallback)
        latency_ns = self._clock.monotonic_ns() - asked_ns
        if usable:
            stats.latency.append(latency_ns)
        self._ladder, mode = state, mode_of(state, parts.fallback)
        if mode is not Mode.POLICY:
            stats.fallbacks[mode.value] += 1
        if mode is Mode.STOP:
            return None
        return Decision(self._command(mode, action), action, latency_ns, missed)

    def _command(self, mode: Mode, action: Action | None) -> FloatArray:
        if action is not None:
            return self._spec.to_command(action.action)
        if mode is Mode.HOLD:
            return self._previous
        return _vector(self._robot.safe_pose_command(), self._spec.action_size, "safe_pose_command() returned")

    def _checked(self, action: Action | None) -> Action | None:
        """The action, or None if it is not finite: NaN never becomes a command."""
        if action is None or np.isfinite(action.action).all():
            return action
        self.statistics.rejected_actions += 1
        return None

    def _is_same(self, applied: FloatArray, sent: FloatArray) -> bool:
        tolerance = self._parts.safety.applied_tolerance
        if tolerance <= 0:
            return np.array_equal(applied, sent)
        return bool((np.abs(applied - sent) <= tolerance * self._spec.command_half_range).all())

    def _complete(self, step: OpenStep, measurement: Measurement, verdict: Verdict, truncated: bool) -> None:
        """The outcome of a step is known: count it and log it."""
        self.completed += 1
        if math.isfinite(measurement.reward):
            self.total_reward += float(measurement.reward)
        valid = step.usable and verdict.usable
        self.statistics.invalid_steps += not valid
        if self._log is not None:
            record = self._builder.complete(step, measurement, truncated)
            # A transition between unfit readings would teach wrong dynamics; it is kept, but apart.
            (self._log.append if valid else self._log.append_invalid)(record)


def _vector(values: npt.ArrayLike, size: int, what: str) -> FloatArray:
    """Own float32 copy [size]: a driver may reuse its buffers."""
    array = np.array(values, np.float32)
    if array.shape != (size,):
        raise RobotError(f"the robot's {what} of shape {array.shape}, its spec says ({size},)")
    return array
