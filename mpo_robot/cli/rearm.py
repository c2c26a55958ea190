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
After an e-stop or another fault run-robot refuses to move the robot, also after a restart. Look at the robot, mend the
cause, then run this where run-robot runs, with the same robot file. Typing the robot's name confirms; without a
terminal, --confirm NAME does. Examples:

  mpo-robot rearm --config my_robot.yaml
  mpo-robot rearm --config my_robot.yaml --confirm my_arm
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rearm`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, over --config")
    parser.add_argument("--config", required=True, type=Path, help="robot YAML, as for run-robot")
    parser.add_argument("--log-dir", metavar="DIR", help="as for run-robot: the fault is remembered there")
    parser.add_argument("--confirm", metavar="NAME", help="the robot's name, instead of typing it")
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
    if _confirmation(args.confirm, name) != name:
        raise RobotFaultError(f"not re-armed: the robot's name is {name!r}")
    latch.clear()
    print(f"re-armed; the robot is {transition(State.FAULT, Event.REARM).state.value} and may be started again")
    return 0


def _confirmation(given: str | None, name: str) -> str:
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise RobotFaultError(f"not re-armed: no terminal to ask in. Give --confirm {name} if you mean it")
    print(
        f"Has the cause been mended, and is nobody in reach of the robot? Type {name} to re-arm: ", end="", flush=True
    )
    return sys.stdin.readline().strip()
