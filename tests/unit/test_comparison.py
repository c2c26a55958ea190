"""Aggregates by hand and against SciPy, and the tables that a comparison writes."""

import csv
import math

import numpy as np
import pytest
import scipy.stats

from mpo_robot.cli.compare_table import Runs, parse_ranges, write_comparison
from mpo_robot.cli.settings import load_run_config
from mpo_robot.cli.trainings import Training
from mpo_robot.comparison import (
    interquartile_mean,
    mean,
    median_of_tasks,
    normalize_scores,
    probability_of_improvement,
    stratified_bootstrap,
)
from mpo_robot.errors import ConfigError
from mpo_robot.run_folder import RunFolder


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 2), (5, 3), (4, 6), (7, 1)])
def test_the_interquartile_mean_is_scipys_trimmed_mean(shape):
    scores = np.random.default_rng(0).standard_normal(shape)
    expected = scipy.stats.trim_mean(scores, proportiontocut=0.25, axis=None)
    assert interquartile_mean(scores) == pytest.approx(expected)


def test_the_interquartile_mean_by_hand():
    # 0 1 2 3 | 10 20 30 1000 sorted: two go at each end, (2 + 3 + 10 + 20) / 4 stays
    scores = np.array([[1000.0, 1.0], [20.0, 3.0], [0.0, 10.0], [2.0, 30.0]])
    assert interquartile_mean(scores) == 8.75
    assert interquartile_mean(np.stack([scores, scores + 1.0])).tolist() == [8.75, 9.75]


def test_mean_and_median_over_the_right_axes():
    scores = np.array([[0.0, 5.0, 1.0], [2.0, 7.0, 3.0]])  # means of tasks 1, 6, 2
    assert mean(scores) == 3.0
    assert median_of_tasks(scores) == 2.0


def test_probability_of_improvement_by_hand():
    ours, theirs = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 5.0], [0.0, 9.0]])
    # task 1: 1<2, 1>0, 3>2, 3>0 -> 3/4; task 2: two ties, two lost -> 1/4
    assert probability_of_improvement(ours, theirs) == 0.5
    assert probability_of_improvement(ours[:, :1], theirs[:, :1]) == 0.75
    assert probability_of_improvement(theirs[:, :1], ours[:, :1]) == 0.25
    # Mann-Whitney's U, with unequal numbers of seeds
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((5, 1)), rng.standard_normal((3, 1)) + 0.3
    u = scipy.stats.mannwhitneyu(left[:, 0], right[:, 0]).statistic
    assert probability_of_improvement(left, right) == pytest.approx(u / 15)


def test_the_bootstrap_covers_what_it_should():
    # Interval of a mean: value +- 1.96 standard errors of the plug-in distribution.
    scores = np.random.default_rng(1).standard_normal((50, 1))
    estimate = stratified_bootstrap(mean, scores, repetitions=4000)
    error = 1.96 * scores.std() / math.sqrt(50)
    assert estimate.value == pytest.approx(scores.mean())
    assert estimate.low == pytest.approx(scores.mean() - error, abs=0.03)
    assert estimate.high == pytest.approx(scores.mean() + error, abs=0.03)
    assert estimate == stratified_bootstrap(mean, scores, repetitions=4000)


def test_the_bootstrap_draws_seeds_within_tasks_and_never_across():
    # Two seeds that agree leave no uncertainty, however far the tasks are apart.
    apart = np.array([[0.0, 100.0], [0.0, 100.0]])
    assert stratified_bootstrap(mean, apart) == (50.0, 50.0, 50.0)
    # and the tasks are drawn on their own: both seeds 0 in one and both 1 in the other happens
    spread = np.array([[0.0, 0.0], [1.0, 1.0]])
    seen = set()

    def note(scores):
        seen.update(map(tuple, scores.mean(axis=-2).reshape(-1, 2)))
        return mean(scores)

    stratified_bootstrap(note, spread)
    assert (0.0, 1.0) in seen


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((0, 2)), np.array([[math.nan]])])
def test_the_bootstrap_refuses_what_is_no_matrix_of_numbers(scores):
    with pytest.raises(ValueError, match="finite scores"):
        stratified_bootstrap(mean, scores)


def test_scores_are_relative_to_the_bounds_of_their_task():
    returns = np.array([[0.0, 50.0], [100.0, 75.0]])
    low, high = np.array([0.0, 50.0]), np.array([200.0, 100.0])
    assert normalize_scores(returns, low, high).tolist() == [[0.0, 0.0], [0.5, 0.5]]
    with pytest.raises(ValueError, match="above its low"):
        normalize_scores(returns, high, low)


TASKS = ("dm_control:walker-walk", "gymnasium:Hopper-v4")


