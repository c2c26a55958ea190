"""`mpo-robot estop`: stop a robot by message, or ask for its state. It does not replace a switch in the power line."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.estop_topic import STOP_WORDS, send_estop
from deploy.security import ClientSecurity
from mpo_robot.errors import ConfigError

EPILOG = """\
The robot listens if estop.endpoint is set in its file. Off loopback the operator's key must be on its allow-list
(estop.allow). Exit code 0: its driver has confirmed the stop (with --status: the robot has answered); 1: the robot has
answered, but is not known to have stopped; 2: no answer. After 1 and 2 cut its power. Examples:

  mpo-robot estop tcp://127.0.0.1:5599 --reason "arm too close"
  mpo-robot estop tcp://robot:5599 --secret-key operator.key_secret --robot-key robot.key
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `estop`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("endpoint", help="estop.endpoint of the robot, tcp://HOST:PORT or ipc://PATH")
    parser.add_argument("--reason", default="", help="for the robot's log")
    parser.add_argument("--status", action="store_true", help="ask only, do not stop")
    parser.add_argument("--secret-key", type=Path, metavar="FILE", help="the operator's NAME.key_secret")
    parser.add_argument("--robot-key", type=Path, metavar="FILE", help="the robot's public NAME.key")
    parser.add_argument("--timeout", type=float, default=2.0, metavar="S", help="how long to wait (default 2 s)")


def run(args: argparse.Namespace) -> int:
    """Send one message; see `EPILOG` for the exit code."""
    if (args.secret_key is None) != (args.robot_key is None):
        raise ConfigError("--secret-key and --robot-key go together: give both or none")
    security = None if args.secret_key is None else ClientSecurity(args.secret_key, args.robot_key)
    reply = send_estop(
        args.endpoint,
        args.reason,
        verb="status" if args.status else "stop",
        security=security,
        timeout_s=args.timeout,
    )
    if reply.error:
        print(f"refused: {reply.error}")
        return 1
    print(f"e-stop   {'tripped: ' + reply.reason if reply.tripped else 'not tripped'}")
    print(f"robot    {STOP_WORDS[reply.confirmation]}")
    print(f"state    {reply.state or 'unknown'}")
    return 0 if args.status or reply.confirmation == "stopped" else 1
