"""`mpo-robot run-robot`: run the control loop of a simulated or real robot. Needs no torch."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from deploy.control_loop import EpisodeResult
from deploy.estop import EStop
from deploy.estop_sources import KeyEStop, SignalEStop
from deploy.estop_topic import TopicEStop
from deploy.fault_latch import FaultLatch
from deploy.loop_statistics import merge, table
from deploy.real_time import report_lines, use_real_time
from deploy.robot import Robot
from deploy.robot_config import RobotConfig, build_parts, fault_latch, load_driver
from deploy.robot_state import StateMachine
from deploy.session import run_session
from deploy.stopping import StopSignals
from mpo_robot.cli.settings_list import add_settings_option
from mpo_robot.config import apply_overrides, build, read_yaml
from mpo_robot.errors import ConfigError, MpoRobotError

EPILOG = """\
One MCAP log per episode goes to the log directory. Ctrl-C, SIGTERM and a lost terminal stop the robot cleanly within
one control period. The space bar, `e`, SIGUSR1 and messages (estop.endpoint, `mpo-robot estop`) are emergency stops:
after one, or another fault, the robot moves again only after `mpo-robot rearm`. Exit code: 0 all episodes done or
stopped by the operator; 1 stopped by a fault (e-stop, fallback ladder at its end, safety, driver, log); 2 bad input, no
server, a policy that does not fit the robot, or a fault that nobody has re-armed. Examples:

  mpo-robot run-robot --config configs/robots/simulated_cartpole.yaml --policy policy.onnx
  mpo-robot run-robot --config configs/robots/simulated_cartpole.yaml --policy policy.onnx policy=local loop.pace=fast
  mpo-robot run-robot --config my_robot.yaml --episodes 0 --log-dir logs/today --endpoint tcp://127.0.0.1:5555
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `run-robot`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, over --config")
    parser.add_argument("--config", required=True, type=Path, help="robot YAML (see configs/robots/)")
    parser.add_argument("--episodes", type=int, metavar="N", help="how many to run; 0 runs until stopped")
    parser.add_argument("--log-dir", metavar="DIR", help='where logs go; "" writes none')
    parser.add_argument("--endpoint", help="policy server, tcp://HOST:PORT or ipc://PATH")
    parser.add_argument("--policy", metavar="FILE", help="ONNX policy in this process: for the ladder, or policy=local")
    parser.add_argument("--seed", type=int, help="of the start states and of local sampling")
    add_settings_option(parser, _settings)


def run(args: argparse.Namespace) -> int:
    """Run the episodes; see `EPILOG` for the exit code."""
    config = load_robot_config(args)
    estop, latch = EStop(), fault_latch(config)
    with StopSignals() as signals, SignalEStop(estop, config.estop.signal), _remembered(estop, latch):
        latch.require_clear(config.robot.name)
        robot = _make_robot(config)
        if config.loop.is_real_time:
            _use_real_time(config)
        with _listen(config, estop) as machines:
            parts, policy_line = build_parts(config, robot.spec, signals.requested, estop)
            print(_plan(config, robot, policy_line), flush=True)
            try:
                with KeyEStop(estop) if config.estop.key else contextlib.nullcontext():
                    results = run_session(
                        robot,
                        parts,
                        name=config.robot.name,
                        episodes=config.episodes,
                        seed=config.seed,
                        on_result=lambda result: print(_line(result), flush=True),
                        on_machine=machines.append,
                        latch=latch,
                    )
            except MpoRobotError:
                raise
            except Exception:
                traceback.print_exc()
                print(f"mpo-robot run-robot: stopped by the error above; {_stop_line(estop)}", file=sys.stderr)
                _tell_rearm(latch)
                return 1
    return _conclude(results, robot.spec.control_dt, estop, latch)


@contextlib.contextmanager
def _remembered(estop: EStop, latch: FaultLatch) -> Iterator[None]:
    """An e-stop that comes before or after the session, when nothing moves, is a fault as well."""
    try:
        yield
    finally:
        problem = latch.set("estop", estop.reason) if estop.tripped else ""
        if problem:
            print(f"mpo-robot run-robot: {problem}", file=sys.stderr)


def _use_real_time(config: RobotConfig) -> None:
    """Before any other thread is started, because those of the transport must not be delayed either."""
    wanted = config.loop.operating_system
    for line in report_lines(wanted, use_real_time(wanted)):
        print(line)


@contextlib.contextmanager
def _listen(config: RobotConfig, estop: EStop) -> Iterator[list[StateMachine]]:
    """Listen for e-stop messages, if configured; the state machine to report is put into the list."""
    machines: list[StateMachine] = []
    if not config.estop.endpoint:
        yield machines
        return
    with TopicEStop(
        estop, config.estop.endpoint, config.estop.security, lambda: machines[-1].state.value if machines else "INIT"
    ):
        yield machines


