"""Keys, roles and rates on a running server, over real sockets."""

import json
import time

import numpy as np
import pytest
import zmq

from deploy import protocol
from deploy.access import Peer
from deploy.allow_list import AllowList, Role
from deploy.client import EpisodeOutcome, PolicyClient, ServerTimeoutError
from deploy.guard import GuardConfig
from deploy.key_files import create_keys, load_public, load_secret
from deploy.link import ClientLink
from deploy.onnx_policy import OnnxPolicy
from deploy.operator_client import OperatorError, ask_server
from deploy.security import ClientSecurity
from mpo_robot.cli.main import main
from mpo_robot.errors import ConfigError
from tests.support.onnx_files import small_spec, write_linear_policy
from tests.support.serving import ServerThread

SPEC = small_spec()
ZERO = np.zeros(3, np.float32)
PATIENCE_S = 20.0


class Lab:
    """A server with keys, and everybody's."""

    def __init__(self, folder, **settings):
        self.pairs = {name: create_keys(folder / "keys", name) for name in ("server", "one", "two", "anna")}
        self.allowed = AllowList(folder / "allowed")
        self.allowed.allow(self.pairs["one"][0], Role.ROBOT)
        self.allowed.allow(self.pairs["anna"][0], Role.OPERATOR)
        policy = write_linear_policy(folder / "p.onnx", SPEC)
        settings = {"registry_poll_s": 0.05, "endpoint": "tcp://*:*", **settings}
        self.serving = ServerThread(
            policy, curve_secret_key=self.pairs["server"][1], curve_allow=self.allowed.directory, **settings
        )
        self.endpoint = self.serving.endpoint.replace("0.0.0.0", "127.0.0.1")

    def security(self, name):
        return ClientSecurity(self.pairs[name][1], self.pairs["server"][0])

    def client(self, name):
        return PolicyClient(self.endpoint, SPEC, security=self.security(name))


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    with lab.serving:
        yield lab


def act(client, step=0, wait_s=PATIENCE_S):
    client.reconnect_if_needed()
    return client.act(ZERO, step, time.monotonic_ns() + int(wait_s * 1e9))


def wait_until(condition):
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_running_server_takes_up_and_lets_go_of_keys(lab):
    with lab.client("one") as one, lab.client("two") as two:
        one.begin_episode("a", PATIENCE_S)
        assert act(one) is not None
        with pytest.raises(ServerTimeoutError, match="are the keys right"):
            two.connect(0.4)
        lab.allowed.allow(lab.pairs["two"][0], Role.ROBOT)
        two.begin_episode("b", PATIENCE_S)
        lab.allowed.revoke("one")
        wait_until(lambda: act(one, wait_s=0.02) is None)
        handler = lab.serving.server.handler
        wait_until(lambda: {session.episode_id for session in handler.sessions} == {"b"})
        assert act(one, wait_s=0.1) is None  # its connection is still there, and worth nothing
        assert act(two) is not None
        assert lab.serving.server.statistics.forbidden > 0
    with lab.client("one") as again, pytest.raises(ServerTimeoutError):
        again.connect(0.4)


def test_only_operators_change_what_is_in_force(lab, tmp_path, capsys):
    old = lab.serving.registry.current_version()
    new = lab.serving.registry.publish(write_linear_policy(tmp_path / "new.onnx", SPEC, bias=0.5))
    for token in ("", "t" * 64):
        with pytest.raises(OperatorError, match="forbidden"):
            ask_server(lab.endpoint, "rollback", security=lab.security("one"), token=token)
    with pytest.raises(OperatorError, match="no policy server"):
        ask_server(lab.endpoint, "rollback", security=lab.security("two"), timeout_s=0.4)
    with pytest.raises(OperatorError, match="wants keys: --secret-key"):
        ask_server(lab.endpoint, "rollback", token="t" * 64, timeout_s=0.4)
    assert lab.serving.registry.current_version() == new
    keys = ["--secret-key", str(lab.pairs["anna"][1]), "--server-key", str(lab.pairs["server"][0])]
    assert main(["policies", "remote", "rollback", "--endpoint", lab.endpoint, "--reason", "limps", *keys]) == 0
    assert old in capsys.readouterr().out
    assert lab.serving.registry.current_version() == old
    entry = lab.serving.registry.audit.entries()[-1]
    assert (entry["by"], entry["detail"]) == ("operator anna", "limps")
    assert main(["policies", "remote", "rollback", "--endpoint", lab.endpoint, *keys]) == 2
    assert "no version before" in capsys.readouterr().err
    lab.allowed.revoke("anna")
    with pytest.raises(OperatorError):
        ask_server(lab.endpoint, "status", security=lab.security("anna"), timeout_s=0.4)


