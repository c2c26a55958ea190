"""`ControlLoop`: episodes of one robot at a fixed rate. However an episode ends, the robot is stopped first.

`Robot.stop` is called before anything that could block, such as closing the log. The loop drives the state machine of
`deploy.robot_state`: every command is sent in a state that allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from deploy.episode_runner import EpisodeRunner
from deploy.fault_latch import RobotFaultError
from deploy.log_writer import EpisodeLogWriter
from deploy.loop_parts import EndReason, LoopParts
from deploy.loop_statistics import LoopStatistics
from deploy.robot import Robot
from deploy.robot_state import Event, State, StateMachine
from deploy.safety import compile_limits
from deploy.stopping import Watchdog, stop_robot
from deploy.timing import steady_interpreter
from deploy.watch import TermWatch
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
            on_hang: Called with the episode's id, from another thread, when the watchdog has stopped the robot because
                a tick does not end.

        Raises:
            ConfigError: limits that name unknown terms, a ladder with `local` but no policy, a too short watchdog, a
                command rate that is no multiple of the policy's.
        """
        self._robot = robot
        self._parts = parts
        self._on_hang = on_hang
        count = parts.loop.commands_per_period(robot.spec)
        self._limits = compile_limits(parts.safety, robot.spec, robot.spec.control_dt / count)
        TermWatch(parts.safety.watch, robot.spec)
        if parts.fallback.needs_local_policy and parts.local is None:
            raise ConfigError(
                "fallback.ladder has the rung `local`, which needs a policy file in this process: "
                "set policy_path, or take the rung out"
            )
        if parts.loop.is_real_time and 0 < parts.loop.watchdog_s <= 2 * robot.spec.control_dt:
            raise ConfigError(
                f"loop.watchdog_s must be 0 or longer than two periods of {robot.spec.control_dt} s, "
                f"got {parts.loop.watchdog_s}"
            )
        self.machine = StateMachine(parts.clock.monotonic_ns)

    def connect(self) -> None:
        """Connect the robot; its motors stay off or hold still. If the driver raises, the state stays INIT."""
        self._robot.connect()
        self.machine.fire(Event.CONNECTED)

    def disconnect(self) -> None:
        """Stop the robot, then disconnect it."""
        self.machine.fire(Event.STOP)
        try:
            stop_robot(self._robot)
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
        """Run one episode to its end. The robot is stopped when this returns or raises.

        A robot that the caller has connected by itself may be in state INIT.

        Raises:
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
                runner = self._start(episode_id, seed, log)
                reason, detail, log_error = self._run(runner, episode_id)
            finally:
                stop_robot(self._robot)
        return EpisodeResult(
            episode_id=episode_id,
            steps=runner.completed,
            undiscounted_return=runner.total_reward,
            reason=reason,
            detail=detail,
            policy_version=version,
            statistics=runner.statistics,
            log_error=log_error,
            state=self.machine.state,
        )

    def _start(self, episode_id: str, seed: int | None, log: EpisodeLogWriter | None) -> EpisodeRunner:
        try:
            self._require_armed()  # again: the server may have been waited for
            self.machine.fire(Event.HOME)
            first = self._robot.start_episode(seed)
            runner = EpisodeRunner(self._robot, self._parts, self._limits, self.machine, episode_id, first, log)
            self.machine.fire(Event.HOMED)
            return runner
        except BaseException as error:
            self._halt(error)
            stop_robot(self._robot)
            if log is not None:
                log.discard()
            raise

    def _run(self, runner: EpisodeRunner, episode_id: str) -> tuple[EndReason, str, str]:
        """(reason, detail, log error). Whatever happens: first the robot is stopped, then the log is closed."""
        loop, label, detail, log_error = self._parts.loop, "error", "", ""
        timeout_s = loop.watchdog_s if loop.is_real_time else 0.0
        watchdog = Watchdog(self._robot, timeout_s, lambda: self._on_hang(episode_id))
        try:
            with watchdog:
                reason, detail = runner.run(watchdog)
                self._end(reason)
            label = reason.value
        except BaseException as error:
            self._halt(error)
            detail = repr(error)
            raise
        finally:
            try:
                stop_robot(self._robot)
            finally:
                log_error = runner.close_log(label, detail)
        return reason, detail, log_error

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
