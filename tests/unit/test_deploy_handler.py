"""The server's rules, without a socket and on a clock that the test moves."""

import json
import logging
import math
import threading
import time

import numpy as np
import pytest

from deploy import protocol
from deploy.access import Access, Peer
from deploy.guard import GuardConfig, PolicyGuard
from deploy.handler import RequestHandler
from deploy.onnx_policy import OnnxPolicy, PolicyError, gaussian_log_prob
from deploy.operations import COMMANDS, Operations
from deploy.policy_store import PolicyStore
from deploy.protocol import (
    ActReply,
    ActRequest,
    BeginEpisode,
    EndEpisode,
    EpisodeNoted,
    EpisodeReady,
    Error,
    Hello,
    Operate,
    Ping,
    Pong,
    Welcome,
)
from deploy.registry import PolicyRegistry
from deploy.server_config import ServerConfig, ServerStatistics
from deploy.sessions import episode_rng
from mpo_robot.errors import ConfigError
from tests.support.onnx_files import small_spec, write_linear_policy

SPEC = small_spec()
TOKEN = "t" * 64
A, B = Peer(b"client-a"), Peer(b"client-b")


class Bench:
    """A handler on a registry, with shorthand for what clients say."""

    def __init__(self, tmp_path, **settings):
        self.folder = tmp_path
        self.registry = PolicyRegistry(tmp_path / "registry")
        self.version = self.publish(0.0)
        self.now_ns = 0
        self.statistics = ServerStatistics()
        self.store = PolicyStore(self.registry)
        config = ServerConfig(**settings)
        self.guard = PolicyGuard(self.registry, config.guard)
        self.handler = RequestHandler(
            self.store,
            config,
            self.statistics,
            lambda: self.now_ns,
            Operations(self.registry, self.guard),
            Access(None, TOKEN),
        )
        self.count = 0

    def publish(self, bias, **kwargs):
        return self.registry.publish(write_linear_policy(self.folder / f"{bias}.onnx", SPEC, bias=bias, **kwargs))

    def header(self, spec=SPEC):
        self.count += 1
        return protocol.header(spec.spec_hash, self.count, -5)

    def ask(self, identity, message):
        """Reply to a message, waiting for a policy that is being loaded."""
        reply = self.handler.handle(identity, message, received_ns=self.now_ns)
        give_up = time.monotonic() + 20
        while reply is None:
            reply = dict(self.handler.finish()).get(identity)
            assert time.monotonic() < give_up
        assert reply.request_id == message.request_id
        return reply

    def hello(self, identity, client_id=None, spec=SPEC):
        text = protocol.encode_spec(spec)
        return self.ask(
            identity, Hello(**self.header(spec), client_id=client_id or identity.route.decode(), spec_json=text)
        )

    def begin(self, identity, episode_id="e", step_index=0, resume=None):
        message = BeginEpisode(
            **self.header(), episode_id=episode_id, step_index=step_index, resume_policy_version=resume
        )
        return self.ask(identity, message)

    def act(self, identity, observation=(0.0, 0.0, 0.0), step_index=0, spec=SPEC):
        data = protocol.encode_array(observation)
        return self.ask(identity, ActRequest(**self.header(spec), step_index=step_index, observation=data))


@pytest.fixture
def make(tmp_path):
    benches = []

    def build(**settings):
        benches.append(Bench(tmp_path, **settings))
        return benches[-1]

    yield build
    for bench in benches:
        bench.store.close()


def vector(data):
    return protocol.decode_array(data, SPEC.action_size, "x")


def assert_error(reply, code, text=""):
    assert isinstance(reply, Error)
    assert reply.code == code
    assert text in reply.text


def test_handshake_episode_action(make):
    bench = make(seed=1)
    welcome = bench.hello(A)
    assert isinstance(welcome, Welcome)
    assert protocol.decode_spec(welcome.spec_json) == SPEC
    assert welcome.policy_version == bench.version
    ready = bench.begin(A, "walk-1")
    assert isinstance(ready, EpisodeReady)
    assert (ready.episode_id, ready.policy_version, ready.stochastic) == ("walk-1", bench.version, True)
    reply = bench.act(A, step_index=4)
    assert isinstance(reply, ActReply)
    assert (reply.step_index, reply.policy_version) == (4, bench.version)
    policy = bench.store.current.act(np.zeros(3, np.float32), False)
    assert reply.log_prob == gaussian_log_prob(vector(reply.action), policy.mean, policy.stddev)


