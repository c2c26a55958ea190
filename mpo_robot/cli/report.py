"""`mpo-robot report`: one self-contained HTML page about a run, its robot logs and the demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mpo_robot.cli.log_files import find_episodes, summarize_episode
from mpo_robot.errors import ConfigError, EpisodeError
from mpo_robot.report.content import build_report
from mpo_robot.report.log_summary import LogSummary
from mpo_robot.report.run_data import read_run
from mpo_robot.run_folder import read_json, write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of a training")
    parser.add_argument(
        "--logs", type=Path, nargs="+", default=[], metavar="DIR", help="episode logs: folders or files"
    )
    parser.add_argument("--demo", type=Path, metavar="JSON", help="numbers that `mpo-robot demo` wrote")
    parser.add_argument("-o", "--output", type=Path, metavar="HTML", help="page to write (default: RUN/report.html)")


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    output = write_report(args.run_folder, args.logs, args.demo, args.output)
    print(f"wrote {output} ({output.stat().st_size / 1000:,.0f} kB)")
    return 0


def write_report(
    run_folder: Path, logs: Sequence[Path] = (), demo: Path | None = None, output: Path | None = None
) -> Path:
    """Write the page and return its path. A log that cannot be read is named on stderr and left out.

    Args:
        run_folder: The run.
        logs: Folders that hold .mcap files, or such files.
        demo: JSON file of demo numbers.
        output: Page to write; `run_folder/report.html` if None.

    Raises:
        ConfigError: no such run, folder or file, or the page cannot be written.
    """
    data = read_run(run_folder)
    page = build_report(data, _summaries(logs), read_json(demo) if demo is not None else None)
    target = output if output is not None else run_folder / "report.html"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, page)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from error
    return target


def _summaries(places: Sequence[Path]) -> list[LogSummary]:
    summaries = []
    for files in find_episodes(places):
        try:
            summaries.append(summarize_episode(files))
        except EpisodeError as error:
            print(f"left out: {error}", file=sys.stderr)
    return sorted(summaries, key=lambda log: (log.started_wall_time_ns, log.name))
