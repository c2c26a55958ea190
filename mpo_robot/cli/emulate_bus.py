"""`mpo-robot emulate-bus`: a bus of emulated Dynamixel servos that move a simulated ant, to try a driver on."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.stopping import StopSignals
from mpo_robot.cli.settings_list import add_settings_option
from mpo_robot.config import apply_overrides, build, read_yaml
from sim.servo_bus.emulator import Emulator, EmulatorConfig

EPILOG = """\
Prints the path of a pseudo-terminal that speaks Dynamixel Protocol 2.0, and serves it until Ctrl-C. Example:

  mpo-robot emulate-bus --config configs/robots/emulated_ant_bus.yaml
  mpo-robot emulate-bus --config configs/robots/emulated_ant_bus.yaml faults.loss=0.02
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, over --config")
    parser.add_argument("--config", type=Path, help="YAML of the bus (see configs/robots/emulated_ant_bus.yaml)")
    add_settings_option(parser, lambda: {"": EmulatorConfig})


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    data = apply_overrides({} if args.config is None else read_yaml(args.config), args.overrides)
    with StopSignals() as signals, Emulator(build(EmulatorConfig, data)) as emulator:
        print(f"mpo-robot emulate-bus: ready on {emulator.path}", flush=True)
        emulator.run(signals.requested)
    return 0
