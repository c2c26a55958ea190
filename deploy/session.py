"""A session: connect a robot, run episodes until done, stopped or something goes wrong, and always let go of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from deploy.control_loop import ControlLoop, EpisodeResult
from deploy.loop_parts import EndReason, LoopParts
from deploy.robot import Robot
from deploy.stopping import stop_robot


def run_session(
    robot: Robot,
    parts: LoopParts,
    *,
    name: str,
    episodes: int,
    seed: int | None = None,
    on_result: Callable[[EpisodeResult], None] = lambda result: None,
) -> list[EpisodeResult]:
    """Run episodes; the robot is stopped and disconnected and the action source closed when this returns or raises.

    No new episode begins after a fault, a log that could not be written, or a request to stop.

    Args:
        robot: Not yet connected.
        parts: Of the control loop.
        name: Start of the episode ids.
        episodes: How many; 0 runs until stopped.
        seed: Episode i starts with seed + i.
        on_result: Called after each episode, with the robot stopped.
    """
    prefix = f"{name}-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"
    results: list[EpisodeResult] = []
    try:
        loop = ControlLoop(robot, parts)
        try:
            robot.connect()
            while (episodes == 0 or len(results) < episodes) and not parts.should_stop():
                index = len(results)
                result = loop.run_episode(f"{prefix}-{index:04d}", None if seed is None else seed + index)
                results.append(result)
                on_result(result)
                if result.reason is EndReason.OPERATOR or result.reason.is_fault or result.log_error:
                    break
        finally:
            try:
                stop_robot(robot)
            finally:
                robot.disconnect()
    finally:
        parts.source.close()
        if parts.local is not None:
            parts.local.close()
    return results
