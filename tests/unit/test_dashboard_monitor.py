"""What the operator's page is told: from snapshots, registry and robots, without a socket."""

import json
from array import array

import pytest

from deploy.dashboard.config import DashboardConfig
from deploy.dashboard.episodes import EpisodeFeed
from deploy.dashboard.fleet import Fleet, RobotView
from deploy.dashboard.monitor import SILENT_S, Monitor
from deploy.dashboard.registry_view import RegistryView
from deploy.outcomes import Outcome, OutcomeLog
from deploy.registry import PolicyRegistry
from deploy.server_config import ServerStatistics
from deploy.sessions import Session
from deploy.telemetry import PERIOD_NS, Snapshot, Telemetry, decode
from mpo_robot.errors import ConfigError
from tests.support.onnx_files import small_spec, write_linear_policy

SPEC = small_spec()
A, B, C = "a" * 64, "b" * 64, "c" * 64


def snapshot(at_s=0.0, times_us=(), failures=0, **counters):
    data = array("q", [round(1000 * value) for value in times_us]).tobytes()
    names = dict.fromkeys(ServerStatistics.__dataclass_fields__, 0)
    return Snapshot(round(at_s * 1e9), "tcp://x", A, True, 0, failures, {**names, **counters}, [], data)


def outcome(version=A, *, fault=False, steps=10, misses=1, total: float | None = 2.0, name="e"):
    return Outcome(version, "", name, steps, total, misses, fault, "safety" if fault else "truncated")


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


class FixedFleet(Fleet):
    def __init__(self, *views):
        super().__init__({})
        self.fixed = views

    def views(self):
        return [{**view.to_dict(), "age_s": 0.0 if view.at_s else None} for view in self.fixed]


@pytest.fixture
def registry(tmp_path):
    made = PolicyRegistry(tmp_path / "registry")
    made.publish(write_linear_policy(tmp_path / "a.onnx", SPEC))
    return made


def monitor(registry, *views, clock=None):
    view = RegistryView(registry.directory)
    view.refresh()
    return Monitor(view, FixedFleet(*views), clock or Clock())


def test_telemetry_copies_the_servers_state_and_begins_anew():
    sent = []
    telemetry = Telemetry(sent.append)
    telemetry.latencies.extend([5, 2**40])
    sessions = [Session("c", last_seen_ns=7, episode_id="e", step_index=3)] * 100
    common = {"endpoint": "tcp://x", "policy_version": A, "stochastic": False, "swaps": 1, "failures": 2}
    for now_ns in (10_000_000_007, 11_000_000_007):
        telemetry.send(now_ns, statistics=ServerStatistics(actions=4), sessions=sessions, **common)
    first, second = map(decode, sent)
    assert first.counters["actions"] == 4
    assert (first.endpoint, first.swaps, first.failures) == ("tcp://x", 1, 2)
    assert len(first.sessions) == 64, "bounded"
    assert (first.sessions[0].episode_id, first.sessions[0].step_index, first.sessions[0].idle_s) == ("e", 3, 10.0)
    assert array("q", first.latencies).tolist() == [5, 2**40]
    assert second.latencies == b""
    assert telemetry.due_ns == 11_000_000_007 + PERIOD_NS


def test_series_has_rates_and_percentiles_and_gaps(registry):
    clock = Clock()
    page = monitor(registry, clock=clock)
    page.take(snapshot(0.0, [9.0]))  # nothing to compare with yet
    page.take(snapshot(0.5, range(1, 102)))
    clock.now_s += 0.5
    page.take(snapshot(1.0))
    assert page.state()["series"] == [[0.5, 202.0, 51.0, 100.0, 101.0], [0.0, 0.0, None, None, None]]


def test_state_is_json_whatever_robots_report(registry):
    log = OutcomeLog(registry.directory)
    log.append(outcome(total=None))
    page = monitor(registry, RobotView("<b>", "tcp://x", error="no answer"))
    page.take(snapshot())
    text = json.dumps(page.state(), allow_nan=False)
    assert json.loads(text)["robots"][0]["age_s"] is None


