"""`mpo-robot log plot`: one picture of one episode."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.log_parts import read_episode
from mpo_robot.cli.log_files import find_episodes
from mpo_robot.errors import ConfigError
from mpo_robot.report.episode_picture import SUFFIXES, draw_episode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("log", type=Path, metavar="LOG", help="a file of the episode")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"{', '.join(SUFFIXES)} (default: LOG.png)")


def run(args: argparse.Namespace) -> int:
    """Execute the action."""
    if not args.log.is_file():
        raise ConfigError(f"no log file {args.log}")
    (files,) = find_episodes([args.log])
    output = args.output or Path(files.paths[0].with_suffix(".png").name)
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"cannot draw {output}: the name must end in {', '.join(SUFFIXES)}")
    contents = read_episode(files.paths)
    try:
        draw_episode(output, contents.records, contents.spec, contents.metadata, contents.problem)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from error
    print(f"wrote {output} ({len(contents.records)} steps, {output.stat().st_size / 1000:,.0f} kB)")
    return 0