def test_the_time_in_the_server_is_on_its_clock(make):
    bench = make()
    bench.hello(A)
    bench.begin(A)
    data = protocol.encode_array((0.0, 0.0, 0.0))
    request = ActRequest(**bench.header(), step_index=0, observation=data)
    bench.now_ns = 1_000
    reply = bench.handler.handle(A, request, received_ns=400)
    assert (reply.received_ns, reply.sent_ns, reply.inference_ns) == (400, 1_000, 0)


def test_deterministic_server_sends_the_mean_and_no_density(make):
    bench = make(stochastic=False)
    assert not bench.hello(A).stochastic
    assert not bench.begin(A).stochastic
    reply = bench.act(A)
    np.testing.assert_array_equal(vector(reply.action), [0.0, 0.0])
    assert reply.log_prob is None


def test_acting_without_handshake_or_episode_asks_for_one(make):
    bench = make()
    assert_error(bench.act(A), "unknown_session", "Hello")
    assert_error(bench.begin(A), "unknown_session", "Hello")
    bench.hello(A)
    assert_error(bench.act(A), "unknown_session", "BeginEpisode")
    assert bench.statistics.actions == 0


def test_a_new_hello_ends_the_episode(make):
    bench = make()
    bench.hello(A)
    bench.begin(A)
    bench.hello(A)
    assert_error(bench.act(A), "unknown_session")


def test_spec_mismatch_names_the_first_differing_field(make):
    bench = make()
    reply = bench.hello(A, spec=small_spec(control_dt=0.05))
    assert_error(reply, "spec_mismatch", "control_dt")
    assert "0.02" in reply.text
    assert "0.05" in reply.text
    assert_error(bench.act(A), "unknown_session")


def test_a_hash_that_is_not_that_of_the_spec_is_refused(make):
    bench = make()
    header = protocol.header("0" * 64, 1, 0)
    reply = bench.ask(A, Hello(**header, client_id="a", spec_json=protocol.encode_spec(SPEC)))
    assert_error(reply, "spec_mismatch")
    bench.hello(A)
    bench.begin(A)
    assert_error(bench.act(A, spec=small_spec(4)), "spec_mismatch")


def test_what_belongs_to_a_session_is_checked_for_its_spec_each_time(make):
    bench = make()
    bench.hello(A)
    other = protocol.header("0" * 64, 1, 0)
    outcome = {"steps": 1, "undiscounted_return": 0.0, "misses": 0, "fault": False, "reason": "x"}
    assert_error(bench.ask(A, BeginEpisode(**other, episode_id="e")), "spec_mismatch")
    bench.begin(A, "e")
    assert_error(bench.ask(A, EndEpisode(**other, episode_id="e", **outcome)), "spec_mismatch")
    assert bench.ask(A, Ping(**other)).session is True  # says nothing that depends on it


def test_a_spec_that_cannot_be_read_is_malformed(make):
    assert_error(make().ask(A, Hello(**protocol.header("0" * 64, 1, 0), client_id="a", spec_json="{}")), "malformed")


@pytest.mark.parametrize("observation", [[0.0, math.nan, 0.0], [0.0, math.inf, 0.0], [0.0, 0.0], [0.0] * 4, []])
def test_bad_observations_are_refused_and_the_episode_goes_on(make, observation):
    bench = make()
    bench.hello(A)
    bench.begin(A)
    assert_error(bench.act(A, observation), "bad_observation")
    assert isinstance(bench.act(A), ActReply)


def test_replies_are_not_for_a_server(make):
    assert_error(make().ask(A, Pong(**protocol.header("0" * 64, 1, 0), session=True)), "malformed", "Pong")


def test_ping_tells_whether_the_session_is_known(make):
    bench = make()
    ping = Ping(**bench.header())
    assert bench.ask(A, ping).session is False
    bench.hello(A)
    assert bench.ask(A, ping).session is True


