import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mpo_robot.cli.main import main
from mpo_robot.report.charts import Chart, draw_legend_above, short_count, thin
from mpo_robot.report.content import build_report
from mpo_robot.report.log_summary import percentiles, summarize
from mpo_robot.report.robot_figures import gap, versions
from mpo_robot.report.run_data import column, finite, read_run, read_table
from mpo_robot.report.run_figures import learning_curve, real_learning
from tests.support.run_folders import episode_records, make_empty_run, make_run, write_log

DEMO = {
    "nominal_return": {"mean": 800.0, "std": 10.0, "episodes": 5},
    "zero_shot_return": {"mean": 400.0, "std": 30.0, "episodes": 5},
    "learned_return": {"mean": 700.0, "std": 20.0, "episodes": 5},
    "parity_max_abs_error": 3.5e-7,
    "latency_us": {"p50": 180.0, "p99": 400.0, "max": 900.0},
    "mismatch": {"mass": 1.3},
}
VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers headings, text and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.titles, self.words, self.attributes, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h3":
            self.titles.append(data)
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run = make_run(folder / "run")
    (run / "learn.csv").write_text("real_steps,learner_steps,real_return_mean,policy_version\n500,9000,41.5,abc\n")
    for index in range(4):
        version = ("a" if index < 2 else "b") * 64
        write_log(folder / "logs", episode_records(f"ep-{index}", 30, version, 1.0 + index, misses=index, seed=index))
    (folder / "demo.json").write_text(json.dumps(DEMO))
    arguments = ["report", str(run), "--logs", str(folder / "logs"), "--demo", str(folder / "demo.json")]
    assert main([*arguments, "-o", str(folder / "out" / "page.html")]) == 0
    return (folder / "out" / "page.html").read_text(encoding="utf-8")


def test_all_figures_are_there(full_page):
    assert Page(full_page).titles == [
        "Sim-to-real gap",
        "Learning curve",
        "Constraint satisfaction",
        "Dual variables",
        "Exploration",
        "Q values",
        "Critic",
        "Throughput",
        "Learning from real logs",
        "Action latency",
        "Sources and deadline misses",
        "Returns by policy version",
    ]


def test_headline_numbers(full_page):
    text = Page(full_page).text
    for expected in (
        "299.8",  # last evaluation
        "± 8.5 at 6k steps",
        "320.2",  # best evaluation
        "at 4k steps",
        "2.8k learner updates",
        "5 %",  # 6 of 120 deadlines
        "120 steps in 4 episodes",
        "3.5e-07",
        "median; largest 0.80",
    ):
        assert expected in text


def test_the_gap_is_told_in_words(full_page):
    text = Page(full_page).text
    assert "The mismatch costs 400.0 of return; learning from the robot's own logs won back 75 % of that." in text
    assert "mass 1.3" in text


def test_the_page_needs_nothing_from_outside(full_page):
    page = Page(full_page)
    assert not [item for item in page.attributes if item[0] in ("script", "link", "img", "iframe", "object")]
    references = [value for _, name, value in page.attributes if name in ("href", "xlink:href", "src")]
    assert references
    assert all(value.startswith("#") for value in references)
    assert "@import" not in full_page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", full_page))


def test_ids_are_unique_and_references_resolve(full_page):
    page = Page(full_page)
    assert len(page.ids) == len(set(page.ids))
    targets = {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", full_page))
    assert targets
    assert targets <= set(page.ids)


def test_colors_follow_the_theme(full_page):
    style, body = full_page.split("</style>", 1)
    assert "prefers-color-scheme: dark" in style
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", body))
    assert {"--ink", "--grid", "--series-1"} <= used
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", style))
    # No color that one of the two themes would swallow.
    assert not re.findall(r"(?:fill|stroke): ?#[0-9a-f]{3,6}", body)


def test_every_text_is_escaped(tmp_path):
    run = make_empty_run(tmp_path / "<b>run")
    page = build_report(read_run(run), demo={"<i>note": "<script>alert(1)</script>"})
    Page(page)
    assert "<script>" not in page
    assert "<b>run" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;walker&gt;.yaml" in page  # the command of run.json


def test_the_same_input_gives_the_same_figure(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert learning_curve(run) == learning_curve(run)


def test_a_run_that_has_only_begun_gives_a_page(tmp_path, capsys):
    run = make_run(
        tmp_path / "run", metrics="environment_steps,learner_steps,wall_time_s\n500,0,1.5\n", evaluations=None
    )
    (run / "run.json").unlink()
    assert main(["report", str(run)]) == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.titles == []
    assert "500" in page.text
    assert "report.html" in capsys.readouterr().out


def test_logs_that_cannot_be_read_are_named_and_left_out(tmp_path, capsys):
    run = make_empty_run(tmp_path / "run")
    write_log(tmp_path / "logs", episode_records("good"))
    (tmp_path / "logs" / "bad.mcap").write_bytes(b"rubbish")
    assert main(["report", str(run), "--logs", str(tmp_path / "logs")]) == 0
    assert "bad.mcap is not an MCAP file" in capsys.readouterr().err
    assert "good.mcap" in (run / "report.html").read_text()


def test_the_end_of_an_episode_is_what_the_loop_says_it_was():
    cut = [*episode_records("a")[:-1], replace(episode_records("a")[-1], terminated=False, truncated=True)]
    for reason, is_whole in (("estop", False), ("fallback", False), ("operator", False), ("max_steps", True)):
        log = summarize("a.mcap", cut, 0.02, {"statistics": {"end_reason": reason}})
        assert (log.end, log.is_whole) == (reason, is_whole)
    assert summarize("a.mcap", cut, 0.02, {}).end == "truncated"


def test_returns_of_unfinished_episodes_are_not_compared():
    unfinished = summarize("a.mcap", episode_records("a")[:5], 0.02, {}, problem="cut off")
    assert versions([unfinished]) is None
    figure = versions([unfinished, summarize("b.mcap", episode_records("b"), 0.02, {})])
    assert figure is not None
    assert "n = 1" in figure.svg


@pytest.mark.parametrize(
    ("learned", "words"),
    [(700.0, "won back 75 %"), (300.0, "lost a further 25 %"), (None, "before and after learning")],
)
def test_gap_captions(learned, words):
    figure = gap(DEMO | {"learned_return": {"mean": learned}})
    assert figure is not None
    assert words in figure.caption


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (["--logs", "nowhere"], "no log file or folder nowhere"),
        (["--demo", "nowhere.json"], "cannot read nowhere.json"),
        (["-o", "/dev/null/page.html"], "cannot write /dev/null/page.html"),
    ],
)
def test_bad_input_exits_with_2(tmp_path, capsys, extra, text):
    assert main(["report", str(make_empty_run(tmp_path / "run")), *extra]) == 2
    assert text in capsys.readouterr().err


