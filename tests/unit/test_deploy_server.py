"""`PolicyServer` over real sockets, with honest clients beside hostile ones."""

import os
import socket
import threading
import time

import numpy as np
import pytest
import zmq

from deploy import protocol
from deploy.client import PolicyClient
from deploy.onnx_policy import OnnxPolicy
from deploy.registry import PolicyRegistry
from deploy.server import _HANDSHAKE_MS, PolicyServer, ServerConfig
from mpo_robot.errors import ConfigError
from tests.support.onnx_files import small_spec, write_linear_policy
from tests.support.serving import ANY_PORT, ServerThread

SPEC = small_spec()
ZERO = np.zeros(3, np.float32)
PATIENCE_S = 20.0


@pytest.fixture
def policy(tmp_path):
    return write_linear_policy(tmp_path / "p.onnx", SPEC)


@pytest.fixture
def serving(policy):
    with ServerThread(policy, max_rate_hz=0) as serving:  # rates: tests/integration/test_server_security.py
        yield serving


@pytest.fixture
def dealer(serving):
    """A raw socket for what no client of ours would say."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.rcvtimeo = int(PATIENCE_S * 1000)
    dealer.connect(serving.endpoint)
    yield dealer
    dealer.close()
    context.term()


@pytest.fixture
def client(serving):
    with PolicyClient(serving.endpoint, SPEC) as client:
        client.begin_episode("e", PATIENCE_S)
        yield client


def act(client, step_index=0):
    return client.act(ZERO, step_index, time.monotonic_ns() + int(PATIENCE_S * 1e9))


def test_busy_waiting_behind_an_action_is_a_setting(policy, monkeypatch):
    turns = []
    give_way = os.sched_yield

    def counted():
        turns.append(None)
        give_way()

    monkeypatch.setattr(os, "sched_yield", counted)
    with ServerThread(policy) as server, PolicyClient(server.endpoint, SPEC) as client:
        client.begin_episode("e", PATIENCE_S)
        assert act(client) is not None
    assert turns == []
    with ServerThread(policy, spin_s=0.2) as server, PolicyClient(server.endpoint, SPEC) as client:
        client.begin_episode("e", PATIENCE_S)
        for step_index in range(1000):  # a server held up for all of 0.2 s never gets to look in between
            assert act(client, step_index) is not None
            time.sleep(0.01)
            if turns:
                break
    assert turns
    with pytest.raises(ConfigError, match="spin_s"):
        ServerConfig(spin_s=-0.1)


def test_garbage_is_counted_and_answered_and_others_are_served(serving, dealer, client, caplog):
    garbage = [[b""], [b"\xc1"], [b"\xff" * 5000], [b"a", b"b"], [b"", b"", b""], [b"\x91" * 100_000]]
    for frames in garbage:
        dealer.send_multipart(frames)
        reply = protocol.decode(dealer.recv())
        assert isinstance(reply, protocol.Error)
        assert (reply.code, reply.request_id) == ("malformed", protocol.NO_REQUEST)
        assert act(client) is not None
    assert serving.server.statistics.malformed == len(garbage)
    logged = [record.getMessage() for record in caplog.records if "malformed" in record.getMessage()]
    assert [text.partition(", from")[0] for text in logged] == [f"malformed frame, number {n}" for n in (1, 2, 4)]
    assert serving.server.statistics.internal_errors == 0


def test_random_bytes_and_damaged_messages_never_stop_the_server(serving, dealer, client):
    rng = np.random.default_rng(0)
    spec_json = protocol.encode_spec(SPEC)
    hello = protocol.encode(protocol.Hello(**protocol.header(SPEC.spec_hash, 1, 0), client_id="x", spec_json=spec_json))
    for round_number in range(300):
        if round_number % 2:
            frame = rng.integers(0, 256, rng.integers(0, 200), dtype=np.uint8).tobytes()
        else:
            damaged = bytearray(hello)
            for position in rng.integers(0, len(hello), 3):
                damaged[position] = rng.integers(0, 256)
            frame = bytes(damaged)
        dealer.send(frame)
        protocol.decode(dealer.recv())  # an Error, or a Welcome if the damage did not matter
    assert act(client) is not None
    assert serving.server.statistics.internal_errors == 0


def test_an_oversized_frame_ends_its_connection_and_nothing_else(serving, dealer, client):
    with dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
        dealer.send(b"x" * (protocol.MAX_FRAME_BYTES + 1))
        assert monitor.poll(PATIENCE_S * 1000)
    dealer.disable_monitor()
    dealer.rcvtimeo = 100
    with pytest.raises(zmq.Again):
        dealer.recv()
    assert act(client) is not None
    assert serving.server.statistics.malformed == 0  # it never came out of the socket


def test_who_does_not_shake_hands_is_let_go(policy, monkeypatch):
    assert _HANDSHAKE_MS == 5000
    monkeypatch.setattr("deploy.server._HANDSHAKE_MS", 100)
    with ServerThread(policy) as serving:
        host, _, port = serving.endpoint.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as silent:
            while silent.recv(64):  # the server's greeting, then its end
                pass


def test_another_protocol_version_is_answered_by_number(dealer):
    dealer.send(protocol.encode(protocol.Ping(**{**protocol.header(SPEC.spec_hash, 1, 0), "protocol_version": 9})))
    assert "version 9 is not supported" in protocol.decode(dealer.recv()).text


def test_a_client_that_never_reads_does_not_hold_up_others(serving, dealer, client):
    dealer.rcvhwm = 1
    for _ in range(3000):
        dealer.send(b"garbage")
    for step in range(20):
        assert act(client, step) is not None


def test_only_the_newest_of_the_requests_that_piled_up_is_answered(policy):
    """The server is not running while three requests come in, as after a stall."""
    registry = PolicyRegistry(policy.with_name("registry"))
    registry.publish(policy)
    with PolicyServer(registry, ServerConfig(endpoint=ANY_PORT)) as server:
        endpoint, done = server.endpoint, threading.Event()

        def run():
            while not done.is_set():
                server.serve_once(5)

        thread = threading.Thread(target=run)
        thread.start()
        with PolicyClient(endpoint, SPEC) as client:
            client.begin_episode("e", PATIENCE_S)
            done.set()
            thread.join()
            for step in range(3):
                assert client.act(ZERO, step, time.monotonic_ns()) is None
            time.sleep(0.1)  # let them cross
            server.serve_once(int(PATIENCE_S * 1000))
            assert server.statistics.actions == 1
            assert server.statistics.superseded == 2
            assert client.statistics.deadline_misses == 3


def test_hot_swap_between_episodes_only(serving, client, tmp_path):
    old = client.policy_version
    new = serving.registry.publish(write_linear_policy(tmp_path / "new.onnx", SPEC, bias=0.5))
    assert act(client).policy_version == old
    with PolicyClient(serving.endpoint, SPEC) as other:
        assert other.begin_episode("other", PATIENCE_S) == new
        assert act(other).policy_version == new
        assert act(client, 1).policy_version == old
    assert client.begin_episode("next", PATIENCE_S) == new
    assert act(client).policy_version == new
    assert serving.registry.rollback() == old
    assert client.begin_episode("back", PATIENCE_S) == old
    assert serving.server.store.swaps == 2


def test_others_are_served_while_a_new_version_loads(serving, client, tmp_path, monkeypatch):
    gate, loading = threading.Event(), threading.Event()
    load = OnnxPolicy.__init__

    def slow(self, path):
        if threading.current_thread().name.startswith("policy-load"):
            loading.set()
            assert gate.wait(PATIENCE_S)
        load(self, path)

    new = serving.registry.publish(write_linear_policy(tmp_path / "new.onnx", SPEC, bias=0.5))
    monkeypatch.setattr(OnnxPolicy, "__init__", slow)
    versions = []

    def begin():
        with PolicyClient(serving.endpoint, SPEC) as other:
            versions.append(other.begin_episode("other", PATIENCE_S))

    waiting = threading.Thread(target=begin)
    waiting.start()
    try:
        assert loading.wait(PATIENCE_S)
        for step in range(10):
            assert act(client, step) is not None
        assert versions == []
    finally:
        gate.set()
        waiting.join()
    assert versions == [new]


def test_a_new_version_is_loaded_ahead_while_nobody_asks(policy, tmp_path):
    with ServerThread(policy, registry_poll_s=0.01) as serving:
        new = serving.registry.publish(write_linear_policy(tmp_path / "new.onnx", SPEC, bias=0.5))
        give_up = time.monotonic() + PATIENCE_S
        while serving.server.store.current.policy_version != new:
            assert time.monotonic() < give_up
            time.sleep(0.005)


def test_a_restarted_server_resumes_the_episode_with_its_version(policy, tmp_path):
    new = write_linear_policy(tmp_path / "new.onnx", SPEC, bias=0.5)
    with ServerThread(policy) as first:
        endpoint = first.endpoint
        client = PolicyClient(endpoint, SPEC)
        old = client.begin_episode("e", PATIENCE_S)
        assert act(client) is not None
    with client, ServerThread(policy, endpoint=endpoint) as second:
        second.registry.publish(new)
        give_up = time.monotonic() + PATIENCE_S
        reply = None
        while reply is None:
            client.reconnect_if_needed()
            reply = client.act(ZERO, 1, time.monotonic_ns() + 100_000_000)
            assert time.monotonic() < give_up
        assert reply.policy_version == old
        assert client.begin_episode("next", PATIENCE_S) != old


def test_one_endpoint_has_one_server(serving, policy):
    registry = serving.registry
    with pytest.raises(ConfigError, match="cannot serve on"):
        PolicyServer(registry, ServerConfig(endpoint=serving.endpoint))


def test_ipc_is_not_taken_over_from_a_living_server(policy, tmp_path):
    path = tmp_path / "s"
    endpoint = f"ipc://{path}"
    with ServerThread(policy, endpoint=endpoint) as serving:
        with PolicyClient(endpoint, SPEC) as client:
            client.begin_episode("e", PATIENCE_S)
            assert act(client) is not None
        with pytest.raises(ConfigError, match="another server is running"):
            PolicyServer(serving.registry, ServerConfig(endpoint=endpoint))
        assert path.is_socket()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        PolicyServer(serving.registry, ServerConfig(endpoint=endpoint))
    assert path.read_text() == "precious"


@pytest.mark.parametrize("endpoint", ["tcp://*:5555", "tcp://0.0.0.0:0", "tcp://[::]:5555", "tcp://eth0:5555"])
def test_off_loopback_without_keys_is_refused(policy, endpoint):
    registry = PolicyRegistry(policy.with_name("registry"))
    registry.publish(policy)
    with pytest.raises(ConfigError, match="CURVE"):
        PolicyServer(registry, ServerConfig(endpoint=endpoint))


def test_close_twice_releases_the_port(policy):
    registry = PolicyRegistry(policy.with_name("registry"))
    registry.publish(policy)
    server = PolicyServer(registry, ServerConfig(endpoint=ANY_PORT))
    endpoint = server.endpoint
    server.close()
    server.close()
    PolicyServer(registry, ServerConfig(endpoint=endpoint)).close()


def test_an_empty_registry_cannot_be_served(tmp_path):
    with pytest.raises(ConfigError, match="nothing was published"):
        PolicyServer(PolicyRegistry(tmp_path))