def load_robot_config(args: argparse.Namespace) -> RobotConfig:
    """Configuration file, then key=value overrides, then options of their own."""
    data: dict[str, Any] = apply_overrides(read_yaml(args.config), args.overrides)
    for section, key, value in (
        (None, "episodes", args.episodes),
        (None, "policy_path", args.policy),
        (None, "seed", args.seed),
        ("log", "directory", args.log_dir),
        ("server", "endpoint", args.endpoint),
    ):
        if value is None:
            continue
        target = data if section is None else data.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{section} must be a section (a mapping), got {target!r}")
        target[key] = value
    return build(RobotConfig, data)


def _settings() -> dict[str, type]:
    sections: dict[str, type] = {"": RobotConfig}
    with contextlib.suppress(ModuleNotFoundError):  # a real robot's computer has no simulator
        from sim.robot import SimulatedRobotConfig

        sections["robot.options."] = SimulatedRobotConfig
    return sections


def _make_robot(config: RobotConfig) -> Robot:
    section = config.robot
    if section.kind == "module":
        return load_driver(section)
    from sim.robot import SimulatedRobot, SimulatedRobotConfig  # only here: a real robot's computer has no simulator

    real_time = config.loop.is_real_time
    if section.options.get("real_time", real_time) != real_time:
        raise ConfigError(
            f"robot.options.real_time contradicts loop.pace={config.loop.pace}: leave it out, it follows the pace"
        )
    options = {**section.options, "real_time": real_time}
    robot = SimulatedRobot(build(SimulatedRobotConfig, options, "robot.options."))
    count = config.loop.commands_per_period(robot.spec)
    if count > 1:  # known only now, from the period of the task
        options["commands_per_period"] = count
        robot = SimulatedRobot(build(SimulatedRobotConfig, options, "robot.options."))
    return cast(Robot, robot)  # by shape: sim has its own Measurement, equal to deploy's (tested)


def _plan(config: RobotConfig, robot: Robot, policy_line: str) -> str:
    spec = robot.spec
    count = "until stopped" if config.episodes == 0 else f"{config.episodes} episode(s)"
    pace = f"{1 / spec.control_dt:.4g} Hz" if config.loop.is_real_time else "as fast as possible"
    commands = config.loop.commands_per_period(spec)
    if commands > 1:
        pace += f", {commands} motor commands per action ({config.loop.interpolation})"
    ladder = " -> ".join(rung.do + (f" {rung.ticks}" if rung.ticks else "") for rung in config.fallback.ladder)
    return "\n".join(
        (
            f"robot    {config.robot.name} ({config.robot.module or config.robot.kind}), spec {spec.spec_hash[:12]}, "
            f"{spec.observation_size} observations, {spec.action_size} commands",
            f"run      {count}, {pace}",
            f"actions  {policy_line}",
            f"ladder   {ladder}",
            f"e-stop   {_estop_line(config)}",
            f"logs     {config.log.directory or 'none'}",
        )
    )


def _estop_line(config: RobotConfig) -> str:
    key = ["space bar or e"] if config.estop.key and sys.stdin.isatty() else []
    name = [f"kill -{config.estop.signal.removeprefix('SIG')} {os.getpid()}"] if config.estop.signal else []
    topic = [f"mpo-robot estop {config.estop.endpoint}"] if config.estop.endpoint else []
    return ", ".join(key + name + topic) or "none by software"


def _line(result: EpisodeResult) -> str:
    stats = result.statistics
    text = (
        f"{result.episode_id}: {result.steps} steps, return {result.undiscounted_return:.1f}, {result.reason.value}, "
        f"policy {result.policy_version[:12]}, {stats.deadline_misses} misses, {stats.modified} modified"
    )
    return text + (f"\n  {result.detail}" if result.detail else "")


def _stop_line(estop: EStop) -> str:
    if estop.stop_failed:
        return "THE ROBOT COULD NOT BE STOPPED. Cut its power now"
    return "the robot was stopped first" if estop.stopped else "nobody knows whether the robot was stopped: look at it"


def _conclude(results: list[EpisodeResult], control_dt: float, estop: EStop, latch: FaultLatch) -> int:
    if results:
        print(table(merge((result.statistics for result in results), control_dt)))
    log_errors = [result.log_error for result in results if result.log_error]
    for error in log_errors:
        print(f"mpo-robot run-robot: the log could not be written: {error}", file=sys.stderr)
    faults = [f"{result.reason.value} stop: {result.detail}" for result in results if result.reason.is_fault]
    if estop.tripped and not faults:
        faults = [f"estop stop: {estop.reason}"]
    for fault in faults:
        print(f"mpo-robot run-robot: {fault}", file=sys.stderr)
    if faults:
        _tell_rearm(latch)
    return 1 if faults or log_errors else 0


def _tell_rearm(latch: FaultLatch) -> None:
    if latch.read() is not None:
        print(
            "mpo-robot run-robot: the robot is in FAULT. It moves again after `mpo-robot rearm --config FILE`",
            file=sys.stderr,
        )