def test_two_clients_keep_their_versions_during_a_swap(make):
    bench = make(stochastic=False)
    bench.hello(A)
    bench.hello(B)
    assert bench.begin(A).policy_version == bench.version
    new = bench.publish(0.5)
    assert bench.begin(B).policy_version == new
    for _ in range(3):
        a, b = bench.act(A), bench.act(B)
        assert (a.policy_version, b.policy_version) == (bench.version, new)
        np.testing.assert_allclose([vector(a.action)[0], vector(b.action)[0]], [0.0, 0.5], atol=1e-6)
    assert bench.begin(A).policy_version == new
    assert vector(bench.act(A).action)[0] == pytest.approx(0.5, abs=1e-6)
    assert bench.registry.rollback() == bench.version
    assert bench.begin(B).policy_version == bench.version
    assert bench.act(A).policy_version == new


@pytest.mark.parametrize("damage", ["file", "pointer", "spec"])
def test_a_version_that_cannot_be_loaded_leaves_the_old_one_in_force(make, damage, caplog):
    bench = make()
    bench.hello(A)
    new = bench.publish(0.5)
    if damage == "file":
        bench.registry.path(new).write_bytes(b"damaged")
    elif damage == "pointer":
        (bench.registry.directory / "current").write_text("{}")
    else:  # another robot's policy, put there by something that is not our registry
        other = write_linear_policy(bench.folder / "other.onnx", small_spec(4))
        version = OnnxPolicy(other).policy_version
        bench.registry.path(version).write_bytes(other.read_bytes())
        pointer = bench.registry.directory / "current"
        pointer.write_text(pointer.read_text().replace(new, version))
    with caplog.at_level(logging.ERROR):
        assert bench.begin(A).policy_version == bench.version
        assert bench.begin(A).policy_version == bench.version
    assert (bench.store.failures, bench.store.swaps) == (1, 0)
    assert f"kept policy {bench.version[:12]}" in caplog.text
    if damage == "file":
        fixed = bench.publish(0.7)
        assert bench.begin(A).policy_version == fixed


def test_an_episode_can_be_resumed_with_its_own_version(make):
    bench = make()
    new = bench.publish(0.5)
    bench.hello(A)
    assert bench.begin(A, step_index=17, resume=bench.version).policy_version == bench.version
    assert bench.begin(A, step_index=17, resume=new).policy_version == new
    assert_error(bench.begin(A, resume="0" * 64), "unknown_version", "not in the registry")
    assert_error(bench.act(A), "unknown_session")


def test_resuming_a_version_that_was_damaged_is_refused(make):
    bench = make()
    new = bench.publish(0.5)
    bench.registry.path(new).write_bytes(b"damaged")
    bench.hello(A)
    assert_error(bench.begin(A, resume=new), "unknown_version")


def test_a_begin_that_waits_for_a_load_is_replaced_by_a_later_one(make, monkeypatch):
    bench = make()
    bench.hello(A)
    gate, load = threading.Event(), OnnxPolicy.__init__

    def slow(self, path):
        assert gate.wait(20)
        load(self, path)

    bench.publish(0.5)
    monkeypatch.setattr(OnnxPolicy, "__init__", slow)
    assert bench.handler.handle(A, BeginEpisode(**bench.header(), episode_id="first"), 0) is None
    assert bench.handler.waiting
    assert bench.begin(A, "second", resume=bench.version).policy_version == bench.version
    gate.set()
    bench.store.newest().result(timeout=20)
    assert list(bench.handler.finish()) == []
    assert bench.act(A).policy_version == bench.version


def test_a_pinned_version_can_be_resumed_from_memory(make):
    bench = make()
    bench.hello(A)
    bench.begin(A)
    bench.publish(0.5)
    bench.hello(B)
    bench.begin(B)
    bench.registry.path(bench.version).unlink()
    assert bench.begin(B, resume=bench.version).policy_version == bench.version


def test_sessions_are_bounded_and_expire_when_idle(make):
    bench = make(max_sessions=2, session_idle_s=10.0)
    for number in range(2):
        assert isinstance(bench.hello(Peer(b"c%d" % number)), Welcome)
    assert_error(bench.hello(A), "busy")
    bench.now_ns = 9_000_000_000
    bench.ask(Peer(b"c1"), Ping(**bench.header()))
    bench.now_ns = 11_000_000_000
    assert isinstance(bench.hello(A), Welcome)
    assert bench.ask(Peer(b"c0"), Ping(**bench.header())).session is False
    assert bench.ask(Peer(b"c1"), Ping(**bench.header())).session is True
    assert (len(bench.handler.sessions), bench.handler.sessions.expired) == (2, 1)