def test_problems_name_robots_the_server_and_the_audit(registry):
    clock = Clock()
    views = [
        RobotView("fine", "x", "RUN", at_s=1.0),
        RobotView("tripped", "x", "FAULT", True, "smoke", at_s=1.0),
        RobotView("fault", "x", "FAULT", at_s=1.0),
        RobotView("lost", "x", error="no answer"),
    ]
    page = monitor(registry, *views, clock=clock)
    page.take(snapshot(failures=1, internal_errors=2))
    text = "\n".join(page.state()["problems"])
    for part in (
        "tripped: e-stop in force (smoke)",
        "fault: in FAULT",
        "lost: no answer",
        "1 policy version",
        "2 unex",
    ):
        assert part in text
    assert "fine" not in text
    assert "tells nothing" not in text
    clock.now_s += SILENT_S + 0.1
    assert "the policy server tells nothing" in "\n".join(page.state()["problems"])
    path = registry.directory / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b"publish", b"Publish") + b'{"prev": "0", "event": "x"}\n')
    page = monitor(registry)
    page.take(snapshot())
    assert "the audit was changed" in "\n".join(page.state()["problems"])


def test_policies_show_shares_and_outcomes_of_a_trial(registry, tmp_path):
    old = registry.current_version()
    new = registry.publish(write_linear_policy(tmp_path / "b.onnx", SPEC, bias=0.5))
    candidate = registry.start_trial(write_linear_policy(tmp_path / "c.onnx", SPEC, bias=0.2), 0.25)
    log = OutcomeLog(registry.directory)
    for item in (outcome(new), outcome(new, fault=True), outcome(candidate)):
        log.append(item)
    view = RegistryView(registry.directory)
    view.refresh()
    rows = view.policies["versions"]
    assert [(row["version"], row["role"], row["share"], row["episodes"]) for row in rows] == [
        (candidate, "on trial", 0.25, 1),
        (new, "in force", 0.75, 2),
        (old, "before", 0.0, 0),
    ]
    assert (rows[1]["fault_rate"], rows[1]["miss_rate"], rows[2]["mean_return"]) == (0.5, 0.1, None)
    assert (view.policies["current"], view.policies["previous"]) == (new, old)
    assert [item["fault"] for item in view.episodes] == [False, True, False]
    assert [item["reason"] for item in view.faults] == ["safety"]
    assert [row["event"] for row in view.audit] == ["trial", "publish", "publish"]
    registry.rollback(by="anna", reason="limps")
    view.refresh()
    assert [row["role"] for row in view.policies["versions"]] == ["in force"]
    assert (view.policies["current"], view.policies["previous"]) == (old, None)
    assert (view.audit[0]["event"], view.audit[0]["by"]) == ("rollback", "anna")
    assert "limps" in view.audit[0]["detail"]


def test_a_registry_that_is_gone_is_told(tmp_path):
    view = RegistryView(tmp_path / "nothing")
    view.refresh()
    assert "not a policy registry" in view.policies["error"]


def test_episodes_follow_a_file_that_grows_is_cut_off_and_is_replaced(tmp_path):
    log, feed = OutcomeLog(tmp_path), EpisodeFeed(tmp_path)
    assert not feed.follow()
    log.append(outcome(name="one"))
    assert feed.follow()
    assert not feed.follow()
    with log.path.open("a") as stream:
        stream.write('{"policy_version": "a", "ep')  # a server that dies, or is writing right now
    assert not feed.follow()
    log.append(outcome(name="two", total=None))
    assert feed.follow()
    log.path.rename(tmp_path / "outcomes.1.jsonl")
    log.append(outcome(name="three"))
    assert feed.follow()
    assert [item["episode_id"] for item in feed.recent] == ["one", "two", "three"]
    assert [item["undiscounted_return"] for item in feed.recent] == [2.0, None, 2.0]
    assert all(item["t"] > 0 for item in feed.recent)
    assert feed.statistics(A)["episodes"] == 3
    again = EpisodeFeed(tmp_path)
    again.follow()
    assert [item["episode_id"] for item in again.recent] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"port": 70000}, "0 to 65535"),
        ({"robots": {"arm": "nonsense"}}, r"dashboard\.robots\.arm: endpoint 'nonsense'"),
        ({"robots": {"arm": "tcp://10.0.0.7:5599"}}, r"dashboard\.robots\.arm: .*needs CURVE keys"),
        ({"robot_keys": {"arm": "arm.key"}, "operator_key": "o"}, r"dashboard\.robots does not"),
        ({"robots": {"arm": "tcp://10.0.0.7:1"}, "robot_keys": {"arm": "arm.key"}}, "needs dashboard.operator_key"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        DashboardConfig(**settings)


def test_keys_reach_the_robots_they_are_for():
    config = DashboardConfig(
        robots={"arm": "tcp://10.0.0.7:1", "leg": "ipc:///tmp/leg"}, robot_keys={"arm": "a.key"}, operator_key="o"
    )
    security = config.security("arm")
    assert security is not None
    assert (security.secret_key, security.server_key) == ("o", "a.key")
    assert config.security("leg") is None
