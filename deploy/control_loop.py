"""`ControlLoop`: episodes of one robot at a fixed rate. However an episode ends, the robot is stopped first.

`Robot.stop` is called before anything that could block, such as closing the log. The loop drives the state machine of
`deploy.robot_state`: every command is sent in a state that allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from deploy.episode_runner import EpisodeRunner
from deploy.fault_latch import RobotFaultError
from deploy.homing import HomingWatch
from deploy.log_writer import EpisodeLogWriter
from deploy.loop_parts import End, EndReason, LoopParts, limits_for
from deploy.loop_statistics import LoopStatistics
from deploy.robot import Measurement, Robot
from deploy.robot_state import Event, State, StateMachine
from deploy.stopping import StopFailedError, Watchdog
from deploy.timing import steady_interpreter
from mpo_robot.errors import ConfigError


class EpisodeResult(NamedTuple):
    """Outcome of one episode.

    Attributes:
        episode_id: Its name.
        steps: Completed steps.
        undiscounted_return: Sum of the known rewards.
        reason: Why it ended.
        detail: The reason in words, for faults.
        policy_version: Version that was to act when it began.
        statistics: Timing and counters.
        log_error: Why logging failed, or empty.
        state: Of the robot afterwards: STOPPED or FAULT.
        has_begun: Whether the robot reached its start pose: only then does the episode say anything of the policy.
    """

    episode_id: str
    steps: int
    undiscounted_return: float
    reason: EndReason
    detail: str
    policy_version: str
    statistics: LoopStatistics
    log_error: str
    state: State = State.STOPPED
    has_begun: bool = True


class ControlLoop:
    """Runs episodes on one robot, in one thread.

    Attributes:
        machine: The robot's state; other threads may read `machine.state`.
    """

    def __init__(
        self, robot: Robot, parts: LoopParts, on_hang: Callable[[str], None] = lambda episode_id: None
    ) -> None:
        """Check that the configuration fits the robot.

        Args:
            robot: The robot.
            parts: What the loop is made of.
            on_hang: Called with the episode's id, from another thread, when the robot was stopped because a tick, or
                `Robot.start_episode`, does not end.

        Raises:
            ConfigError: what `limits_for` refuses, or a ladder with `local` but no policy.
        """
        self._robot = robot
        self._parts = parts
        self._on_hang = on_hang
        self._limits = limits_for(robot.spec, parts.loop, parts.safety, parts.observation)
        if parts.fallback.needs_local_policy and parts.local is None:
            raise ConfigError(
                "fallback.ladder has the rung `local`, which needs a policy file in this process: "
                "set policy_path, or take the rung out"
            )
        self.machine = StateMachine(parts.clock.monotonic_ns)

    def connect(self) -> None:
        """Connect the robot; its motors stay off or hold still. If the driver raises, the state stays INIT."""
        self._robot.connect()
        self.machine.fire(Event.CONNECTED)

    def disconnect(self) -> None:
        """Stop the robot, then disconnect it.

        Raises:
            StopFailedError: it could not be stopped, and is in FAULT. It was disconnected all the same.
            Exception: whatever the driver raised while disconnecting; the state stays.
        """
        self.machine.fire(Event.STOP)
        try:
            self._stop()
        finally:
            self._robot.disconnect()
            self.machine.fire(Event.DISCONNECTED)

    def rearm(self) -> None:
        """Leave FAULT, and take a tripped e-stop back. Only on the explicit act of a human who has looked at the robot.

        Raises:
            StateError: the robot is not in FAULT.
        """
        self.machine.fire(Event.REARM)
        self._parts.estop.rearm()

    def take_estop(self) -> bool:
        """Whether the e-stop is tripped; the robot is then in FAULT. For between episodes."""
        if self._parts.estop.tripped:
            self.machine.fire(Event.ESTOP)
        return self._parts.estop.tripped

    def run_episode(self, episode_id: str, seed: int | None = None) -> EpisodeResult:
        """Run one episode to its end. The robot is stopped when this returns, or raises anything but `StopFailedError`.

        A robot that the caller has connected by itself may be in state INIT.

        Raises:
            StopFailedError: the robot could not be stopped, and is in FAULT.
            RobotFaultError: the robot is in FAULT, or its e-stop is tripped.
            MpoRobotError: the policy server cannot be reached or refuses; the log cannot be created.
            Exception: whatever the robot's driver raised.
        """
        self._require_armed()
        if self.machine.state is State.INIT:
            self.machine.fire(Event.CONNECTED)
        version = self._parts.source.begin_episode(episode_id)
        log = self._parts.open_log(episode_id) if self._parts.open_log is not None else None
        # Everything slow comes before the robot is switched on, so that the first tick follows its first reading.
        with steady_interpreter():
            try:
                started = self._start(episode_id, seed, log)
                if not isinstance(started, EpisodeRunner):
                    return self._not_begun(episode_id, version, started)
                end, log_error = self._run(started, episode_id)
            finally:
                self._stop()
        return EpisodeResult(
            episode_id=episode_id,
            steps=started.completed,
            undiscounted_return=started.total_reward,
            reason=end.reason,
            detail=end.detail,
            policy_version=version,
            statistics=started.statistics,
            log_error=log_error,
            state=self.machine.state,
        )

    def _start(self, episode_id: str, seed: int | None, log: EpisodeLogWriter | None) -> EpisodeRunner | End:
        """The episode, or why the robot was stopped on the way to its start pose."""
        runner: EpisodeRunner | None = None
        try:
            outcome = self._home(episode_id, seed)
            if isinstance(outcome, End):
                self._end(outcome.reason)
                return outcome
            runner = EpisodeRunner(self._robot, self._parts, self._limits, self.machine, episode_id, outcome, log)
            self.machine.fire(Event.HOMED)
            return runner
        except BaseException as error:
            runner = None
            self._halt(error)
            raise
        finally:
            if runner is None:
                try:
                    self._stop()
                finally:
                    if log is not None:
                        log.discard()

    def _home(self, episode_id: str, seed: int | None) -> Measurement | End:
        """The first reading in the start pose, or why the robot was stopped on its way there."""
        with (
            HomingWatch(self._robot, self._parts, lambda: self._on_hang(episode_id)) as watch,
            self._parts.estop.may_undo_stops(),
        ):
            self._require_armed()  # again: the server may have been waited for
            self.machine.fire(Event.HOME)
            try:
                first = self._robot.start_episode(seed)
            except Exception as error:
                if watch.end is None:
                    raise
                return watch.end._replace(detail=f"{watch.end.detail} (start_episode then raised {error!r})")
        return watch.end or first

    def _not_begun(self, episode_id: str, version: str, end: End) -> EpisodeResult:
        statistics = LoopStatistics(self._robot.spec.control_dt)
        statistics.record_states(self.machine)
        return EpisodeResult(
            episode_id, 0, 0.0, end.reason, end.detail, version, statistics, "", self.machine.state, has_begun=False
        )

    def _run(self, runner: EpisodeRunner, episode_id: str) -> tuple[End, str]:
        """Why the episode ended, and why the log failed. Whatever happens: first a stop, then the log is closed."""
        label, detail, log_error = "error", "", ""
        try:
            try:
                end = self._tick_on(runner, episode_id)
                label, detail = end.reason.value, end.detail
            except BaseException as error:
                self._halt(error)
                detail = repr(error)
                raise
            finally:
                self._stop()
        except StopFailedError as error:
            label, detail = "error", repr(error)
            raise
        finally:
            log_error = runner.close_log(label, detail)
        return end, log_error

    def _tick_on(self, runner: EpisodeRunner, episode_id: str) -> End:
        loop = self._parts.loop
        timeout_s = loop.watchdog_s if loop.is_real_time else 0.0
        watchdog = Watchdog(self._robot, timeout_s, lambda: self._on_hang(episode_id))
        try:
            with watchdog:
                end = runner.run(watchdog)
        except Exception as error:
            if not self._parts.estop.tripped:
                raise
            # The robot was stopped while its driver was busy: no fault of its own.
            end = End(EndReason.ESTOP, f"{self._parts.estop.reason} (the driver then raised {error!r})")
        self._end(end.reason)
        return end

    def _stop(self) -> None:
        """Stop the robot. If that cannot be done it is in FAULT, however harmless the reason to stop it was."""
        try:
            self._parts.estop.stop(self._robot)
        except StopFailedError:
            self.machine.fire(Event.FAULT)
            raise

    def _require_armed(self) -> None:
        if self.take_estop() or self.machine.state is State.FAULT:
            cause = f" ({self._parts.estop.reason})" if self._parts.estop.tripped else ""
            raise RobotFaultError(f"the robot is in FAULT{cause}: no episode begins before a human has re-armed it")

    def _end(self, reason: EndReason) -> None:
        """The state that the end of an episode leads to."""
        if reason is EndReason.ESTOP:
            self.machine.fire(Event.ESTOP)
        else:
            self.machine.fire(Event.FAULT if reason.is_fault else Event.STOP)

    def _halt(self, error: BaseException) -> None:
        """The state that an exception leads to: an operator's interrupt stops, anything else is a fault."""
        self.machine.fire(Event.STOP if isinstance(error, (KeyboardInterrupt, SystemExit)) else Event.FAULT)