def test_a_client_that_comes_again_on_a_new_connection_replaces_its_session(make):
    bench = make(max_sessions=1)
    for identity in (A, B, A):
        assert isinstance(bench.hello(identity, client_id="robot"), Welcome)
    assert bench.ask(B, Ping(**bench.header())).session is False


def test_an_unexpected_exception_answers_an_error_without_details_and_goes_on(make, monkeypatch, caplog):
    bench = make()
    bench.hello(A)
    bench.begin(A)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(OnnxPolicy, "act", lambda *_: 1 / 0)
        for _ in range(5):
            reply = bench.act(A)
            assert_error(reply, "internal")
            assert "division" not in reply.text
    assert bench.statistics.internal_errors == 5
    assert sum(record.exc_info is not None for record in caplog.records) == 3  # the 1st, 2nd and 4th
    assert isinstance(bench.act(A), ActReply)


def test_a_policy_that_fails_is_an_error_not_an_action(make, monkeypatch):
    bench = make()
    bench.hello(A)
    bench.begin(A)

    def fail(*_):
        raise PolicyError("policy gave NaN")

    monkeypatch.setattr(OnnxPolicy, "act", fail)
    assert_error(bench.act(A), "policy_failed", "NaN")


def actions(bench, identity, count=5):
    return [bench.act(identity).action for _ in range(count)]


def test_noise_is_fixed_by_seed_and_episode_whatever_others_do(make):
    bench = make(seed=7)
    bench.hello(A)
    bench.hello(B)
    bench.begin(A, "one")
    alone = actions(bench, A)
    bench.begin(B, "two")
    bench.begin(A, "one")
    mixed = []
    for _ in range(5):
        bench.act(B)
        mixed.append(bench.act(A).action)
    assert mixed == alone
    bench.begin(A, "three")
    assert actions(bench, A) != alone


def test_noise_differs_without_a_seed_by_seed_and_after_a_resume():
    draws = [
        episode_rng(seed, name, step).standard_normal()
        for seed, name, step in [(None, "e", 0), (None, "e", 0), (1, "e", 0), (2, "e", 0), (1, "f", 0), (1, "e", 5)]
    ]
    assert len(set(draws)) == len(draws)
    assert episode_rng(1, "e", 0).standard_normal() == draws[2]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_sessions": 0},
        {"realtime_priority": 100},
        {"session_idle_s": 0.0},
        {"registry_poll_s": math.nan},
        {"curve_allow": "keys"},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        ServerConfig(**settings)


def test_a_policy_without_a_density_is_served_deterministically_only(make):
    bench = make()
    assert isinstance(bench.hello(A), Welcome)
    version = bench.publish(0.5, metadata={"distribution": "none"})  # while the server samples
    assert_error(bench.begin(A), protocol.ErrorCode.POLICY_FAILED, "no density")
    assert_error(bench.act(A), protocol.ErrorCode.UNKNOWN_SESSION)
    with pytest.raises(PolicyError, match="--deterministic"):
        RequestHandler(bench.store, ServerConfig(stochastic=True), ServerStatistics(), lambda: 0)
    bench.handler = RequestHandler(bench.store, ServerConfig(stochastic=False), ServerStatistics(), lambda: 0)
    bench.hello(A)
    assert bench.begin(A).policy_version == version
    assert bench.act(A).log_prob is None


def end(bench, peer, episode_id="e", **facts):
    values = {"steps": 10, "undiscounted_return": 1.0, "misses": 0, "fault": False, "reason": "truncated", **facts}
    return bench.ask(peer, EndEpisode(**bench.header(), episode_id=episode_id, **values))


def operate(bench, peer, command, token="", expect=""):
    header = protocol.header("0" * 64, bench.count + 1, 0)
    bench.count += 1
    return bench.ask(peer, Operate(**header, command=command, token=token, expect=expect))


def test_the_end_of_an_episode_is_noted_once_and_for_the_pinned_version(make):
    bench = make()
    assert_error(end(bench, A), "unknown_session", "Hello")
    assert bench.hello(A).takes_outcomes
    assert_error(end(bench, A), "unknown_session", "no such episode")
    version = bench.begin(A, "one").policy_version
    assert_error(end(bench, A, "another"), "unknown_session", "no such episode")
    bench.publish(0.1)
    assert isinstance(end(bench, A, "one", misses=99, undiscounted_return=math.inf, reason="x"), EpisodeNoted)
    assert_error(end(bench, A, "one"), "unknown_session", "no such episode")
    [outcome] = bench.guard.outcomes.of(version)
    assert (outcome.episode_id, outcome.steps, outcome.misses, outcome.reason) == ("one", 10, 10, "x")
    assert outcome.undiscounted_return is None
    assert bench.statistics.outcomes == 1


