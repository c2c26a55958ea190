"""`mpo-robot rearm`: let a robot that is in FAULT move again. A human's decision; nothing else clears a fault."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.fault_latch import RobotFaultError
from deploy.robot_config import fault_latch
from deploy.robot_state import Event, State, transition
from mpo_robot.cli.run_robot import load_robot_config

EPILOG = """\
After an e-stop or another fault, or when the program ended without stopping the robot, run-robot refuses to move it.
Look at the robot, mend the cause, then run this on the same computer, as the same user and with the same robot file as
run-robot. Typing the robot's name confirms. Without a terminal, for somebody who stands at the robot all the same,
--confirm NAME together with --i-am-at-the-robot does; it has no place in a script that restarts robots. Examples:

  mpo-robot rearm --config my_robot.yaml
  mpo-robot rearm --config my_robot.yaml --confirm my_arm --i-am-at-the-robot
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rearm`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, over --config")
    parser.add_argument("--config", required=True, type=Path, help="robot YAML, as for run-robot")
    parser.add_argument("--log-dir", metavar="DIR", help="as for run-robot: earlier versions kept faults there")
    parser.add_argument("--confirm", metavar="NAME", help="the robot's name, instead of typing it")
    parser.add_argument(
        "--i-am-at-the-robot", action="store_true", help="without a terminal: a human sees the robot at this moment"
    )
    # What else run-robot is told on its command line does not matter here; a policy may have been.
    parser.set_defaults(episodes=None, policy="none.onnx", seed=None, endpoint=None)


def run(args: argparse.Namespace) -> int:
    """Exit code 0: no fault is in force any more; 2: not confirmed, or the fault cannot be removed."""
    config = load_robot_config(args)
    name, latch = config.robot.name, fault_latch(config)
    record = latch.read()
    if record is None:
        print(f"robot {name} is not in FAULT" + ("" if latch.path else "; its faults are not remembered (estop.latch)"))
        return 0
    print(f"robot    {name}, in FAULT since {record.wall_time or 'an unknown time'}")
    print(f"cause    {record.reason}: {record.detail or 'no detail'}")
    if record.episode_id:
        print(f"episode  {record.episode_id}")
    if _confirmation(args.confirm, name, args.i_am_at_the_robot) != name:
        raise RobotFaultError(f"not re-armed: the robot's name is {name!r}")
    latch.clear()
    print(f"re-armed; the robot is {transition(State.FAULT, Event.REARM).state.value} and may be started again")
    return 0


def _confirmation(given: str | None, name: str, at_the_robot: bool) -> str:
    if not (sys.stdin.isatty() or (at_the_robot and given is not None)):
        raise RobotFaultError(
            f"not re-armed: no terminal to ask in. If you stand at the robot, give --confirm {name} --i-am-at-the-robot"
        )
    if given is not None:
        return given
    print(
        f"Has the cause been mended, and is nobody in reach of the robot? Type {name} to re-arm: ", end="", flush=True
    )
    return sys.stdin.readline().strip()
