"""Figures about robots: episode logs, and the sim-to-real gap of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpo_robot.report.charts import INK, LEGEND, SERIES, SOFT, Chart, draw_legend_above
from mpo_robot.report.log_summary import LogSummary, percentiles
from mpo_robot.report.run_figures import Figure

_SOURCES = {"policy": SERIES[0], "fallback": SERIES[1], "human": SERIES[3]}
_GAP_BARS = {
    "nominal_return": "nominal\nsimulator",
    "zero_shot_return": "mismatched robot,\nzero-shot",
    "learned_return": "mismatched robot,\nafter learning",
}


def latency(logs: Sequence[LogSummary]) -> Figure | None:
    """Histogram of the time from observation to action over all episodes."""
    values = np.concatenate([log.latency_us for log in logs]) if logs else np.zeros(0)
    values = values[values > 0]
    if not len(values):
        return None
    chart = Chart()
    axes = chart.axes[0]
    low, high = values.min(), max(values.max(), values.min() * 1.5)
    axes.hist(values, bins=np.geomspace(low, high, 60), color=SERIES[0], alpha=0.85)
    marks = percentiles(values)
    for name, style in (("p50", "-"), ("p99", (0, (4, 2))), ("max", (0, (1, 2)))):
        axes.axvline(marks[name], color=INK, linewidth=1.1, linestyle=style, label=f"{name} {marks[name]:,.0f} µs")
    period = min(log.control_dt for log in logs) * 1e6
    if period < high * 100:
        axes.axvline(period, color=SERIES[1], linewidth=1.6, label=f"control period {period:,.0f} µs")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.set_yscale("symlog", linthresh=10)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("latency [µs]")
    axes.set_ylabel("steps")
    draw_legend_above(axes, ncols=2)
    caption = f"Time from sending the observation to receiving the action, {len(values):,} steps of the policy."
    return Figure("Action latency", caption, chart.svg("latency"))


def sources(logs: Sequence[LogSummary]) -> Figure | None:
    """Per episode: who chose the actions, and how many deadlines were missed."""
    used = [log for log in logs if log.steps]
    if not used:
        return None
    chart = Chart(panels=2, height=3.0)
    index = np.arange(1, len(used) + 1)
    bottom = np.zeros(len(used))
    for source, color in _SOURCES.items():
        share = np.array([100.0 * log.sources.get(source, 0) / log.steps for log in used])
        if share.any():
            chart.axes[0].bar(index, share, 0.9, bottom=bottom, color=color, label=source)
            bottom += share
    chart.axes[0].set_ylabel("steps by source [%]")
    chart.axes[0].set_ylim(0, 119)
    chart.axes[0].set_yticks((0, 25, 50, 75, 100))
    chart.axes[0].legend(loc="upper left", ncols=3, **LEGEND)
    misses = np.array([log.deadline_misses for log in used])
    chart.axes[1].bar(index, misses, 0.9, color=SERIES[1])
    chart.axes[1].set_ylabel("deadline misses")
    chart.axes[1].set_ylim(0, max(1.0, 1.15 * misses.max()))
    for axes in chart.axes:
        axes.set_xlabel("episode")
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    total = sum(log.steps for log in used)
    caption = f"{int(misses.sum()):,} of {total:,} steps had no action by their deadline."
    return Figure("Sources and deadline misses", caption, chart.svg("sources"))


def versions(logs: Sequence[LogSummary]) -> Figure | None:
    """Returns of the episodes of each policy version, versions in order of first use."""
    groups: dict[str, list[float]] = {}
    for log in logs:
        # The return of an episode that was cut off in the middle, or not rewarded yet, compares with nothing.
        if log.is_whole and not log.unknown_rewards:
            groups.setdefault(log.main_policy_version[:8] or "none", []).append(log.total_reward)
    if not groups:
        return None
    chart = Chart()
    axes = chart.axes[0]
    for position, returns in enumerate(groups.values()):
        offsets = np.linspace(-0.15, 0.15, len(returns)) if len(returns) > 1 else np.zeros(1)
        axes.plot(position + offsets, returns, "o", color=SERIES[0], markersize=4.5, alpha=0.75)
        axes.plot((position - 0.28, position + 0.28), [np.mean(returns)] * 2, color=SERIES[1], linewidth=2.4)
    axes.set_xticks(range(len(groups)), [f"{name}\nn = {len(returns)}" for name, returns in groups.items()])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.tick_params(axis="x", labelrotation=0 if len(groups) <= 6 else 90)
    axes.set_ylabel("return")
    caption = "One point per finished episode; the bar is the mean. Versions in order of first use."
    return Figure("Returns by policy version", caption, chart.svg("versions"))


def gap(demo: Mapping[str, Any]) -> Figure | None:
    """Bars of the three returns of the demo."""
    found = {label: demo[key] for key, label in _GAP_BARS.items() if _mean(demo.get(key)) is not None}
    if len(found) < 2:
        return None
    chart = Chart(height=3.6)
    axes = chart.axes[0]
    colors = dict(zip(_GAP_BARS.values(), (SOFT, SERIES[1], SERIES[0])))
    for position, (label, value) in enumerate(found.items()):
        mean, spread = float(value["mean"]), float(value.get("std") or 0.0)
        axes.bar(position, mean, 0.6, color=colors[label])
        axes.errorbar(position, mean, yerr=spread, color=INK, linewidth=1.2, capsize=4)
        axes.annotate(
            f"{mean:.1f}",
            (position, mean + spread),
            (0, 5),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontweight="bold",
        )
    axes.axhline(0.0, color=INK, linewidth=0.8)
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel("return (mean ± std)")
    return Figure("Sim-to-real gap", _gap_caption(demo), chart.svg("gap"))


def _gap_caption(demo: Mapping[str, Any]) -> str:
    nominal, zero_shot, learned = (_mean(demo.get(key)) for key in _GAP_BARS)
    if nominal is None or zero_shot is None or learned is None or not nominal > zero_shot:
        return "The same policy in the nominal simulator and on the mismatched robot, before and after learning."
    closed = 100.0 * (learned - zero_shot) / (nominal - zero_shot)
    return (
        f"The mismatch costs {nominal - zero_shot:.1f} of return; learning from the robot's own logs "
        f"{'won back' if closed >= 0 else 'lost a further'} {abs(closed):.0f} % of that."
    )


def _mean(value: Any) -> float | None:
    mean = value.get("mean") if isinstance(value, Mapping) else None
    return float(mean) if isinstance(mean, (int, float)) and np.isfinite(mean) else None
