import math

import pytest

from deploy.guard import GuardConfig, PolicyGuard, judge
from deploy.operations import describe
from deploy.outcomes import REMEMBERED, Outcome, OutcomeLog, summarize
from deploy.registry import PolicyRegistry
from mpo_robot.errors import ConfigError
from tests.support.onnx_files import small_spec, write_linear_policy

SPEC = small_spec()
CONFIG = GuardConfig(episodes=5)


def outcome(value=10.0, *, version="v", under="u", misses=0, fault=False, name="e"):
    return Outcome(version, under, name, 100, value, misses, fault, "truncated")


def outcomes(*values, **facts):
    return [outcome(value, **facts) for value in values]


GOOD = outcomes(10.0, 10.1, 9.9, 10.0, 10.0)


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        (GOOD, GOOD, ""),
        (outcomes(7.0, 7.1, 6.9, 7.0, 7.0), GOOD, "mean return 7, 10 before"),
        (outcomes(7.0, 7.1, 6.9, 7.0), GOOD, ""),  # not all of its episodes yet
        (outcomes(8.5, 8.5, 8.6, 8.4, 8.5), GOOD, ""),  # within the drop that is allowed
        (outcomes(30.0, 30.0, -20.0, -20.0, 10.0), GOOD, ""),  # lower, within its noise
        (outcomes(-13.0, -13.1, -12.9, -13.0, -13.0), outcomes(-10.0, -10.1, -9.9, -10.0, -10.0), "mean return -13"),
        (outcomes(None, None, None, None, None), GOOD, ""),
        (outcomes(1.0, 1.0, 1.0, 1.0, 1.0), [], ""),
        (outcomes(10.0, 10.0, fault=True), GOOD, "2 of 2 episodes ended in a fault, 0% before"),
        (outcomes(10.0, fault=True), GOOD, ""),
        (outcomes(10.0, 10.0, fault=True), outcomes(*[10.0] * 5, fault=True), ""),
        (outcomes(10.0, 10.0, fault=True), [], "2 of 2 episodes"),
        (outcomes(*[10.0] * 5, misses=3), GOOD, "3.0% of steps without an action in time, 0.0% before"),
        (outcomes(*[10.0] * 5, misses=2), GOOD, ""),
        (outcomes(*[10.0] * 5, misses=9), outcomes(*[10.0] * 5, misses=8), ""),
    ],
)
def test_verdicts(new, old, verdict):
    assert judge(new, old, CONFIG).startswith(verdict)
    assert bool(judge(new, old, CONFIG)) == bool(verdict)


def faulty(count, episodes):
    return [outcome(fault=number < count) for number in range(episodes)]


@pytest.mark.parametrize("episodes", [1, 5, 10, 20, 25, 30])
def test_faults_are_judged_beyond_the_border_and_not_on_it(episodes):
    """For every reference: exactly 20 % more episodes may stay, one more may not."""
    config = GuardConfig(episodes=episodes)
    for before in range(episodes + 1):
        allowed = before + episodes // 5  # rounded down where 20 % is no whole number
        for count in range(min(allowed + 2, episodes + 1)):
            assert bool(judge(faulty(count, episodes), faulty(before, episodes), config)) is (count > allowed)
            # As soon as it is certain: the faulty episodes alone decide.
            assert bool(judge(faulty(count, count), faulty(before, episodes), config)) is (count > allowed)


def test_misses_are_judged_beyond_the_border_and_not_on_it():
    config = GuardConfig(episodes=1)
    for before in range(98):
        old = [outcome(misses=before)]
        assert not judge([outcome(misses=before + 2)], old, config)
        assert judge([outcome(misses=before + 3)], old, config)