def test_bad_demo_files_and_folders_exit_with_2(tmp_path, capsys):
    run, demo = make_empty_run(tmp_path / "run"), tmp_path / "demo.json"
    for content, text in (("{", "not JSON"), ("[1]", "must hold a JSON object, found list")):
        demo.write_text(content)
        assert main(["report", str(run), "--demo", str(demo)]) == 2
        assert text in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_tables_are_read_tolerantly(tmp_path):
    file = tmp_path / "metrics.csv"
    rows = "environment_steps,q_mean,version\n1,,abc\n2,0.5,def\n"
    for cut_off in ("", "3,0.", "3,0.25,1"):
        file.write_text(rows + cut_off)
        table = read_table(file)
        np.testing.assert_array_equal(table["environment_steps"], [1, 2])
    np.testing.assert_array_equal(finite(table, "q_mean"), [0.5])
    np.testing.assert_array_equal(column(table, "not_there"), [np.nan, np.nan])
    assert read_table(tmp_path / "none.csv") == {}


def test_thinning_keeps_the_mean_and_short_series_as_they_are():
    x = np.arange(5.0)
    y = np.array([1.0, np.nan, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(thin(x, y, 10), ([0, 2, 3, 4], [1, 3, 4, 5]))
    long_x, long_y = thin(np.arange(1000.0), np.arange(1000.0) * 2, 100)
    assert len(long_x) == 100
    np.testing.assert_allclose(long_y, 2 * long_x)
    assert long_x[0] == 4.5
    assert np.mean(long_x) == 499.5


def test_percentiles_and_counts():
    assert percentiles(np.zeros(0)) == {}
    assert percentiles(np.arange(101.0)) == {"p50": 50.0, "p99": 99.0, "max": 100.0}
    assert [short_count(value) for value in (0, 950, 12_000, 1.5e6, 2e9)] == ["0", "950", "12k", "1.5M", "2G"]


def test_summary_counts_gaps_unknown_rewards_and_the_main_version():
    records = episode_records("a", 10)
    records = [*records[:3], *episode_records("a", 10, version="b" * 64, reward=float("nan"))[5:]]
    summary = summarize("a.mcap", records, 0.02, {"episode_id": "a"}, invalid_steps=2)
    assert (summary.steps, summary.gaps, summary.unknown_rewards, summary.invalid_steps) == (8, 1, 5, 2)
    assert summary.total_reward == 3.0
    assert summary.main_policy_version == "b" * 64
    assert summary.policy_versions == {"a" * 64: 3, "b" * 64: 5}


def test_a_legend_above_does_not_lie_over_the_panel():
    chart = Chart()
    axes = chart.axes[0]
    for index in range(4):
        axes.axvline(index, label=f"mark {index}")
    draw_legend_above(axes, ncols=2)
    svg = chart.svg("test")
    assert "mark 3" in svg
    (legend,) = axes.figure.legends
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1


@pytest.mark.parametrize(("rounds", "text"), [(1, "There was one round"), (2, "One point per round")])
def test_learning_rounds_are_explained_and_their_ticks_are_whole(tmp_path, rounds, text):
    run = make_run(tmp_path / "run")
    rows = "".join(f"{3 * index},{100 * index},{index},{20.5 * index},v\n" for index in range(1, rounds + 1))
    (run / "learn.csv").write_text("real_steps,learner_steps,logs,real_return_mean,policy_version\n" + rows)
    figure = real_learning(read_run(run))
    assert text in figure.caption
    ticks = re.findall(r">([\d.]+k?)</text>", figure.svg.partition("matplotlib.axis_2")[0])
    assert len(ticks) >= 3
    assert not [tick for tick in ticks if "." in tick]


def test_cells_of_tables_do_not_break_inside_words(tmp_path):
    style = re.search(r"<style>(.*?)</style>", build_report(read_run(make_run(tmp_path / "run"))), re.DOTALL)[1]
    (cell,) = re.findall(r"^td \{(.*?)\}", style, re.MULTILINE)
    assert "anywhere" not in cell  # it would let columns shrink below their words instead of scrolling the table
