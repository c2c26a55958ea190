"""Figures about the training of a run. Each returns None if the run has no data for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mpo_robot.report.charts import INK, SERIES, SOFT, Chart, draw_legend_above, draw_steps_axis, short_count, thin
from mpo_robot.report.run_data import RunData, Table, column, finite


class Figure(NamedTuple):
    """A drawn figure with its words. `svg` is trusted markup; title and caption are plain text."""

    title: str
    caption: str
    svg: str


def learning_curve(run: RunData) -> Figure | None:
    """Return against environment steps: training episodes, and evaluations with their spread."""
    episodes, evaluations = finite(run.metrics, "episode_return"), finite(run.evaluations, "return_mean")
    if not len(episodes) and not len(evaluations):
        return None
    chart = Chart(height=3.8)
    axes = chart.axes[0]
    if len(episodes):
        _line(axes, run.metrics, "episode_return", SOFT, "training episode", linewidth=1.0)
    if len(evaluations):
        steps, mean = column(run.evaluations, "environment_steps"), column(run.evaluations, "return_mean")
        spread = np.nan_to_num(column(run.evaluations, "return_std"))
        low, high = column(run.evaluations, "return_min"), column(run.evaluations, "return_max")
        axes.fill_between(steps, low, high, color=SERIES[0], alpha=0.12, linewidth=0, label="evaluation, min to max")
        axes.fill_between(steps, mean - spread, mean + spread, color=SERIES[0], alpha=0.25, linewidth=0)
        axes.plot(steps, mean, color=SERIES[0], marker="o", markersize=3.5, label="evaluation, mean ± std")
    draw_steps_axis(axes)
    axes.set_ylabel("return")
    draw_legend_above(axes, ncols=3)
    action = "most probable" if "kl_policy_rel" in run.metrics else "mean"  # of discrete actions
    caption = f"Undiscounted return. Evaluations use the {action} action on the nominal task."
    return Figure("Learning curve", caption, chart.svg("learning"))


def constraints(run: RunData) -> Figure | None:
    """Each KL divergence divided by its bound, log scale."""
    series = {
        "kl_q_rel": "E-step, KL(q ‖ π)",
        "kl_mean_rel": "M-step, mean",
        "kl_stddev_rel": "M-step, stddev",
        "kl_policy_rel": "M-step, probabilities",
    }
    chart = Chart()
    axes = chart.axes[0]
    if not _lines(axes, run.metrics, series, positive_only=True):
        return None
    axes.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="bound")
    axes.set_yscale("log")
    draw_steps_axis(axes)
    axes.set_ylabel("KL / bound")
    draw_legend_above(axes, ncols=4)
    caption = (
        "Each divergence divided by its bound. At or below the dashed line the constraint holds; "
        "the duals push back what lies above."
    )
    return Figure("Constraint satisfaction", caption, chart.svg("constraints"))


def duals(run: RunData) -> Figure | None:
    """Temperature and Lagrange multipliers, log scale."""
    names = {
        "temperature": "temperature",
        "penalty_temperature": "penalty temperature",
        "alpha_mean": "alpha mean",
        "alpha_stddev": "alpha stddev",
        "alpha": "alpha",
    }
    chart = Chart()
    if not _lines(chart.axes[0], run.metrics, names, positive_only=True):
        return None
    chart.axes[0].set_yscale("log")
    draw_steps_axis(chart.axes[0])
    chart.axes[0].set_ylabel("dual value")
    draw_legend_above(chart.axes[0], ncols=4)
    caption = "Temperature of the E-step and multipliers of the M-step constraints."
    return Figure("Dual variables", caption, chart.svg("duals"))


def exploration(run: RunData) -> Figure | None:
    """Entropy and mean standard deviation of the policy."""
    panels = {
        "entropy": ("entropy [nats]", "Entropy of the policy."),
        "stddev_mean": (
            "stddev (action units)",
            "Mean standard deviation of the policy; at zero exploration has ended.",
        ),
    }
    return _panels(run, panels, "Exploration", "exploration")


def q_statistics(run: RunData) -> Figure | None:
    """Range and mean of the critic's values on the batch."""
    chart = Chart()
    axes = chart.axes[0]
    if not len(finite(run.metrics, "q_mean")):
        return None
    steps = column(run.metrics, "environment_steps")
    (x, low), (x_high, high) = (thin(steps, column(run.metrics, name)) for name in ("q_min", "q_max"))
    if len(x) and np.array_equal(x, x_high):
        axes.fill_between(x, low, high, color=SERIES[1], alpha=0.18, linewidth=0, label="min to max")
    _line(axes, run.metrics, "q_mean", SERIES[1], "mean")
    draw_steps_axis(axes)
    axes.set_ylabel("Q [reward]")
    draw_legend_above(axes, ncols=2)
    caption = "Values of the critic on each logged batch. Growth without growing returns means overestimation."
    return Figure("Q values", caption, chart.svg("qvalues"))