def make_runs(tmp_path, values, last_step=200, steps=(100, 200)):
    """Curves to `last_step` of runs with evaluations at two steps, the later ones with the given returns."""
    curves = {}
    for (algorithm, task, seed), value in values.items():
        folder = RunFolder(tmp_path / algorithm / task.partition(":")[2] / str(seed))
        folder.path.mkdir(parents=True)
        folder.evaluations_file.write_text(f"environment_steps,return_mean\n{steps[0]},1.0\n{steps[1]},{value}\n")
        config = load_run_config({"environment": {"task": task}})
        curves[algorithm, task, seed] = Training(tmp_path, (), config, folder).curve(last_step)
    return Runs(curves)


def rows(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_tables_and_figure(tmp_path):
    values = {("a", TASKS[0], 0): 500.0, ("a", TASKS[1], 0): 2449.0, ("a", TASKS[0], 1): 700.0}
    values |= {("a", TASKS[1], 1): 2449.0, ("b", TASKS[0], 0): 600.0, ("b", TASKS[1], 0): 0.0}
    values |= {("b", TASKS[0], 1): 600.0}  # seed 1 of b did not finish the other task: it does not count
    text = write_comparison(tmp_path, make_runs(tmp_path, values), 200, {})
    first, second = rows(tmp_path / "comparison.csv")
    assert [first["algorithm"], first["seeds"], second["algorithm"], second["seeds"]] == ["a", "2", "b", "1"]
    assert float(first["iqm"]) == pytest.approx((0.7 + 1.0) / 2)  # of 0.5 0.7 1 1
    assert float(first["mean"]) == pytest.approx(0.8)
    assert float(second["mean"]) == pytest.approx(0.3)
    assert float(first["return dm_control:walker-walk"]) == 600.0
    improvement = {
        (row["algorithm"], row["than"]): float(row["probability"]) for row in rows(tmp_path / "improvement.csv")
    }
    assert improvement == {("a", "b"): pytest.approx(0.75), ("b", "a"): pytest.approx(0.25)}
    scores = {
        (row["algorithm"], row["task"], row["seed"]): float(row["score"]) for row in rows(tmp_path / "scores.csv")
    }
    assert len(scores) == 7
    assert scores["a", TASKS[0], "1"] == pytest.approx(0.7)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "0.850 [0." in text
    assert "0.300 [n/a]" in text  # one seed has no interval
    assert "0.750 [n/a]" in text
    assert "two seeds at least" in text
    assert f"left out on all tasks: b on {TASKS[1]}, seed 1." in text
    assert second["iqm_low"] == second["iqm_high"] == "nan"


def test_a_shorter_comparison_of_longer_runs_uses_their_earlier_evaluations(tmp_path):
    values = {("a", TASKS[0], 0): 500.0, ("b", TASKS[0], 0): 700.0}
    write_comparison(tmp_path, make_runs(tmp_path, values, last_step=100), 100, [])
    assert [float(row["return dm_control:walker-walk"]) for row in rows(tmp_path / "comparison.csv")] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("last_step", "returns"), [(100, {100: 1.0}), (200, {102: 1.0, 200: 7.0}), (300, {102: 1.0, 201: 7.0})]
)
def test_an_evaluation_one_turn_late_is_that_of_its_step(last_step, returns, tmp_path):
    runs = make_runs(tmp_path, {("a", TASKS[0], 0): 7.0}, last_step, steps=(102, 201))  # action_repeat 3
    assert runs.curves["a", TASKS[0], 0] == returns


def test_runs_whose_turns_differ_are_compared_at_the_last_step(tmp_path):
    runs = make_runs(tmp_path / "a", {("a", TASKS[0], 0): 500.0}, steps=(102, 201)).curves
    runs |= make_runs(tmp_path / "b", {("b", TASKS[0], 0): 700.0}, steps=(104, 208)).curves
    write_comparison(tmp_path, Runs(runs), 200, {})
    assert [float(row["return dm_control:walker-walk"]) for row in rows(tmp_path / "comparison.csv")] == [700.0, 500.0]
    assert {row["environment_steps"] for row in rows(tmp_path / "scores.csv")} == {"200"}


def test_score_ranges(tmp_path):
    runs = make_runs(tmp_path, {("a", "gymnasium:Other-v1", 0): 10.0, ("b", "gymnasium:Other-v1", 0): 30.0})
    assert "worst and best return here (10.0 and 30.0)" in write_comparison(tmp_path, runs, 200, {})
    task = "gymnasium:Other-v1"
    write_comparison(tmp_path, runs, 200, parse_ranges([f"{task}=-10:90"], [task]))
    assert [float(row["iqm"]) for row in rows(tmp_path / "comparison.csv")] == [0.4, 0.2]
    for option, message in (("x", "LOW:HIGH"), ("y=0:1", "not compared"), (f"{task}=2:1", "above LOW")):
        with pytest.raises(ConfigError, match=message):
            parse_ranges([option], [task])


def test_nothing_finished_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="nothing to compare"):
        write_comparison(tmp_path, Runs({}), 200, {})
