"""A session: connect a robot, run episodes until done, stopped or something goes wrong, and always let go of it."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from deploy.client_types import EpisodeOutcome
from deploy.control_loop import ControlLoop, EpisodeResult
from deploy.estop import EStopGuard
from deploy.fault_latch import FaultLatch, RobotFaultError
from deploy.loop_parts import EndReason, LoopParts
from deploy.robot import Robot
from deploy.robot_state import State, StateMachine

_log = logging.getLogger(__name__)


def run_session(
    robot: Robot,
    parts: LoopParts,
    *,
    name: str,
    episodes: int,
    seed: int | None = None,
    on_result: Callable[[EpisodeResult], None] = lambda result: None,
    on_machine: Callable[[StateMachine], None] = lambda machine: None,
    latch: FaultLatch | None = None,
) -> list[EpisodeResult]:
    """Run episodes; the robot is stopped and disconnected and the action source closed when this returns or raises.

    No new episode begins after a fault or an e-stop, a log that could not be written, or a request to stop. A fault is
    remembered in `latch`, as is a program that ends without stopping the robot; only a human takes it back.

    Args:
        robot: Not yet connected.
        parts: Of the control loop.
        name: Start of the episode ids.
        episodes: How many; 0 runs until stopped.
        seed: Episode i starts with seed + i.
        on_result: Called after each episode, with the robot stopped.
        on_machine: Called once with the robot's state machine, for those who show its state.
        latch: Where a fault is remembered; None forgets it with the process.

    Raises:
        RobotFaultError: a fault of an earlier session is still in force, another program has the robot, or `latch`
            cannot be written. The robot was not touched.
        Exception: see `ControlLoop.run_episode`.
    """
    latch = latch or FaultLatch(None)
    prefix = f"{name}-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"
    results: list[EpisodeResult] = []
    try:
        loop = ControlLoop(
            robot, parts, lambda name: _remember(latch, "watchdog", "a driver call did not return", name)
        )
        on_machine(loop.machine)
        episode_id = ""
        with latch.guarding(name) as was_stopped, EStopGuard(robot, parts.estop):
            try:
                loop.connect()
                while (episodes == 0 or len(results) < episodes) and not parts.should_stop() and not loop.take_estop():
                    index = len(results)
                    episode_id = f"{prefix}-{index:04d}"
                    result = loop.run_episode(episode_id, None if seed is None else seed + index)
                    results.append(result)
                    if result.state is State.FAULT:
                        _remember(latch, result.reason.value, result.detail, episode_id)
                    if result.has_begun:
                        parts.source.end_episode(_outcome(result))
                    on_result(result)
                    if result.reason is EndReason.OPERATOR or result.state is State.FAULT or result.log_error:
                        break
            except BaseException as error:
                if not (isinstance(error, RobotFaultError) and parts.estop.tripped):
                    if loop.machine.state is State.FAULT:
                        reason, before = ("estop", f"{parts.estop.reason}; ") if parts.estop.tripped else ("error", "")
                        _remember(latch, reason, f"{before}{error!r}", episode_id)
                    raise
            finally:
                _let_go(loop, latch, parts, episode_id, was_stopped)
    finally:
        parts.source.close()
        if parts.local is not None:
            parts.local.close()
    return results


def _let_go(
    loop: ControlLoop, latch: FaultLatch, parts: LoopParts, episode_id: str, was_stopped: Callable[[], None]
) -> None:
    """Stop and disconnect the robot. Only if that works, and it is in no fault, may it be started again."""
    try:
        loop.disconnect()
    except BaseException as error:
        if loop.take_estop():
            _remember(latch, "estop", parts.estop.reason, episode_id)
        elif not (isinstance(error, KeyboardInterrupt) and loop.machine.state is State.INIT):  # see `stop_robot`
            _remember(latch, "error", f"the robot could not be let go of: {error!r}", episode_id)
        else:
            was_stopped()
        raise
    if loop.take_estop():
        _remember(latch, "estop", parts.estop.reason, episode_id)
    elif loop.machine.state is not State.FAULT:
        was_stopped()


def _outcome(result: EpisodeResult) -> EpisodeOutcome:
    return EpisodeOutcome(
        steps=result.steps,
        undiscounted_return=result.undiscounted_return,
        misses=result.statistics.deadline_misses,
        fault=result.reason.is_fault or result.state is State.FAULT,
        reason=result.reason.value,
    )


def _remember(latch: FaultLatch, reason: str, detail: str, episode_id: str = "") -> None:
    problem = latch.set(reason, detail, episode_id)
    if problem:
        _log.error("%s", problem)
