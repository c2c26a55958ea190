"""What the report says about a run, its logs and the demo; `page` decides how it looks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpo_robot.report import robot_figures
from mpo_robot.report.charts import short_count
from mpo_robot.report.log_summary import LogSummary, percentiles
from mpo_robot.report.page import Detail, Number, Section, TextTable, render
from mpo_robot.report.run_data import RunData, column, finite
from mpo_robot.report.run_figures import RUN_FIGURES, Figure

_LOG_FIGURES = (robot_figures.latency, robot_figures.sources, robot_figures.versions)
_DEMO_HEADLINES = ("nominal_return", "zero_shot_return", "learned_return", "parity_max_abs_error", "latency_us")


def build_report(run: RunData, logs: Sequence[LogSummary] = (), demo: Mapping[str, Any] | None = None) -> str:
    """HTML page about a run, the episode logs of robots that used its policies, and the numbers of a demo."""
    demo = demo or {}
    training: list[Figure] = [figure for draw in RUN_FIGURES if (figure := draw(run)) is not None]
    robots = [figure for draw in _LOG_FIGURES if (figure := draw(logs)) is not None]
    gap = robot_figures.gap(demo)
    sections = [
        Section("From simulator to robot", [gap] if gap else [], _demo_tables(demo)),
        Section("Training", training),
        Section("Robot episodes", robots, [_log_table(logs)] if logs else []),
    ]
    details = [Detail("Configuration", run.config_text)]
    if run.record:
        details.append(Detail("Versions, machine, seed", json.dumps(run.record, indent=1)))
    started = run.record.get("started_wall_time")
    subtitle = f"Run folder {run.path}" + (f", started {started}" if started else "")
    return render(f"{run.task}: report", subtitle, _headlines(run, logs, demo), sections, details)


def _headlines(run: RunData, logs: Sequence[LogSummary], demo: Mapping[str, Any]) -> list[Number]:
    numbers = [*_evaluation_numbers(run), *_progress_numbers(run)]
    bound = np.concatenate([finite(run.metrics, name) for name in ("kl_mean_rel", "kl_policy_rel")])
    if len(bound):
        numbers.append(Number("M-step KL / bound", f"{np.median(bound):.2f}", f"median; largest {bound.max():.2f}"))
    latency = percentiles(np.concatenate([log.latency_us for log in logs])) if logs else {}
    if latency:
        numbers.append(Number("Action latency p50", f"{latency['p50']:,.0f} µs", f"p99 {latency['p99']:,.0f} µs"))
    elif isinstance(demo.get("latency_us"), Mapping):
        given = demo["latency_us"]
        numbers.append(
            Number("Action latency p50", f"{_text(given.get('p50'))} µs", f"p99 {_text(given.get('p99'))} µs")
        )
    steps = sum(log.steps for log in logs)
    if steps:
        misses = sum(log.deadline_misses for log in logs)
        remark = f"{short_count(steps)} steps in {len(logs)} episodes"
        numbers.append(Number("Deadlines missed", f"{100.0 * misses / steps:.2g} %", remark))
    if "parity_max_abs_error" in demo:
        numbers.append(
            Number("ONNX parity error", _text(demo["parity_max_abs_error"]), "torch against onnxruntime, largest")
        )
    return numbers


def _evaluation_numbers(run: RunData) -> list[Number]:
    means = column(run.evaluations, "return_mean")
    known = np.flatnonzero(np.isfinite(means))
    if not len(known):
        return []
    last, best = int(known[-1]), int(known[np.argmax(means[known])])
    steps, spread = column(run.evaluations, "environment_steps"), column(run.evaluations, "return_std")
    remark = f"± {spread[last]:.1f} at {short_count(steps[last])} steps" if math.isfinite(spread[last]) else ""
    return [
        Number("Last evaluation", f"{means[last]:.1f}", remark),
        Number("Best evaluation", f"{means[best]:.1f}", f"at {short_count(steps[best])} steps"),
    ]


def _progress_numbers(run: RunData) -> list[Number]:
    progress, numbers = run.progress, []
    if "environment_steps" in progress:
        updates = progress.get("learner_steps")
        remark = f"{short_count(updates)} learner updates" if updates is not None else ""
        numbers.append(Number("Environment steps", short_count(progress["environment_steps"]), remark))
    seconds = progress.get("wall_time_s", 0.0)
    if seconds > 0:
        rate = progress.get("environment_steps", 0.0) / seconds
        numbers.append(Number("Wall time", _duration(seconds), f"{rate:,.0f} steps per second"))
    return numbers


def _demo_tables(demo: Mapping[str, Any]) -> list[TextTable]:
    rows = [(key.replace("_", " "), _text(demo[key])) for key in (*_DEMO_HEADLINES, *_others(demo)) if key in demo]
    return [TextTable("Numbers of the demo", ("quantity", "value"), rows)] if rows else []


def _others(demo: Mapping[str, Any]) -> list[str]:
    return [key for key in demo if key not in _DEMO_HEADLINES]


def _log_table(logs: Sequence[LogSummary]) -> TextTable:
    header = (
        "log",
        "steps",
        "return",
        "end",
        "file",
        "policy",
        "fallback",
        "human",
        "missed",
        "latency p50 / p99 µs",
        "version",
    )
    rows = []
    for log in logs:
        latency = percentiles(log.latency_us)
        rows.append(
            (
                log.name,
                f"{log.steps:,}",
                f"{log.total_reward:.1f}" + (f" ({log.unknown_rewards} unknown)" if log.unknown_rewards else ""),
                log.end,
                "complete" if log.complete else "recovered",
                *(str(log.sources.get(source, 0)) for source in ("policy", "fallback", "human")),
                str(log.deadline_misses),
                f"{latency['p50']:,.0f} / {latency['p99']:,.0f}" if latency else "",
                log.main_policy_version[:8],
            )
        )
    return TextTable(f"{len(logs)} episode logs", header, rows)


def _text(value: Any) -> str:
    """A number to 4 digits, nested mappings as `key value` pairs, anything else as it is."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "not known" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