def test_on_loopback_the_token_of_the_servers_user_is_the_operators_key(tmp_path, capsys):
    with ServerThread(write_linear_policy(tmp_path / "p.onnx", SPEC)) as serving:
        token = serving.registry.directory / "operator.token"
        command = ["policies", "remote", "status", "--endpoint", serving.endpoint]
        assert main(command) == 2
        assert "forbidden" in capsys.readouterr().err
        assert main([*command, "--token", str(token)]) == 0
        assert serving.registry.current_version() in capsys.readouterr().out


def test_a_lost_answer_is_asked_for_again_and_the_change_made_once(tmp_path, monkeypatch, capsys):
    class DeafLink(ClientLink):
        """Does not hear the first answer to a change."""

        lost = 0

        def receive(self, deadline_ns=0):
            frame = super().receive(deadline_ns)
            is_change = frame is not None and len(self.registry.previous_versions()) < 2
            if not is_change or DeafLink.lost >= self.to_lose:
                return frame
            DeafLink.lost += 1
            return self.receive(deadline_ns)  # on a busy machine several answers wait

    with ServerThread(write_linear_policy(tmp_path / "p.onnx", SPEC)) as serving:
        first = serving.registry.current_version()
        versions = [
            serving.registry.publish(write_linear_policy(tmp_path / f"{n}.onnx", SPEC, bias=n / 10)) for n in (1, 2)
        ]
        token = serving.registry.directory / "operator.token"
        command = ["policies", "remote", "rollback", "--endpoint", serving.endpoint, "--token", str(token)]
        monkeypatch.setattr("deploy.operator_client.ClientLink", DeafLink)
        monkeypatch.setattr("deploy.operator_client.RESEND_NS", 20_000_000)
        DeafLink.registry, DeafLink.to_lose = serving.registry, 1
        assert main(command) == 0
        assert DeafLink.lost == 1
        assert serving.registry.current_version() == versions[0]
        serving.registry.publish(tmp_path / "2.onnx")
        DeafLink.lost, DeafLink.to_lose = 0, 1000
        with pytest.raises(OperatorError, match="it is done once at most") as caught:
            ask_server(serving.endpoint, "rollback", token=token.read_text().strip(), timeout_s=0.5)
        assert serving.registry.current_version() == versions[0]
        DeafLink.to_lose = 0
        state = str(caught.value).split("--expect ")[1].split(",")[0]
        for _ in range(2):
            assert main([*command, "--expect", state]) == 0
            assert serving.registry.current_version() == versions[0]
        assert main(command) == 0  # another decision, on what is in force now
        assert serving.registry.current_version() == first
        capsys.readouterr()
        assert main([*command, "--expect", state]) == 2
        assert "refused" in capsys.readouterr().err


