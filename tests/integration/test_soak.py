"""The soak of benchmarks/soak.py, short: real processes, random faults, and not one violation."""

import json
from pathlib import Path

import pytest

from benchmarks.soak import main
from tests.support.soak_schedule import make_schedule

SEED = 3  # of the short one: garbage, a disk that hangs, noise on the bus, a publisher killed at work


def run(tmp_path: Path, seconds: int, seed: int) -> dict[str, object]:
    """The record of a soak that must end without a violation."""
    output = tmp_path / "soak.json"
    arguments = ["--minutes", f"{seconds / 60:.6f}", "--seed", str(seed), "--folder", str(tmp_path / "run")]
    assert main([*arguments, "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert record["summary"]["violations"] == []
    assert [fault["kind"] for fault in record["faults"]] == [fault.kind for fault in make_schedule(seed, seconds)]
    return record["summary"]


def test_a_few_seconds_of_faults_break_no_invariant(tmp_path: Path) -> None:
    summary = run(tmp_path, 4, SEED)
    assert summary["episodes"]
    assert summary["motors_switched_on"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_minutes_of_every_fault_break_no_invariant(tmp_path: Path) -> None:
    summary = run(tmp_path, 120, 1)
    for count in ("ticks", "commands", "records_read", "rearmed", "swaps", "server_restarts"):
        assert summary[count], count
