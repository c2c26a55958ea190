"""`mpo-robot log export`: episode logs as datasets of other libraries, written by those libraries."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.log_parts import read_episode
from mpo_robot.cli.log_files import find_episodes
from mpo_robot.episode import StepRecord, check_record, unbroken_runs
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec


class Recording(NamedTuple):
    """What is exported.

    Attributes:
        spec: Interface, the same for all.
        robot: Name.
        runs: Unbroken runs of steps: a gap in a log starts a new one.
    """

    spec: PolicySpec
    robot: str
    runs: list[list[StepRecord]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="files, or folders of logs")
    parser.add_argument("--to", required=True, choices=("lerobot", "minari"), help="format")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where; see docs/log_format.md")
    parser.add_argument("--name", default="mpo_robot/episodes-v0", help="of the dataset (default: %(default)s)")
    parser.add_argument("--task", default="", help="what the robot does, in words (lerobot; default: its name)")


def run(args: argparse.Namespace) -> int:
    """Execute the action."""
    recording = read_recording(args.logs)
    steps = sum(len(run) for run in recording.runs)
    if args.to == "minari":
        from mpo_robot.cli.log_minari import write_minari

        where = write_minari(recording, args.output, args.name)
    else:
        from mpo_robot.cli.log_lerobot import write_lerobot

        where = write_lerobot(recording, args.output, args.name, args.task or recording.robot or "robot")
    print(f"wrote {where}: {len(recording.runs)} episodes, {steps} steps")
    return 0


def read_recording(places: Sequence[Path]) -> Recording:
    """The usable steps of all logs; what is left out is printed.

    Raises:
        EpisodeError: a log cannot be read, or a step breaks the schema.
        SpecMismatchError: the logs are of different interfaces.
        ConfigError: no such place, or no step in it.
    """
    runs: list[list[StepRecord]] = []
    first = None
    for files in find_episodes(places):
        contents = read_episode(files.paths)
        first = first or contents
        first.spec.require_same(contents.spec, "the first log", files.paths[0].name)
        for record in contents.records:
            check_record(record, contents.spec)
        found = unbroken_runs(contents.records)
        runs += found
        if not contents.complete or len(found) != 1 or contents.invalid_records:
            apart = f", {len(contents.invalid_records)} unfit steps left out" if contents.invalid_records else ""
            problem = f" ({contents.problem})" if contents.problem else ""
            print(f"{files.paths[0].name}: {len(found)} unbroken runs{apart}{problem}")
    if first is None or not runs:
        raise ConfigError(f"no completed step in {', '.join(map(str, places))}")
    return Recording(first.spec, str(first.metadata.get("robot", "")), runs)
