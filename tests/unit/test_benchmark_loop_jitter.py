"""The check of the loop's benchmark that no stale action was applied, and its programs that use the CPU."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import loop_jitter
from benchmarks.loop_jitter import Applied, busy_programs, check_commands, judge
from benchmarks.round_trip import AWAKE, CURVE, SPIN, THEIRS
from benchmarks.round_trip import judge as judge_round_trip

EXPECTED = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], np.float32)  # the command for each of three readings


def check(commands: list[list[float]], readings: list[int]) -> Applied:
    return check_commands(np.array(commands, np.float32), np.array(readings), EXPECTED, np.zeros(2, np.float32))


def test_actions_for_the_newest_reading_are_fresh() -> None:
    assert check([[2.0, 3.0], [4.0, 5.0], [0.0, 1.00001]], [1, 2, 0]) == Applied(fresh=3, held=0, stale=0)


def test_the_command_before_again_is_held() -> None:
    assert check([[2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [4.0, 5.0]], [1, 2, 0, 2]) == Applied(fresh=2, held=2, stale=0)


def test_the_first_period_may_hold_the_safe_pose() -> None:
    assert check([[0.0, 0.0], [4.0, 5.0]], [1, 2]) == Applied(fresh=1, held=1, stale=0)


@pytest.mark.parametrize(
    ("commands", "readings"),
    [
        ([[2.0, 3.0], [4.0, 5.0], [2.0, 3.0]], [1, 2, 0]),  # the action for a reading before the newest
        ([[4.0, 5.0]], [1]),  # before the first command there is the safe pose only
        ([[2.0, 3.0], [2.0, 3.1]], [1, 2]),  # nearly held
        ([[0.0, 1.0], [2.0, 1.0]], [0, 1]),  # half of the action
    ],
)
def test_anything_else_is_stale(commands: list[list[float]], readings: list[int]) -> None:
    assert check(commands, readings).stale == 1


def test_readings_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="nearly the same"):
        check_commands(EXPECTED, np.arange(3), np.ones((3, 2), np.float32), np.zeros(2, np.float32))


def test_a_short_run_of_the_loop_is_all_fresh_or_held(tmp_path: Path) -> None:
    row = loop_jitter.run_source("local", 200, 0.1, tmp_path, priority=0, load=0)
    assert row["ticks"] == 20
    assert row["applied"]["stale"] == 0
    assert row["applied"]["fresh"] + row["applied"]["held"] == 20
    assert row["applied"]["held"] <= row["fallbacks"].get("hold", 0)
    assert sum(row["histograms_us"]["jitter"].values()) >= 20


def test_busy_programs_run_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = subprocess.Popen

    def remember(*arguments: Any, **settings: Any) -> Any:
        started.append(popen(*arguments, **settings))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)
    with busy_programs(2):
        assert [program.poll() for program in started] == [None, None]
    assert all(program.returncode is not None for program in started)


def test_misses_count_for_the_bar_only_where_it_applies() -> None:
    def row(**changes: Any) -> dict[str, Any]:
        applied = {"fresh": 1, "held": 2, "stale": 1}
        base = {"priority": 50, "load": 0, "rate_hz": 1000, "source": "local", "ticks": 60_000, "deadline_misses": 0}
        return {**base, "applied": applied, **changes}

    rows = [row(), row(load=4, deadline_misses=9), row(source="server", deadline_misses=9)]
    result = judge(rows)
    assert result["misses_of_1_khz_local_idle"] == {"50": {"seconds": 60.0, "misses": 0}}
    assert result["stale_actions"] == 3
    assert result["periods_held_under_load"] == 2


def test_round_trip_has_to_beat_each_of_the_others() -> None:
    others = dict.fromkeys(THEIRS.values(), 300.0)
    rows = [{"name": name, "p50_us": p50} for name, p50 in {CURVE: 250.0, CURVE + SPIN: 150.0, **others}.items()]
    verdict = judge_round_trip(rows)
    assert verdict[CURVE]["faster_than"] == dict.fromkeys(THEIRS.values(), True)
    assert not verdict[CURVE]["under_bar"]
    assert not verdict[CURVE]["met"]
    assert verdict[CURVE + SPIN]["met"]
    assert verdict[CURVE + SPIN]["met_among_equals"]
    rows[-1]["p50_us"] = 140.0
    assert not judge_round_trip(rows)[CURVE + SPIN]["met"]


def test_awake_cpus_help_the_others_too() -> None:
    theirs = dict.fromkeys(THEIRS.values(), 300.0) | {name + AWAKE: 160.0 for name in THEIRS.values()}
    rows = [{"name": name, "p50_us": p50} for name, p50 in {CURVE: 250.0, CURVE + AWAKE: 180.0, **theirs}.items()]
    verdict = judge_round_trip(rows)
    assert set(verdict[CURVE]["faster_than"]) == set(THEIRS.values())
    assert (verdict[CURVE]["met"], verdict[CURVE]["met_among_equals"]) == (False, False)
    assert (verdict[CURVE + AWAKE]["met"], verdict[CURVE + AWAKE]["met_among_equals"]) == (True, False)
    rows[1]["p50_us"] = 150.0
    assert judge_round_trip(rows)[CURVE + AWAKE]["met_among_equals"]


def test_gaps_of_the_machine_are_those_between_two_readings_of_the_clock(monkeypatch):
    # A millisecond of readings every 10 us, in which the CPU is away once for 300 us and once for 2 ms.
    steps = [*[10] * 20, 300, *[10] * 20, 2000]
    clock = itertools.accumulate(itertools.chain(steps, itertools.repeat(10)), initial=0)
    monkeypatch.setattr(loop_jitter.time, "perf_counter_ns", lambda: next(clock) * 1000)
    monkeypatch.setattr(loop_jitter.time, "sleep", lambda seconds: None)
    gaps = loop_jitter.machine_gaps(0.005)
    assert (gaps["longer_than_200_us"], gaps["longer_than_600_us"], gaps["longest_us"]) == (2, 1, 2000.0)
    assert 0.004 < gaps["computed_s"] < 0.007