def test_the_episode_after_the_one_that_made_the_guard_act_has_the_old_version(make):
    bench = make(guard=GuardConfig(episodes=3))
    bench.hello(A)
    bad = bench.publish(0.1)
    for number in range(2):
        assert bench.begin(A, f"{number}").policy_version == (bad if number == 0 else bench.version)
        end(bench, A, f"{number}", fault=True)
    assert bench.registry.current_version() == bench.version
    # What was resumed counts for its version, not for the guard.
    bench.publish(0.2)
    new = bench.begin(A, "x").policy_version
    bench.hello(A)
    assert bench.begin(A, "x", resume=new).policy_version == new
    end(bench, A, "x", fault=True)
    assert bench.registry.current_version() == new
    assert [item.under for item in bench.guard.outcomes.of(new)] == [""]


def test_a_trial_gets_the_episodes_that_its_names_say(make):
    bench = make()
    bench.hello(A)
    candidate = bench.registry.start_trial(write_linear_policy(bench.folder / "b.onnx", SPEC, bias=0.5), 0.3)
    trial = bench.registry.pointer().trial
    for number in range(20):
        expected = candidate if trial.takes(f"episode-{number}") else bench.version
        assert bench.begin(A, f"episode-{number}").policy_version == expected
    assert {trial.takes(f"episode-{number}") for number in range(20)} == {True, False}
    bench.registry.end_trial(promote=False)
    assert {bench.begin(A, f"episode-{number}").policy_version for number in range(20)} == {bench.version}


def test_a_candidate_that_cannot_be_loaded_leaves_the_one_in_force(make):
    bench = make()
    bench.hello(A)
    candidate = bench.registry.start_trial(write_linear_policy(bench.folder / "b.onnx", SPEC, bias=0.5), 0.9)
    bench.registry.path(candidate).write_bytes(b"damaged")
    assert {bench.begin(A, f"{number}").policy_version for number in range(5)} == {bench.version}
    assert bench.store.failures == 1


def test_operations_take_the_token_and_robots_have_none(make):
    bench = make()
    bench.hello(A)
    second = bench.publish(0.1)
    for token in ("", "wrong"):
        for command in COMMANDS:
            assert_error(operate(bench, A, command, token), "forbidden", "operator")
    assert bench.registry.current_version() == second
    assert bench.statistics.forbidden == 2 * len(COMMANDS)
    assert json.loads(operate(bench, B, "status", TOKEN).state_json)["current"] == second
    assert json.loads(operate(bench, B, "rollback", TOKEN).state_json)["current"] == bench.version
    assert bench.begin(A).policy_version == bench.version
    assert_error(operate(bench, B, "rollback", TOKEN), "refused", "no version before")
    assert_error(operate(bench, B, "stop", TOKEN), "refused", "unknown command")
    assert "token" in bench.registry.audit.entries()[-1]["by"]
    candidate = bench.registry.start_trial(second, 0.5)
    assert json.loads(operate(bench, B, "promote", TOKEN).state_json)["current"] == candidate
    assert_error(operate(bench, B, "end-trial", TOKEN), "refused", "no trial")


def test_a_change_that_is_asked_for_again_is_made_once(make):
    bench = make()
    bench.hello(A)
    first, second, third = bench.version, bench.publish(0.1), bench.publish(0.2)

    def in_force(reply):
        return json.loads(reply.state_json)["current"]

    state = json.loads(operate(bench, B, "status", TOKEN).state_json)["state"]
    for _ in range(3):  # no answer came, or somebody has recorded the message
        assert in_force(operate(bench, B, "rollback", TOKEN, expect=state)) == second
    assert [entry["event"] for entry in bench.registry.audit.entries()].count("rollback") == 1
    assert_error(operate(bench, B, "promote", TOKEN, expect=state), "refused", "no trial")
    bench.registry.publish(bench.registry.path(third))  # what was in force then is so again
    for _ in range(2):
        assert_error(operate(bench, B, "rollback", TOKEN, expect=state), "refused", "not in force any more")
    assert in_force(operate(bench, B, "rollback", TOKEN, expect=third)) == second  # a version is an expectation too
    candidate = bench.registry.start_trial(third, 0.5)
    for command, left in (("end-trial", second), ("promote", third)):
        state = json.loads(operate(bench, B, "status", TOKEN).state_json)["state"]
        assert_error(operate(bench, B, command, TOKEN, expect=first), "refused", "no trial of")
        for _ in range(2):
            assert in_force(operate(bench, B, command, TOKEN, expect=state)) == left
        if command == "end-trial":
            bench.registry.start_trial(candidate, 0.5)
            assert_error(operate(bench, B, command, TOKEN, expect=state), "refused", "no trial of")


