"""`mpo-robot bench`: run the scripts under benchmarks/ one after the other; each stores its result as JSON there.

`mpo-robot bench compare` trains and compares algorithms instead (`cli/compare.py`), and `mpo-robot bench sensitivity`
values of settings (`cli/sensitivity.py`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from mpo_robot.cli import compare, sensitivity
from mpo_robot.errors import ConfigError

STUDIES = {"compare": compare.run, "sensitivity": sensitivity.run}
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="benchmarks to run, such as learner_step (default: all), or compare, or sensitivity",
    )
    parser.set_defaults(overrides=[])  # key=value settings behind the options end up here
    compare.add_arguments(parser)
    sensitivity.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    overrides = [name for name in args.names if "=" in name] + args.overrides
    if args.names and args.names[0] in STUDIES and len(args.names) == 1 + sum("=" in name for name in args.names):
        return STUDIES[args.names[0]](args, overrides)
    if overrides:
        raise ConfigError(f"settings such as {overrides[0]} belong to bench compare or bench sensitivity")
    scripts = {path.stem: path for path in sorted(BENCHMARKS.glob("*.py")) if not path.stem.startswith("_")}
    if not scripts:
        raise ConfigError(f"the benchmarks are part of a source checkout; {BENCHMARKS} holds none")
    unknown = [name for name in args.names if name not in scripts]
    if unknown:
        raise ConfigError(f"no benchmark {unknown[0]!r}; there are: {', '.join((*scripts, *STUDIES))}")
    failed = []
    for name in args.names or scripts:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(scripts[name])]).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