@pytest.mark.parametrize("mean", [10.0, -10.0, 8.5, 0.3])
def test_returns_are_judged_beyond_both_borders(mean):
    old, spread = outcomes(mean, mean), 0.01 * abs(mean)  # of the new mean, this is the standard error

    def judged(drop, spread, **settings):
        new = outcomes(mean - drop - spread, mean - drop + spread)
        return bool(judge(new, old, GuardConfig(episodes=2, **settings)))

    border = 0.2 * abs(mean)
    assert [judged(border * factor, spread) for factor in (1 - 1e-6, 1.0, 1 + 1e-6)] == [False, False, True]
    drop = 0.5 * abs(mean)
    assert [judged(drop, drop / 2 * factor) for factor in (1 - 1e-6, 1.0, 1 + 1e-6)] == [True, False, False]


def test_one_return_has_no_standard_error_and_is_not_judged():
    assert not judge(outcomes(1.0), outcomes(10.0), GuardConfig(episodes=1))
    assert not judge(outcomes(1.0, 1.0), outcomes(10.0), GuardConfig(episodes=2))


def test_only_the_first_episodes_of_the_new_and_the_last_of_the_old_count():
    config = GuardConfig(episodes=3)
    bad, good = outcomes(1.0, 1.1, 0.9), outcomes(10.0, 10.1, 9.9)
    assert judge([*bad, *good], [*bad, *good], config)
    assert not judge([*good, *bad], [*bad, *good], config)
    assert not judge([*bad, *good], [*good, *bad], config)


@pytest.mark.parametrize(
    ("setting", "new"),
    [
        ({"return_drop": 0.5}, outcomes(7.0, 7.1, 6.9, 7.0, 7.0)),
        ({"return_errors": 1000.0}, outcomes(7.0, 7.1, 6.9, 7.0, 7.0)),
        ({"fault_rise": 0.5}, outcomes(10.0, 10.0, fault=True)),
        ({"miss_rise": 0.05}, outcomes(*[10.0] * 5, misses=3)),
        ({"episodes": 6}, outcomes(7.0, 7.1, 6.9, 7.0, 7.0)),
    ],
)
def test_every_threshold_has_an_effect(setting, new):
    assert judge(new, GOOD, CONFIG)
    assert not judge(new, GOOD, GuardConfig(**{"episodes": 5, **setting}))


def test_thresholds_are_checked():
    GuardConfig(episodes=REMEMBERED - 1)
    for setting in ({"episodes": -1}, {"episodes": REMEMBERED}, {"return_drop": -0.1}, {"fault_rise": math.nan}):
        with pytest.raises(ConfigError, match="guard"):
            GuardConfig(**setting)


def test_statistics():
    result = summarize([outcome(1.0, misses=5), outcome(3.0, fault=True), outcome(None)])
    assert (result.episodes, result.returns, result.mean_return) == (3, 2, 2.0)
    assert result.return_error == pytest.approx(1.0)
    assert (result.fault_rate, result.miss_rate) == (pytest.approx(1 / 3), pytest.approx(5 / 300))
    assert math.isnan(summarize([]).mean_return)


def test_outcomes_outlive_the_process_and_a_torn_line(tmp_path, monkeypatch):
    log = OutcomeLog(tmp_path)
    log.append(outcome(1.0, version="a"))
    with log.path.open("a") as stream:
        stream.write('{"policy_version": "a", "torn')
    again = OutcomeLog(tmp_path)
    again.append(outcome(2.0, version="a"))
    assert [item.undiscounted_return for item in again.of("a")] == [1.0, 2.0]
    assert OutcomeLog(tmp_path).of("a") == again.of("a")
    monkeypatch.setattr("deploy.outcomes._ROTATE_BYTES", 10)
    again.append(outcome(3.0, version="a"))
    assert [item.undiscounted_return for item in OutcomeLog(tmp_path).of("a")] == [1.0, 2.0, 3.0]
    assert len(log.path.read_text().splitlines()) == 1
    assert again.versions() == ["a"]


