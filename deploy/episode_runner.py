"""One running episode: tick after tick until something ends it.

Each tick: read the robot, ask for an action until an absolute deadline, fall back if none came, filter the command,
send it, and only then do the bookkeeping (log the step that ended with this reading, keep the connection). Further
motor commands of the period, if any, follow on their own schedule. The robot owns the clock; nothing else may delay
it. Shapes: O observation size, A action size.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from deploy.action_source import Action
from deploy.command_sender import CommandSender, checked_vector
from deploy.fallback import LadderState, Mode, advance, mode_of, pass_over
from deploy.log_writer import EpisodeLogWriter
from deploy.loop_parts import End, EndReason, LoopParts
from deploy.loop_statistics import LoopStatistics
from deploy.observation_checks import ObservationMonitor, Verdict
from deploy.robot import Measurement, Robot
from deploy.robot_state import Event, State, StateMachine
from deploy.safety import CommandLimits
from deploy.step_builder import Decision, OpenStep, StepBuilder
from deploy.stopping import Watchdog
from deploy.timing import FastSchedule, RateSchedule, Tick
from deploy.watch import TermWatch, draw_back

FloatArray = npt.NDArray[np.float32]
_STOPPED_BY_WATCHDOG = End(EndReason.WATCHDOG, "the robot's driver did not return in time")


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
        machine: StateMachine,
        episode_id: str,
        first: Measurement,
        log: EpisodeLogWriter | None,
    ) -> None:
        """Take over after `Robot.start_episode` returned `first`."""
        spec, clock, loop = robot.spec, parts.clock, parts.loop
        self.statistics = LoopStatistics(spec.control_dt)
        self.completed = 0
        self.total_reward = 0.0
        self._robot, self._parts, self._machine = robot, parts, machine
        self._spec, self._clock = spec, clock
        self._first: Measurement | None = first
        self._monitor = ObservationMonitor(parts.observation, spec, check_age=loop.is_real_time)
        self._watch = TermWatch(parts.safety.watch, spec)
        self._authority = 1.0
        wall_time_ns = clock.wall_time_ns()
        self._builder = StepBuilder(spec, episode_id, wall_time_ns - first.monotonic_ns)
        self._ladder = LadderState()
        self._sender = CommandSender(robot, parts, limits, machine, self.statistics)
        self._open: OpenStep | None = None
        self._broken_off: End | None = None
        self._sent = 0
        period_ns = round(spec.control_dt * 1e9)
        self._command_ns = period_ns // self._sender.count
        self._deadline_ns = round(loop.deadline * period_ns if loop.is_real_time else loop.fast_timeout_s * 1e9)
        self._schedule = (
            RateSchedule(clock, period_ns, round(loop.late_tolerance * period_ns))
            if loop.is_real_time
            else FastSchedule(clock)
        )
        self._last_start_ns: int | None = None
        self._log = log
        if log is not None:
            log.describe(self._description(first), first.monotonic_ns, wall_time_ns)

    def run(self, watchdog: Watchdog) -> End:
        """Tick until the episode ends; returns the reason and, for faults, what happened."""
        end = None
        while end is None:
            tick = self._schedule.next_tick()
            watchdog.feed()
            end = self._tick(tick, watchdog)
            if end is None:
                self._finish_period(tick, watchdog)
        return end

    def close_log(self, reason: str, detail: str) -> str:
        """Close the log with the statistics; returns why logging failed, or an empty text."""
        self.statistics.record_states(self._machine)
        if self._log is None:
            return ""
        self.statistics.log_dropped = self._log.dropped
        self._log.close({**self.statistics.summary(), "end_reason": reason, "end_detail": detail})
        self.statistics.log_dropped = self._log.dropped
        return "" if self._log.error is None else str(self._log.error) or repr(self._log.error)

    def _description(self, first: Measurement) -> dict[str, object]:
        """The robot's own info, and how a step's motor commands follow from its action, if there are many."""
        if self._sender.count == 1:
            return first.info
        commands = {"per_step": self._sender.count, "interpolation": self._parts.loop.interpolation}
        return {**first.info, "commands": commands}

    def _tick(self, tick: Tick, watchdog: Watchdog) -> End | None:
        self._time(tick)
        measurement = self._read()
        halted = self._parts.estop.tripped  # before this reading: the motors did something else than the step says
        verdict = self._monitor.check(measurement, self._clock.monotonic_ns(), self._sender.previous)
        self.statistics.faults.update(verdict.faults)
        finished, self._open, end = self._open, None, None
        try:
            end = self._end_of(measurement, verdict, watchdog) or self._act(measurement, verdict, tick, watchdog)
            if end is None:
                self.statistics.work.add(self._clock.monotonic_ns() - tick.started_ns)
                self._parts.source.maintain()
        finally:
            if finished is not None:
                fit = finished.usable and verdict.usable and not halted
                self._complete(finished, measurement, fit, truncated=end is not None)
        return end

    def _time(self, tick: Tick) -> None:
        stats = self.statistics
        stats.jitter.add(tick.started_ns - tick.scheduled_ns)
        if self._last_start_ns is not None:
            stats.period.add(tick.started_ns - self._last_start_ns)
        self._last_start_ns = tick.started_ns
        stats.overruns += tick.skipped > 0
        stats.skipped_periods += tick.skipped

    def _read(self) -> Measurement:
        measurement, self._first = self._first or self._robot.read(), None
        observation = checked_vector(
            measurement.observation, self._spec.observation_size, "read() returned an observation"
        )
        return measurement._replace(observation=observation)

    def _end_of(self, measurement: Measurement, verdict: Verdict, watchdog: Watchdog) -> End | None:
        if self._broken_off is not None:
            return self._broken_off
        if self._parts.estop.tripped:
            return End(EndReason.ESTOP, self._parts.estop.reason)
        if watchdog.fired:
            return _STOPPED_BY_WATCHDOG
        if measurement.terminated:
            return End(EndReason.TERMINATED, "")
        if measurement.truncated:
            return End(EndReason.TRUNCATED, "")
        watched = self._watch.check(measurement)
        self.statistics.faults.update(watched.violations)
        self._authority = watched.authority
        if verdict.stop or watched.fault:
            return End(EndReason.SAFETY, verdict.stop or watched.fault)
        if self._parts.should_stop():
            return End(EndReason.OPERATOR, "")
        if 0 < self._parts.loop.max_steps <= self._sent:
            return End(EndReason.MAX_STEPS, "")
        return None

    def _act(self, measurement: Measurement, verdict: Verdict, tick: Tick, watchdog: Watchdog) -> End | None:
        """Decide, make safe, send. Returns the end of the episode if no command may be sent."""
        decision, mode = self._decide(measurement.observation, verdict.usable, tick)
        self._put_in_charge(mode)
        if decision is None:
            cause = self._parts.source.last_error
            return End(
                EndReason.FALLBACK, "no usable action until the end of the ladder" + (f": {cause}" if cause else "")
            )
        target = decision.command
        if self._authority < 1.0:
            target = draw_back(target, self._safe_pose(), self._authority)
        if watchdog.fired:  # while this thread waited for the action, or was kept from running: the robot is stopped
            return _STOPPED_BY_WATCHDOG
        late_ns = self._clock.monotonic_ns() - tick.scheduled_ns if self._parts.loop.is_real_time else 0
        self._sender.aim(target, mode, first=late_ns // self._command_ns)
        refused = self._sender.send()
        if refused is not None:
            return refused
        self._open = OpenStep(
            index=self._sent,
            observation=measurement.observation,
            monotonic_ns=measurement.monotonic_ns,
            usable=verdict.usable,
            decision=decision,
            applied=self._sender.previous,
            modified=decision.action is None or self._authority < 1.0,
        )
        self.statistics.steps += 1
        self._sent += 1
        return None

    def _put_in_charge(self, mode: Mode) -> None:
        """Tell the state machine who acts in this period."""
        machine = self._machine
        if machine.state is State.READY:
            machine.fire(Event.START)
        if mode is Mode.POLICY and machine.state is State.FALLBACK:
            machine.fire(Event.ACTION_BACK)
        elif mode is not Mode.POLICY and machine.state is State.RUN:
            machine.fire(Event.NO_ACTION)

    def _finish_period(self, tick: Tick, watchdog: Watchdog) -> None:
        """Send the other motor commands of the period, each when it is due, and take down what was applied."""
        sender = self._sender
        broken_off = sender.fault
        while sender.next_index < sender.count and broken_off is None:
            if self._parts.loop.is_real_time:
                due_ns = tick.scheduled_ns + sender.next_index * self._command_ns
                if self._clock.monotonic_ns() >= due_ns + self._command_ns:
                    sender.skip()
                    continue
                self._clock.sleep_until(due_ns)
            if watchdog.fired:
                break
            broken_off = sender.send() or sender.fault
        assert self._open is not None
        modified = self._open.modified or sender.changed or not sender.arrived or broken_off is not None
        usable = self._open.usable and broken_off is None
        self._open = self._open._replace(applied=sender.previous, modified=modified, usable=usable)
        self.statistics.modified += modified
        if broken_off is not None:
            # At once; the next tick's reading still becomes the outcome of this step.
            self._broken_off = broken_off
            self._parts.estop.stop(self._robot)

    def _decide(self, observation: FloatArray, usable: bool, tick: Tick) -> tuple[Decision | None, Mode]:
        """What the policy or the ladder wants, and who it is; no decision if the ladder has come to its end."""
        stats, parts = self.statistics, self._parts
        asked_ns = self._clock.monotonic_ns()
        deadline_ns = self._deadline_ns + (tick.scheduled_ns if parts.loop.is_real_time else asked_ns)
        action, missed, cause = None, False, "unfit_reading"
        if usable:
            action = parts.source.act(observation, self._sent, deadline_ns)
            missed = action is None or self._clock.monotonic_ns() > deadline_ns
            cause = parts.source.miss_cause if action is None else "late" if missed else ""
            stats.deadline_misses += missed
            action, cause = self._checked(action, cause)
        state = advance(self._ladder, parts.fallback, has_action=action is not None, local_usable=usable)
        if mode_of(state, parts.fallback) is not Mode.POLICY:
            action, cause = None, cause or "ladder"
        if mode_of(state, parts.fallback) is Mode.LOCAL and parts.local is not None:
            action, _ = self._checked(parts.local.act(observation, self._sent, deadline_ns), "")
            if action is None:
                state = pass_over(state, parts.fallback)
        latency_ns = self._clock.monotonic_ns() - asked_ns
        if usable:
            stats.latency.add(latency_ns)
        if cause:
            stats.misses[cause] += 1
        self._ladder, mode = state, mode_of(state, parts.fallback)
        if mode is not Mode.POLICY:
            stats.fallbacks[mode.value] += 1
        if mode is Mode.STOP:
            return None, mode
        return Decision(self._command(mode, action), action, latency_ns, missed), mode

    def _command(self, mode: Mode, action: Action | None) -> FloatArray:
        if action is not None:
            return self._spec.to_command(action.action)
        return self._sender.previous if mode is Mode.HOLD else self._safe_pose()

    def _safe_pose(self) -> FloatArray:
        return checked_vector(self._robot.safe_pose_command(), self._spec.action_size, "safe_pose_command() returned")

    def _checked(self, action: Action | None, cause: str) -> tuple[Action | None, str]:
        """The action and why it is missing; None if it is not finite: NaN never becomes a command."""
        if action is None or np.isfinite(action.action).all():
            return action, cause
        self.statistics.rejected_actions += 1
        return None, "not_finite"

    def _complete(self, step: OpenStep, measurement: Measurement, fit: bool, truncated: bool) -> None:
        """The outcome of a step is known: count it and log it; `fit` says whether it may be learned from."""
        self.completed += 1
        if math.isfinite(measurement.reward):
            self.total_reward += float(measurement.reward)
        self.statistics.invalid_steps += not fit
        if self._log is not None:
            record = self._builder.complete(step, measurement, truncated)
            # A transition between unfit readings would teach wrong dynamics; it is kept, but apart.
            (self._log.append if fit else self._log.append_invalid)(record)
