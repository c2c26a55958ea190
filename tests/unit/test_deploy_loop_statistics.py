from __future__ import annotations

import json

import numpy as np
import pytest

from deploy.loop_statistics import LoopStatistics, merge, table
from deploy.robot_state import Event, StateMachine


def filled(offset: int = 0) -> LoopStatistics:
    statistics = LoopStatistics(0.02, steps=100, deadline_misses=3, overruns=1, skipped_periods=4, log_dropped=2)
    statistics.latency.extend(range(1000 + offset, 101000 + offset, 1000))
    statistics.fallbacks.update(hold=2)
    statistics.faults.update(stale=1)
    statistics.misses.update(no_reply=3)
    return statistics


def test_summary_is_json_with_percentiles_in_microseconds() -> None:
    summary = json.loads(json.dumps(filled().summary()))
    times = np.arange(1.0, 101.0)
    p50, p99 = np.percentile(times, (50, 99))
    assert summary["latency_us"]["p50"] == pytest.approx(p50, rel=0.016)
    assert summary["latency_us"]["p99"] == pytest.approx(p99, rel=0.016)
    assert summary["latency_us"]["max"] == 100.0
    assert sum(summary["histograms_us"]["latency"].values()) == 100
    assert summary["histograms_us"]["latency"]["131.072"] == 35, "66 to 100 us"
    assert "jitter_us" not in summary
    assert summary["fallbacks"] == {"hold": 2}
    assert summary["log_dropped"] == 2


def test_merge_adds_counters_and_joins_times() -> None:
    total = merge([filled(), filled(100_000)], 0.02)
    assert (total.steps, total.deadline_misses, total.skipped_periods) == (200, 6, 8)
    assert total.summary()["latency_us"]["max"] == 200.0
    assert dict(total.fallbacks) == {"hold": 4}
    assert dict(total.faults) == {"stale": 2}
    assert dict(total.misses) == {"no_reply": 6}


def test_table_shows_what_went_wrong_and_only_that() -> None:
    text = table(filled())
    assert "deadline misses 3, overruns 1 (4 periods skipped)" in text
    assert "hold 2" in text
    assert "steps NOT logged: 2" in text
    calm = table(LoopStatistics(0.02, steps=5))
    assert "NOT logged" not in calm
    assert "faults" not in calm
    assert "motor commands" not in calm
    assert "no_reply 3" in text
    assert "65.5: 65%, 131: 100%" in text


def test_states_of_the_robot_are_kept() -> None:
    machine = StateMachine(iter(range(100)).__next__)
    for event in (Event.CONNECTED, Event.HOME, Event.ESTOP):
        machine.fire(event)
    statistics = LoopStatistics(0.02)
    statistics.record_states(machine)
    summary = json.loads(json.dumps(statistics.summary()))
    assert summary["state"] == "FAULT"
    assert summary["entered"] == {"STOPPED": 1, "HOMING": 1, "FAULT": 1}
    assert summary["transitions"][-1] == {
        "monotonic_ns": 2, "before": "HOMING", "event": "estop", "after": "FAULT",
    }  # fmt: skip
    assert "robot FAULT" in table(statistics)