def test_a_repetition_by_another_operator_is_none(make):
    bench = make()
    bench.publish(0.1)
    operations = Operations(bench.registry, bench.guard)
    state = operations.operate("status", "anna")["state"]
    for _ in range(2):
        assert operations.operate("rollback", "anna", expect=state)["current"] == bench.version
    bench.publish(0.2)
    with pytest.raises(ConfigError, match="not in force any more"):
        operations.operate("rollback", "anna", expect=state)
    state = operations.operate("status", "anna")["state"]
    operations.operate("rollback", "anna", expect=state)
    for command, by in (("rollback", "otto"), ("promote", "anna")):
        with pytest.raises(ConfigError):
            operations.operate(command, by, expect=state)


def test_without_an_expectation_each_message_acts(make):
    """As from clients before there was one."""
    bench = make()
    bench.hello(A)
    bench.publish(0.1)
    bench.publish(0.2)
    for _ in range(2):
        reply = operate(bench, B, "rollback", TOKEN)
    assert json.loads(reply.state_json)["current"] == bench.version


def test_many_resumes_of_one_version_load_it_once(make, monkeypatch):
    bench = make()
    old = bench.version
    bench.publish(0.1)
    bench.hello(A)
    bench.begin(A)
    gate, loads = threading.Event(), []
    load = bench.registry.load

    def slow(version):
        loads.append(version)
        assert gate.wait(20)
        return load(version)

    monkeypatch.setattr(bench.registry, "load", slow)
    bench.store._loaded.pop(old, None)
    requests = [BeginEpisode(**bench.header(), episode_id="e", resume_policy_version=old) for _ in range(50)]
    assert [bench.handler.handle(A, request, 0) for request in requests] == [None] * 50
    gate.set()
    assert bench.begin(A, resume=old).policy_version == old
    assert loads == [old]


def test_one_key_cannot_take_all_sessions(make):
    bench = make(max_sessions=10, sessions_per_key=3)
    greedy = [Peer(b"g%d" % number, "greedy") for number in range(6)]
    assert [isinstance(bench.hello(peer), Welcome) for peer in greedy] == [True] * 3 + [False] * 3
    assert isinstance(bench.hello(Peer(b"h", "honest")), Welcome)
    # Nor another's session, though it knows how that client calls itself and how its connection is called.
    assert isinstance(bench.begin(Peer(b"h", "honest")), EpisodeReady)
    assert_error(bench.hello(Peer(b"h", "greedy"), client_id="h"), "busy")
    assert_error(bench.act(Peer(b"h", "greedy")), "unknown_session")
    assert isinstance(bench.act(Peer(b"h", "honest")), ActReply)
    bench.handler.sessions.keep(lambda peer: peer.key != "honest")
    assert_error(bench.act(Peer(b"h", "honest")), "unknown_session")


def test_a_robot_that_is_restarted_often_is_not_locked_out_by_its_own_dead_sessions(make):
    bench = make(max_sessions=10, sessions_per_key=3)
    peers = [Peer(b"r%d" % number, "robot") for number in range(5)]
    for number, peer in enumerate(peers[:3]):
        bench.now_ns = 100_000_000 * number
        assert isinstance(bench.hello(peer), Welcome)
    bench.now_ns = 2_000_000_000
    assert_error(bench.hello(peers[3]), "busy")
    bench.now_ns += 1  # the first has been silent for longer than a running episode ever is
    assert isinstance(bench.hello(peers[3]), Welcome)
    assert_error(bench.act(peers[0]), "unknown_session")
    assert bench.handler.sessions.get(peers[1], bench.now_ns) is not None
    assert_error(bench.hello(peers[4]), "busy")
    assert isinstance(bench.hello(Peer(b"o", "other")), Welcome)
