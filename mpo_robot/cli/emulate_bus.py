"""`mpo-robot emulate-bus`: a bus of emulated Dynamixel servos that move a simulated ant, to try a driver on."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.stopping import StopSignals
from deploy.timing import use_real_time_priority
from mpo_robot.cli.settings_list import add_settings_option
from mpo_robot.config import apply_overrides, build, read_yaml
from sim.servo_bus.emulator import Emulator, EmulatorConfig

EPILOG = """\
Prints the path of a pseudo-terminal that speaks Dynamixel Protocol 2.0, and serves it until Ctrl-C. Example:

  mpo-robot emulate-bus --config configs/robots/emulated_ant_bus.yaml
  mpo-robot emulate-bus --config configs/robots/emulated_ant_bus.yaml faults.loss=0.02
  mpo-robot emulate-bus --config configs/robots/emulated_ant_bus.yaml --realtime-priority 40
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, over --config")
    parser.add_argument("--config", type=Path, help="YAML of the bus (see configs/robots/emulated_ant_bus.yaml)")
    parser.add_argument(
        "--realtime-priority",
        type=int,
        default=0,
        metavar="N",
        help="ask the operating system for this priority, 1 to 99, so that servos answer in time on a busy machine",
    )
    add_settings_option(parser, lambda: {"": EmulatorConfig})


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    data = apply_overrides({} if args.config is None else read_yaml(args.config), args.overrides)
    with StopSignals() as signals, Emulator(build(EmulatorConfig, data)) as emulator:
        problem = use_real_time_priority(args.realtime_priority) if args.realtime_priority > 0 else ""
        if problem:
            print(f"note: {problem}")
        print(f"mpo-robot emulate-bus: ready on {emulator.path}", flush=True)
        emulator.run(signals.requested)
    return 0