class Bench:
    def __init__(self, folder, **settings):
        self.registry = PolicyRegistry(folder / "registry")
        self.files = [write_linear_policy(folder / f"{number}.onnx", SPEC, bias=number / 10) for number in range(4)]
        self.guard = PolicyGuard(self.registry, GuardConfig(**{"episodes": 3, **settings}))

    def run(self, version, *values, **facts):
        """Episodes of a version under the present state; what the guard said to each."""
        under = self.registry.pointer().audit
        return [self.guard.note(outcome(value, version=version, under=under, **facts)) for value in values]


def test_a_worse_version_is_taken_back_once_and_no_further(tmp_path):
    bench = Bench(tmp_path)
    a, b = (bench.registry.publish(path) for path in bench.files[:2])
    assert bench.run(a, 100.0, 100.1, 99.9) == ["", "", ""]
    assert bench.run(b, 10.0, 10.1, 9.9) == ["", "", "mean return 10, 100 before"]
    assert bench.registry.current_version() == a
    entry = bench.registry.audit.entries()[-1]
    assert (entry["event"], entry["by"], entry["left"]) == ("rollback", "guard", b)
    assert entry["detail"] == "mean return 10, 100 before"
    assert bench.run(b, 0.0, 0.0) == ["", ""]  # late reports
    assert bench.run(a, 1.0, 1.1, 0.9) == ["", "", ""]  # there is nothing before it
    assert bench.registry.current_version() == a


def test_a_version_that_passed_is_not_judged_again(tmp_path):
    bench = Bench(tmp_path)
    a, b = (bench.registry.publish(path) for path in bench.files[:2])
    bench.run(a, 100.0, 100.1, 99.9)
    assert bench.run(b, 101.0, 101.1, 100.9, 1.0, 1.1, 0.9) == [""] * 6
    assert bench.registry.current_version() == b


def test_a_version_that_was_published_again_gets_another_chance(tmp_path):
    bench = Bench(tmp_path)
    a, b = (bench.registry.publish(path) for path in bench.files[:2])
    bench.run(a, 100.0, 100.1, 99.9)
    assert any(bench.run(b, 10.0, 10.1, 9.9))
    bench.registry.publish(bench.files[1])
    assert bench.run(b, 101.0, 101.1, 100.9) == [""] * 3
    assert bench.registry.current_version() == b


def test_a_candidate_is_judged_against_the_one_in_force(tmp_path):
    bench = Bench(tmp_path)
    a = bench.registry.publish(bench.files[0])
    b = bench.registry.start_trial(bench.files[1], 0.5)
    bench.run(a, 100.0, 100.1, 99.9)
    assert bench.run(b, 100.0, fault=True) == ["1 of 1 episodes ended in a fault, 0% before"]
    assert bench.registry.pointer().trial is None
    assert bench.registry.current_version() == a
    rows = {row["version"]: row for row in describe(bench.registry, bench.guard.outcomes)["versions"]}
    assert rows[a]["role"] == "in force"
    assert (rows[a]["episodes"], rows[a]["mean_return"]) == (3, pytest.approx(100.0))


def test_episodes_that_began_before_a_change_do_not_count(tmp_path):
    bench = Bench(tmp_path)
    a = bench.registry.publish(bench.files[0])
    bench.run(a, 100.0, 100.1, 99.9)
    b = bench.registry.publish(bench.files[1])
    assert [bench.guard.note(outcome(0.0, version=b, under=under, fault=True)) for under in ("", "old")] == ["", ""]
    assert bench.registry.current_version() == b


def test_off_means_off_and_a_full_disk_is_survived(tmp_path, monkeypatch, caplog):
    bench = Bench(tmp_path, episodes=0)
    _, b = (bench.registry.publish(path) for path in bench.files[:2])
    assert bench.run(b, *[0.0] * 20, fault=True) == [""] * 20
    bench = Bench(tmp_path)

    def full(self, mode="r", **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    bench.guard.note(outcome(version=b))
    assert "could not be written" in caplog.text
