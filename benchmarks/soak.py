"""A bounded soak: the whole deployment under a random fault each second, watched by a checker of its own.

    python benchmarks/soak.py [--minutes 15] [--seed 0] [--rate 10] [--folder DIR] [--output FILE]

A policy server, a TCP proxy, an emulated motor bus and the robot's loop run as processes of their own. The schedule of
faults follows from the seed. Exit code 1 at any violation, with the seed and what came before. See docs/soak.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks._record import write_record  # noqa: E402 (the root comes first)
from tests.support.soak_report import describe_violations, summarize, table  # noqa: E402
from tests.support.soak_run import SoakRun  # noqa: E402
from tests.support.soak_schedule import Fault, make_schedule  # noqa: E402
from tests.support.soak_world import make_world  # noqa: E402

OUTPUT = ROOT / "benchmarks" / "results" / "soak.json"


def soak(seconds: int, seed: int, rate_hz: float, folder: Path, verbose: bool) -> tuple[dict[str, Any], list[Any]]:
    """Run and audit; (summary, injected faults)."""
    schedule: list[Fault] = make_schedule(seed, seconds)
    world = make_world(folder, rate_hz)
    with SoakRun(world, seed) as run:
        print(f"soak     {seconds} s, seed {seed}, {rate_hz:g} Hz, {len(schedule)} faults, in {folder}", flush=True)
        run.run(schedule, seconds, say=lambda text: print(text, flush=True) if verbose else None)
    summary = summarize(world, run.swaps, run.problems, run.injected)
    summary |= {"server_restarts": run.restarts, "periods": round(seconds * rate_hz)}
    return summary, run.injected


def conclude(summary: dict[str, Any], injected: Sequence[Any], command: str) -> int:
    """Print the result; the exit code."""
    print(table(summary))
    acted = sum(count for name, count in summary.get("steps_by_policy", {}).items() if name != "local")
    if acted < 0.1 * summary.get("periods", 0):
        print(f"note: the server's policies acted in {acted} of {summary['periods']} periods: too busy a machine")
    if not summary["violations"]:
        return 0
    print(describe_violations(summary, injected))
    print(f"the same faults again: {command}", file=sys.stderr)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rate", type=float, default=10.0, help="policy rate in Hz; motor commands come twice as often"
    )
    parser.add_argument("--folder", type=Path, help="keep logs and traces here (default: removed unless violated)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--verbose", action="store_true", help="print each fault")
    args = parser.parse_args(arguments)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="mpo_robot_soak_"))
    seconds, start = max(1, round(60 * args.minutes)), time.monotonic()
    summary, injected = soak(seconds, args.seed, args.rate, folder, args.verbose)
    command = f"python benchmarks/soak.py --minutes {args.minutes:g} --seed {args.seed} --rate {args.rate:g}"
    code = conclude(summary, injected, command)
    write_record(
        args.output,
        "soak",
        command=command,
        seed=args.seed,
        rate_hz=args.rate,
        faults_s=seconds,
        wall_s=round(time.monotonic() - start, 1),
        summary=summary,
        faults=[dataclasses.asdict(fault) for _, fault in injected],
    )
    print(f"written to {args.output}")
    if code == 0 and args.folder is None:
        shutil.rmtree(folder)
    elif code:
        print(f"logs and traces are in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
