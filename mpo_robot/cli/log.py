"""`mpo-robot log`: verify, repair, plot and export episode logs. Needs no torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from deploy.log_checks import check_episode
from deploy.log_parts import EpisodeFiles, read_episode
from deploy.log_reader import is_being_written
from deploy.log_repair import repair_log
from mpo_robot.cli import log_export, log_plot
from mpo_robot.cli.log_files import find_episodes
from mpo_robot.errors import ConfigError, EpisodeError, SpecMismatchError

EPILOG = """\
A log is named by any of its files (parts); a folder stands for all logs in it.

  mpo-robot log verify logs                                 exit code 0 in order, 1 damaged, 2 not readable as a log
  mpo-robot log repair broken.mcap -o mended.mcap           never touches the input
  mpo-robot log plot logs/ep.mcap -o ep.png                 needs mpo-robot[report]
  mpo-robot log export logs --to minari -o datasets --name arm/reach-v0
  mpo-robot log export logs --to lerobot -o dataset         see docs/log_format.md
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="log_command", metavar="ACTION", required=True)
    verify = commands.add_parser("verify", help="say what is damaged, missing or wrong")
    verify.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="files, or folders of logs")
    verify.add_argument("--json", action="store_true", help="print JSON instead of text")
    verify.set_defaults(execute_log=_verify)
    repair = commands.add_parser("repair", help="copy what is intact to a new file; several parts become one")
    repair.add_argument("logs", nargs="+", type=Path, metavar="IN", help="the file, or all parts of an episode")
    repair.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="file to write; must not exist")
    repair.set_defaults(execute_log=_repair)
    plot = commands.add_parser("plot", help="draw an episode as PNG, SVG or PDF")
    log_plot.add_arguments(plot)
    plot.set_defaults(execute_log=log_plot.run)
    export = commands.add_parser("export", help="write a dataset for other libraries")
    log_export.add_arguments(export)
    export.set_defaults(execute_log=log_export.run)


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    return args.execute_log(args)


def _verify(args: argparse.Namespace) -> int:
    episodes = find_episodes(args.logs)
    if not episodes:
        raise ConfigError(f"no .mcap logs in {', '.join(map(str, args.logs))}")
    rows = [_row(files) for files in episodes]
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(f"{row['state']:<11}{row['log']}: {row['steps']} steps{', ' + row['end'] if row['end'] else ''}")
            for label in ("problems", "notes"):
                for text in row[label]:
                    print(f"  {label[:-1]}: {text}")
        counts = {state: sum(row["state"] == state for row in rows) for state in _STATES}
        print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    return max(_STATES[row["state"]] for row in rows)


_STATES = {"ok": 0, "running": 0, "damaged": 1, "unreadable": 2}  # and the exit code


def _row(files: EpisodeFiles) -> dict[str, Any]:
    row: dict[str, Any] = {
        "log": str(files.paths[0]),
        "files": [path.name for path in files.paths],
        "state": "ok",
        "steps": 0,
        "end": "",
        "spec_hash": None,
        "problems": [],
        "notes": [],
    }
    try:
        running = any(is_being_written(path) for path in files.paths)
        contents = read_episode(files.paths)
    except (EpisodeError, SpecMismatchError) as error:
        return {**row, "state": "unreadable", "problems": [str(error)]}
    findings = check_episode(contents)
    row["steps"], row["spec_hash"] = len(contents.records), contents.spec.spec_hash
    row["end"] = str(contents.metadata.get("statistics", {}).get("end_reason", ""))
    row["problems"] = [finding.text for finding in findings if finding.is_problem]
    row["notes"] = [finding.text for finding in findings if not finding.is_problem]
    if running:
        row["notes"] = ["it is still being written", *row["problems"], *row["notes"]]
        return {**row, "state": "running", "problems": []}
    if row["problems"]:
        row["state"] = "damaged"
    return row


def _repair(args: argparse.Namespace) -> int:
    missing = [path for path in args.logs if not path.is_file()]
    if missing:
        raise ConfigError(f"no log file {missing[0]}")
    found = repair_log(args.logs, args.output).found
    steps, apart = len(found.records), len(found.invalid_records)
    print(f"{args.output}: {steps} steps{f' and {apart} kept apart' if apart else ''}, of {found.total_bytes:,} bytes")
    print(f"  {found.problem}" if found.problem else "  the log was in order; this is a copy")
    return 0