def off_policy(run: RunData) -> Figure | None:
    """How much of the traces survives, and the critic's loss."""
    panels = {
        "trace_coefficient_mean": (
            "mean trace coefficient",
            "Mean trace coefficient: 1 keeps whole traces, 0 is one-step.",
        ),
        "loss_critic": ("critic loss", "Loss of the critic."),
    }
    return _panels(run, panels, "Critic", "critic")


def throughput(run: RunData) -> Figure | None:
    """Environment steps per second."""
    chart = Chart(height=2.8)
    axes = chart.axes[0]
    if not _line(axes, run.metrics, "steps_per_second", SERIES[2], "steps per second", positive_only=True):
        return None
    axes.set_yscale("log")  # steps before the first update are far faster
    axes.yaxis.set_major_formatter(lambda value, _: short_count(value))
    draw_steps_axis(axes)
    axes.set_ylabel("steps / s")
    caption = "Environment steps per second of wall time, learner updates included."
    return Figure("Throughput", caption, chart.svg("throughput"))


def real_learning(run: RunData) -> Figure | None:
    """Mean return of the ingested logs by round of learning."""
    returns = finite(run.learning, "real_return_mean")
    if not len(returns):
        return None
    chart = Chart(height=2.8)
    axes = chart.axes[0]
    steps = column(run.learning, "real_steps")
    axes.plot(steps, column(run.learning, "real_return_mean"), color=SERIES[3], marker="o", markersize=4)
    draw_steps_axis(axes, "real steps ingested")
    axes.set_xlim(0.0, 1.1 * float(np.nanmax(steps)))
    axes.set_ylabel("mean return of new logs")
    caption = "One point per round of `mpo-robot learn`: the mean return of the logs that were new to it."
    if len(returns) == 1:
        caption = (
            f"There was one round of `mpo-robot learn` so far; its logs had a mean return of {returns[0]:.1f}. "
            "How that changes with learning shows from the second round on."
        )
    return Figure("Learning from real logs", caption, chart.svg("reallearning"))


RUN_FIGURES = (
    learning_curve, constraints, duals, exploration, q_statistics, off_policy, throughput, real_learning,
)  # fmt: skip


def _panels(run: RunData, panels: dict[str, tuple[str, str]], title: str, prefix: str) -> Figure | None:
    """A panel for each column that has values: its label, and its part of the caption."""
    present = {name: panel for name, panel in panels.items() if len(finite(run.metrics, name))}
    if not present:
        return None
    chart = Chart(panels=len(present), height=3.0)
    caption = " ".join(sentence for _, sentence in present.values())
    for axes, color, (name, (label, _)) in zip(chart.axes, SERIES, present.items()):
        _line(axes, run.metrics, name, color, label)
        draw_steps_axis(axes)
        axes.set_ylabel(label)
    return Figure(title, caption, chart.svg(prefix))


def _lines(axes: Any, table: Table, names: dict[str, str], positive_only: bool) -> bool:
    """Draw the columns that have values; tells whether there were any."""
    drawn = [
        _line(axes, table, name, color, label, positive_only) for color, (name, label) in zip(SERIES, names.items())
    ]
    return any(drawn)


def _line(
    axes: Any, table: Table, name: str, color: str, label: str, positive_only: bool = False, linewidth: float = 1.6
) -> bool:
    x, y = thin(column(table, "environment_steps"), column(table, name))
    if positive_only:
        x, y = x[y > 0], y[y > 0]
    if not len(x):
        return False
    axes.plot(x, y, color=color, label=label, linewidth=linewidth, marker="o" if len(x) == 1 else "")
    return True