def test_the_name_of_anothers_connection_does_not_give_its_session(lab):
    lab.allowed.allow(lab.pairs["two"][0], Role.ROBOT)
    context = zmq.Context()

    def dealer(name):
        socket = context.socket(zmq.DEALER)
        socket.linger, socket.rcvtimeo, socket.routing_id = 0, int(PATIENCE_S * 1000), b"the-robot"
        socket.curve_publickey, socket.curve_secretkey = load_secret(lab.pairs[name][1])
        socket.curve_serverkey = load_public(lab.pairs["server"][0])
        socket.connect(lab.endpoint)
        return socket

    def ask(socket, kind, **fields):
        socket.send(protocol.encode(kind(**protocol.header(SPEC.spec_hash, 1, 0), **fields)))
        return protocol.decode(socket.recv())

    try:
        victim = dealer("one")
        ask(victim, protocol.Hello, client_id="robot", spec_json=protocol.encode_spec(SPEC))
        assert isinstance(ask(victim, protocol.BeginEpisode, episode_id="e"), protocol.EpisodeReady)
        observation = protocol.encode_array(ZERO)
        assert isinstance(ask(victim, protocol.ActRequest, step_index=0, observation=observation), protocol.ActReply)
        victim.close()
        time.sleep(0.1)
        thief = dealer("two")
        reply = ask(thief, protocol.ActRequest, step_index=1, observation=observation)
        assert (type(reply), reply.code) == (protocol.Error, "unknown_session")
        thief.close()
    finally:
        context.destroy(linger=0)


def test_nobody_gets_in_when_nobody_checks_keys(lab):
    lab.serving.server._key_checker.stop()
    with lab.client("one") as client, pytest.raises(ServerTimeoutError):
        client.connect(0.4)
    assert lab.serving.server.statistics.frames == 0


def test_an_over_eager_peer_is_told_and_dropped_while_others_are_served(tmp_path):
    policy = write_linear_policy(tmp_path / "p.onnx", SPEC)
    context = zmq.Context()
    with ServerThread(policy, max_rate_hz=100.0, rate_burst=200) as serving:
        eager = context.socket(zmq.DEALER)
        eager.linger, eager.sndhwm, eager.rcvtimeo = 0, 0, int(PATIENCE_S * 1000)
        eager.connect(serving.endpoint)
        with PolicyClient(serving.endpoint, SPEC) as honest:
            honest.begin_episode("e", PATIENCE_S)
            for _ in range(2000):
                eager.send(b"garbage")
            for step in range(20):
                assert act(honest, step) is not None
            statistics = serving.server.statistics
            wait_until(lambda: statistics.frames >= 2022)
        assert statistics.limited > 1900
        assert statistics.malformed < 30  # each costs as much as 25 action requests
        codes = [protocol.decode(eager.recv()).code for _ in range(statistics.malformed + 1)]
        assert codes.count("too_fast") == 1
        assert set(codes) == {"too_fast", "malformed"}
        eager.close()
    context.term()


def test_more_connections_of_one_key_give_no_more_messages(tmp_path):
    lab = Lab(tmp_path, max_rate_hz=0.001, rate_burst=200)
    with lab.serving, lab.client("one") as first, lab.client("one") as second:
        first.begin_episode("a", PATIENCE_S)
        passed = 0
        while act(first, passed, wait_s=0.2) is not None:
            passed += 1
        assert passed < 200
        with pytest.raises(ServerTimeoutError):
            second.connect(0.4)
        assert ask_server(lab.endpoint, "status", security=lab.security("anna"))["current"]


def test_outcomes_reach_the_registry_and_the_guard_acts(tmp_path):
    policy = write_linear_policy(tmp_path / "p.onnx", SPEC)
    good, bad = EpisodeOutcome(10, 5.0, 0, False, "truncated"), EpisodeOutcome(3, -5.0, 2, True, "safety")
    with (
        ServerThread(policy, guard=GuardConfig(episodes=2)) as serving,
        PolicyClient(serving.endpoint, SPEC) as client,
    ):
        assert not client.end_episode(good, PATIENCE_S)  # none was begun
        old = client.begin_episode("a", PATIENCE_S)
        assert client.end_episode(good, PATIENCE_S)
        assert not client.end_episode(good, PATIENCE_S)
        assert act(client, wait_s=0.05) is None
        new = serving.registry.publish(write_linear_policy(tmp_path / "new.onnx", SPEC, bias=0.5))
        assert client.begin_episode("b", PATIENCE_S) == new
        assert client.end_episode(bad, PATIENCE_S)
        assert client.begin_episode("c", PATIENCE_S) == old
    lines = [json.loads(line) for line in (serving.registry.directory / "outcomes.jsonl").read_text().splitlines()]
    assert [(line["episode_id"], line["policy_version"], line["fault"]) for line in lines] == [
        ("a", old, False),
        ("b", new, True),
    ]
    assert serving.registry.audit.entries()[-1]["by"] == "guard"


