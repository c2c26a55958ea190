"""`mpo-robot bench`: run the scripts under benchmarks/ one after the other; each stores its result as JSON there.

`mpo-robot bench NAME` runs one of them, `mpo-robot bench compare` trains and compares algorithms instead
(`cli/compare.py`), and `mpo-robot bench sensitivity` values of settings (`cli/sensitivity.py`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from mpo_robot.cli import compare, sensitivity
from mpo_robot.errors import ConfigError

STUDIES = {
    "compare": (compare, "train algorithms on tasks over seeds, then compare their returns"),
    "sensitivity": (sensitivity, "vary one setting at a time around a configuration and plot the returns"),
}
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    names = parser.add_subparsers(dest="name", metavar="NAME", title="what to run (default: every benchmark)")
    for name, (module, summary) in STUDIES.items():
        study = names.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        module.add_arguments(study)
    for name in _scripts():
        names.add_parser(name, help=f"the benchmark benchmarks/{name}.py")


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    if args.name in STUDIES:
        module, _ = STUDIES[args.name]
        return module.run(args)
    scripts = _scripts()
    if not scripts:
        raise ConfigError(f"the benchmarks are part of a source checkout; {BENCHMARKS} holds none")
    failed = []
    for name in [args.name] if args.name else scripts:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(scripts[name])]).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _scripts() -> dict[str, Path]:
    return {path.stem: path for path in sorted(BENCHMARKS.glob("*.py")) if not path.stem.startswith("_")}