def test_a_lost_server_is_not_waited_for_at_the_end_of_an_episode(tmp_path):
    with ServerThread(write_linear_policy(tmp_path / "p.onnx", SPEC)) as serving:
        client = PolicyClient(serving.endpoint, SPEC)
        client.begin_episode("a", PATIENCE_S)
    with client:
        assert not client.end_episode(EpisodeOutcome(1, float("nan"), 0, False, "truncated"), 0.2)


def test_a_server_with_a_list_of_approved_policies_serves_no_other(tmp_path):
    policy, listed = write_linear_policy(tmp_path / "p.onnx", SPEC), tmp_path / "approved"
    listed.write_text("")
    with pytest.raises(ConfigError, match="not approved"):
        ServerThread(policy, approved_policies=listed)
    listed.write_text(f"{OnnxPolicy(policy).policy_version}  p.onnx\n")
    with ServerThread(policy, approved_policies=listed) as serving, PolicyClient(serving.endpoint, SPEC) as client:
        old = client.begin_episode("a", PATIENCE_S)
        serving.registry.publish(write_linear_policy(tmp_path / "new.onnx", SPEC, bias=0.5))
        assert client.begin_episode("b", PATIENCE_S) == old


def raw_dealer(context, lab, name):
    """A socket with somebody's key, for what no client of ours would say."""
    socket = context.socket(zmq.DEALER)
    socket.linger, socket.rcvtimeo = 0, int(PATIENCE_S * 1000)
    socket.curve_publickey, socket.curve_secretkey = load_secret(lab.pairs[name][1])
    socket.curve_serverkey = load_public(lab.pairs["server"][0])
    socket.connect(lab.endpoint)
    return socket


def test_handshakes_look_at_the_list_themselves(tmp_path):
    lab = Lab(tmp_path, registry_poll_s=3600.0)
    with lab.serving, lab.client("one") as one, lab.client("two") as two:
        one.connect(PATIENCE_S)
        lab.allowed.allow(lab.pairs["two"][0], Role.ROBOT)
        two.connect(PATIENCE_S)
        lab.allowed.revoke("one")
        with lab.client("one") as again, pytest.raises(ServerTimeoutError):
            again.connect(0.4)


def test_frames_of_a_revoked_key_are_not_decoded(lab):
    context = zmq.Context()
    with raw_dealer(context, lab, "one") as socket:
        socket.send(b"garbage")
        assert protocol.decode(socket.recv()).code == "malformed"
        lab.allowed.revoke("one")
        handler = lab.serving.server.handler
        wait_until(lambda: not handler._access.may_talk(Peer(b"", load_public(lab.pairs["one"][0]).decode())))
        for frame in (b"garbage", protocol.encode(protocol.Ping(**protocol.header(SPEC.spec_hash, 1, 0)))):
            socket.send(frame)
            assert protocol.decode(socket.recv()).code == "forbidden"
        assert lab.serving.server.statistics.malformed == 1
    context.term()


@pytest.mark.parametrize(("size", "answered"), [(4, 200), (512 << 10, 200 // 33 + 1)])
def test_large_frames_cost_more(tmp_path, size, answered):
    """An action request costs 1, and 1 more per 16 KiB: 33 for half a MiB."""
    context = zmq.Context()
    policy = write_linear_policy(tmp_path / "p.onnx", SPEC)
    with ServerThread(policy, max_rate_hz=1e-6, rate_burst=200) as serving, context.socket(zmq.DEALER) as socket:
        socket.linger, socket.rcvtimeo = 0, int(PATIENCE_S * 1000)
        socket.connect(serving.endpoint)
        header = protocol.header(SPEC.spec_hash, 1, 0)
        frame = protocol.encode(protocol.ActRequest(**header, step_index=0, observation=bytes(size)))
        codes = []
        while codes[-1:] != ["too_fast"]:
            socket.send(frame)
            codes.append(protocol.decode(socket.recv()).code)
        assert codes == ["unknown_session"] * answered + ["too_fast"]
    context.term()
