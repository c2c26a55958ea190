"""`PolicyClient` against a server that says exactly what each test scripts, over real sockets."""

import math
import threading
import time

import msgspec
import numpy as np
import pytest
import zmq

from deploy import protocol
from deploy.client import ClientState, EpisodeOutcome, PolicyClient, ServerRefusedError, ServerTimeoutError
from deploy.protocol import (
    ActReply,
    ActRequest,
    BeginEpisode,
    EndEpisode,
    EpisodeNoted,
    EpisodeReady,
    Error,
    Hello,
    Ping,
    Pong,
    Welcome,
)
from mpo_robot.errors import ConfigError, ProtocolError, SpecMismatchError
from tests.support.onnx_files import small_spec

SPEC = small_spec()
VERSION = "a" * 64
ZERO = np.zeros(3, np.float32)
PATIENCE_S = 20.0  # never reached by a passing test


class ScriptedServer:
    """A ROUTER socket in a thread; `answer(message)` returns the frames or messages to send for one request."""

    def __init__(self, endpoint="tcp://127.0.0.1:*"):
        self.answer = self.behave
        self.received = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(endpoint)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._running = True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while self._running:
            if not self._socket.poll(10):
                continue
            identity, frame = self._socket.recv_multipart()
            message = protocol.decode(frame)
            self.received.append(message)
            for reply in self.answer(message):
                data = reply if isinstance(reply, (bytes, list)) else protocol.encode(reply)
                self._socket.send_multipart([identity, *(data if isinstance(data, list) else [data])])

    @staticmethod
    def header(message, **changes):
        return {**protocol.header(SPEC.spec_hash, message.request_id, 2_000), **changes}

    def behave(self, message):
        """What a good server says."""
        header = self.header(message)
        if isinstance(message, Hello):
            spec_json = protocol.encode_spec(SPEC)
            return [Welcome(**header, policy_version=VERSION, spec_json=spec_json, stochastic=True)]
        if isinstance(message, BeginEpisode):
            version = message.resume_policy_version or VERSION
            return [EpisodeReady(**header, episode_id=message.episode_id, policy_version=version, stochastic=True)]
        if isinstance(message, Ping):
            return [Pong(**header, session=True)]
        return [self.action(message)]

    def action(self, message, **changes):
        fields = {
            "step_index": message.step_index,
            "action": protocol.encode_array([0.5, float(message.step_index)]),
            "log_prob": -1.5,
            "policy_version": VERSION,
            "inference_ns": 300,
            "received_ns": 1_500,
        }
        return ActReply(**{**self.header(message), **fields, **changes})

    def on(self, kind, answer):
        """Answer messages of one kind by `answer`, the others well."""
        self.answer = lambda message: answer(message) if isinstance(message, kind) else self.behave(message)

    def close(self):
        if self._running:
            self._running = False
            self._thread.join()
            self._socket.close()
            self._context.term()


class Clock:
    """Real time plus what the test adds."""

    def __init__(self):
        self.offset_ns = 0

    def __call__(self):
        return time.monotonic_ns() + self.offset_ns


@pytest.fixture
def server():
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def client(server):
    with PolicyClient(server.endpoint, SPEC) as client:
        yield client


@pytest.fixture
def ready(client):
    client.connect(PATIENCE_S)
    client.begin_episode("episode", PATIENCE_S)
    return client


def act(client, step_index=0, wait_s=PATIENCE_S, observation=ZERO):
    return client.act(observation, step_index, time.monotonic_ns() + int(wait_s * 1e9))


def reconnect(client):
    """Call `reconnect_if_needed` as a loop would, until it says yes."""
    give_up = time.monotonic() + PATIENCE_S
    while not client.reconnect_if_needed():
        assert time.monotonic() < give_up, (client.state, client.last_error)
        time.sleep(0.002)


def test_connect_begin_act(server, client):
    welcome = client.connect(PATIENCE_S)
    assert welcome.policy_version == VERSION
    assert client.state is ClientState.CONNECTED
    assert client.begin_episode("walk", PATIENCE_S) == VERSION
    reply = act(client, 7, observation=np.array([1.0, -2.0, 0.5]))
    np.testing.assert_array_equal(reply.action, np.float32([0.5, 7.0]))
    assert reply.action.dtype == np.float32
    assert (reply.log_prob, reply.policy_version) == (-1.5, VERSION)
    assert (reply.server_ns, reply.inference_ns) == (500, 300)
    assert reply.round_trip_ns > 0
    hello, begin, request = server.received
    assert protocol.decode_spec(hello.spec_json) == SPEC
    assert (begin.episode_id, begin.step_index, begin.resume_policy_version) == ("walk", 0, None)
    assert protocol.decode_array(request.observation, 3, "x").tolist() == [1.0, -2.0, 0.5]
    assert hello.request_id < begin.request_id < request.request_id
    assert {message.spec_hash for message in server.received} == {SPEC.spec_hash}


def test_begin_episode_handshakes_by_itself(server, client):
    assert client.begin_episode("walk", PATIENCE_S) == VERSION
    assert [type(message) for message in server.received] == [Hello, BeginEpisode]


def test_no_density_comes_as_nan(server, ready):
    server.on(ActRequest, lambda message: [server.action(message, log_prob=None)])
    assert math.isnan(act(ready).log_prob)


def test_no_answer_gives_none_not_before_the_deadline(server, ready):
    server.on(ActRequest, lambda message: [])
    deadline_ns = time.monotonic_ns() + 30_000_000
    assert ready.act(ZERO, 0, deadline_ns) is None
    assert time.monotonic_ns() >= deadline_ns
    assert ready.statistics.deadline_misses == 1
    server.on(ActRequest, lambda message: [server.action(message)])
    assert act(ready, 1) is not None


def test_a_deadline_in_the_past_gives_none(ready):
    assert ready.act(ZERO, 0, time.monotonic_ns() - 1) is None
    assert ready.statistics.deadline_misses == 1


def test_a_reply_that_is_read_after_the_deadline_is_late(server):
    clock = Clock()
    with PolicyClient(server.endpoint, SPEC, clock=clock) as client:
        client.begin_episode("e", PATIENCE_S)

        receive = client._channel.receive

        def stall(deadline_ns):
            frame = receive(deadline_ns)
            clock.offset_ns += 3_600_000_000_000  # between its arrival and the look at the clock
            return frame

        client._channel.receive = stall
        assert client.act(ZERO, 0, clock() + 1_800_000_000_000) is None
        assert (client.statistics.stale_replies, client.statistics.deadline_misses) == (1, 1)


def test_late_and_duplicate_replies_are_dropped(server, ready):
    held = []

    def late(message):
        if message.step_index == 0:
            held.append(server.action(message))
            return []
        return [held[0], held[0], server.action(message), server.action(message)]

    server.on(ActRequest, late)
    assert act(ready, 0, wait_s=0.02) is None
    assert act(ready, 1).action[1] == 1.0
    assert act(ready, 2).action[1] == 2.0
    assert ready.statistics.stale_replies == 5  # two late ones twice, and the duplicate of step 1
    assert ready.statistics.bad_replies == 0


def test_garbage_before_the_reply_is_counted_and_skipped(server, ready):
    garbage = [
        b"",
        b"\xc1\xff",
        b"x" * 1000,
        [b"two", b"parts"],
        protocol.encode(Ping(**protocol.header("0" * 64, 1, 0))),
    ]
    server.on(ActRequest, lambda message: [*garbage, server.action(message)])
    assert act(ready, 3).action[1] == 3.0
    assert ready.statistics.bad_replies == 4
    assert ready.statistics.stale_replies == 1


NAN = protocol.encode_array([math.nan, 0.0])


@pytest.mark.parametrize(
    "changes",
    [
        {"action": NAN},
        {"action": protocol.encode_array([math.inf, 0.0])},
        {"action": protocol.encode_array([0.0])},
        {"action": protocol.encode_array([0.0] * 3)},
        {"log_prob": math.nan},
        {"log_prob": math.inf},
        {"policy_version": "b" * 64},
        {"spec_hash": "0" * 64},
        {"step_index": 99},
    ],
)
def test_a_bad_reply_to_this_request_gives_none_at_once(server, ready, changes):
    server.on(ActRequest, lambda message: [server.action(message, **changes)])
    started = time.monotonic()
    assert act(ready) is None
    assert time.monotonic() - started < PATIENCE_S
    assert ready.statistics.bad_replies == 1
    assert ready.state is ClientState.READY


def test_an_error_reply_gives_none_at_once(server, ready):
    server.on(ActRequest, lambda m: [Error(**server.header(m), code="policy_failed", text="NaN")])
    assert act(ready) is None
    assert ready.statistics.error_replies == 1
    assert "NaN" in ready.last_error
    assert ready.state is ClientState.READY


def test_a_flood_of_garbage_does_not_hold_act_past_its_deadline(server, ready):
    server.on(ActRequest, lambda message: [b"garbage"] * 300)
    assert act(ready, wait_s=0.05) is None
    for _ in range(100):
        ready.reconnect_if_needed()
    server.on(ActRequest, lambda message: [server.action(message)])
    assert act(ready, 1) is not None


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_bad_observations_are_never_sent(server, ready, bad):
    sent = len(server.received)
    assert act(ready, observation=np.array([0.0, bad, 0.0])) is None
    assert ready.statistics.bad_observations == 1
    assert act(ready) is not None
    assert len(server.received) == sent + 1
    with pytest.raises(ValueError, match="shape"):
        act(ready, observation=np.zeros(2))


def test_act_without_an_episode_gives_none_at_once(server, client):
    assert act(client) is None
    client.connect(PATIENCE_S)
    assert act(client) is None
    assert client.statistics.not_ready == 2
    assert [type(message) for message in server.received] == [Hello]


def test_a_server_with_another_spec_is_refused_by_field(server, client):
    def mismatch(message):
        return [Error(**server.header(message), code="spec_mismatch", text="policy spec differs at control_dt")]

    server.on(Hello, mismatch)
    with pytest.raises(SpecMismatchError, match="control_dt"):
        client.connect(PATIENCE_S)


def test_a_welcome_with_another_spec_is_not_believed(server, client):
    spec_json = protocol.encode_spec(small_spec(control_dt=0.5))
    server.on(
        Hello, lambda m: [Welcome(**server.header(m), policy_version=VERSION, spec_json=spec_json, stochastic=True)]
    )
    with pytest.raises(SpecMismatchError, match="control_dt"):
        client.connect(PATIENCE_S)


def test_other_refusals_carry_their_code(server, client):
    server.on(Hello, lambda m: [Error(**server.header(m), code="busy", text="all sessions are taken")])
    with pytest.raises(ServerRefusedError, match="all sessions") as caught:
        client.connect(PATIENCE_S)
    assert caught.value.code == "busy"
    server.on(Hello, lambda m: [Pong(**server.header(m), session=True)])
    with pytest.raises(ProtocolError, match="Pong"):
        client.connect(PATIENCE_S)


def test_a_silent_server_is_a_timeout(server, client):
    server.answer = lambda message: []
    with pytest.raises(ServerTimeoutError, match="is `mpo-robot serve` running"):
        client.connect(0.05)


def test_no_server_is_a_timeout_and_acting_then_never_waits():
    with PolicyClient("tcp://127.0.0.1:1", SPEC) as client:
        with pytest.raises(ServerTimeoutError):
            client.connect(0.05)
        with pytest.raises(ServerTimeoutError):
            client.begin_episode("e", 0.05)
        assert act(client) is None
        assert not client.reconnect_if_needed()


def test_a_server_that_forgot_us_is_handshaked_again_and_the_episode_resumed(server, ready):
    known = False

    def forgetful(message):
        nonlocal known
        known = known or isinstance(message, BeginEpisode)
        if isinstance(message, ActRequest) and not known:
            return [Error(**server.header(message), code="unknown_session", text="who are you")]
        return server.behave(message)

    server.answer = forgetful
    assert act(ready, 11) is None
    assert ready.state is ClientState.LOST
    assert act(ready, 12) is None
    reconnect(ready)
    assert act(ready, 13) is not None
    resume = next(message for message in reversed(server.received) if isinstance(message, BeginEpisode))
    assert (resume.episode_id, resume.step_index, resume.resume_policy_version) == ("episode", 13, VERSION)
    assert (ready.statistics.losses, ready.statistics.reconnects, ready.statistics.not_ready) == (1, 1, 1)


def test_begin_episode_recovers_from_a_restart_between_episodes(server, ready):
    known = False

    def forgetful(message):
        nonlocal known
        known = known or isinstance(message, Hello)
        if not known:
            return [Error(**server.header(message), code="unknown_session", text="who are you")]
        return server.behave(message)

    server.answer = forgetful
    assert ready.begin_episode("next", PATIENCE_S) == VERSION
    assert act(ready) is not None


def test_a_version_that_cannot_be_resumed_leaves_the_episode_without_actions(server, ready):
    def refuse(message):
        if isinstance(message, ActRequest):
            return [Error(**server.header(message), code="unknown_session", text="who are you")]
        if isinstance(message, BeginEpisode) and message.resume_policy_version:
            return [Error(**server.header(message), code="unknown_version", text="gone")]
        return server.behave(message)

    server.answer = refuse
    assert act(ready) is None
    give_up = time.monotonic() + PATIENCE_S
    while ready.state is not ClientState.CONNECTED and time.monotonic() < give_up:
        assert not ready.reconnect_if_needed()
    assert ready.last_error == "gone"
    assert act(ready) is None
    server.answer = server.behave
    assert ready.begin_episode("next", PATIENCE_S) == VERSION
    assert act(ready) is not None


def test_a_server_that_resumes_another_version_is_not_ready(server, ready):
    def swap(message):
        if isinstance(message, ActRequest):
            return [Error(**server.header(message), code="unknown_session", text="who are you")]
        if isinstance(message, BeginEpisode):
            return [msgspec.structs.replace(server.behave(message)[0], policy_version="b" * 64)]
        return server.behave(message)

    server.answer = swap
    assert act(ready) is None
    give_up = time.monotonic() + PATIENCE_S
    while "another policy version" not in ready.last_error:
        assert not ready.reconnect_if_needed()
        assert time.monotonic() < give_up


def test_silence_is_answered_by_a_heartbeat_and_then_by_a_new_handshake(server):
    clock = Clock()
    with PolicyClient(server.endpoint, SPEC, clock=clock) as client:
        client.begin_episode("e", PATIENCE_S)
        assert client.reconnect_if_needed()
        assert not [message for message in server.received if isinstance(message, Ping)]
        clock.offset_ns += 600_000_000
        assert client.reconnect_if_needed()
        give_up = time.monotonic() + PATIENCE_S
        while not [message for message in server.received if isinstance(message, Ping)]:
            assert time.monotonic() < give_up
        server.on(Ping, lambda message: [])
        time.sleep(0.05)
        assert client.reconnect_if_needed()  # takes in the Pong
        clock.offset_ns += 600_000_000
        assert client.reconnect_if_needed()  # sends the Ping that stays unanswered
        clock.offset_ns += 2_100_000_000
        assert not client.reconnect_if_needed()
        assert client.last_error == "no sign of life"
        reconnect(client)
        assert client.statistics.losses == 1
        assert act(client, observation=ZERO, wait_s=PATIENCE_S + 10) is not None


def test_a_pong_that_does_not_know_us_starts_a_handshake(server):
    clock = Clock()
    with PolicyClient(server.endpoint, SPEC, clock=clock) as client:
        client.begin_episode("e", PATIENCE_S)
        server.on(Ping, lambda message: [Pong(**server.header(message), session=False)])
        clock.offset_ns += 600_000_000
        client.reconnect_if_needed()
        give_up = time.monotonic() + PATIENCE_S
        while client.statistics.losses == 0:
            client.reconnect_if_needed()
            assert time.monotonic() < give_up
        reconnect(client)


def test_a_server_that_dies_and_comes_back_is_picked_up(server, ready):
    assert act(ready) is not None
    endpoint = server.endpoint
    server.close()
    give_up = time.monotonic() + PATIENCE_S
    while ready.state is ClientState.READY:
        assert act(ready, 1, wait_s=0.005) is None
        assert time.monotonic() < give_up
    assert act(ready, 2) is None
    assert not ready.reconnect_if_needed()
    again = ScriptedServer(endpoint)
    try:
        reconnect(ready)
        assert act(ready, 3).action[1] == 3.0
        assert [type(message) for message in again.received][:2] == [Hello, BeginEpisode]
    finally:
        again.close()


def test_the_end_of_an_episode_is_told_only_to_a_server_that_takes_it(server, client):
    outcome = EpisodeOutcome(1, 0.0, 0, False, "truncated")
    for takes in (False, True):
        spec_json = protocol.encode_spec(SPEC)

        def welcome(message, takes=takes, spec_json=spec_json):
            fields = {"policy_version": VERSION, "spec_json": spec_json, "stochastic": True}
            return [Welcome(**server.header(message), **fields, takes_outcomes=takes)]

        server.answer = lambda message, welcome=welcome: (
            welcome(message)
            if isinstance(message, Hello)
            else [EpisodeNoted(**server.header(message))]
            if isinstance(message, EndEpisode)
            else server.behave(message)
        )
        client.connect(PATIENCE_S)
        client.begin_episode("e", PATIENCE_S)
        assert client.end_episode(outcome, PATIENCE_S) is takes
        assert any(isinstance(message, EndEpisode) for message in server.received) is takes


def test_request_ids_grow(server, ready):
    for step in range(3):
        act(ready, step)
    numbers = [message.request_id for message in server.received]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > protocol.NO_REQUEST


def test_each_client_has_a_name_of_its_own(server, client):
    with PolicyClient(server.endpoint, SPEC) as other:
        client.connect(PATIENCE_S)
        other.connect(PATIENCE_S)
        client.connect(PATIENCE_S)
    names = [message.client_id for message in server.received]
    assert names[0] == names[2] != names[1]


def test_close_twice_and_bad_endpoints(server):
    client = PolicyClient(server.endpoint, SPEC)
    client.close()
    client.close()
    for endpoint in ("127.0.0.1:5555", "tcp://127.0.0.1", "udp://127.0.0.1:5", "inproc://x", ""):
        with pytest.raises(ConfigError, match="must look like"):
            PolicyClient(endpoint, SPEC)
    with pytest.raises(ConfigError, match="CURVE"):
        PolicyClient("tcp://192.168.0.7:5555", SPEC)
    with pytest.raises(ConfigError, match="the port must be a number"):
        PolicyClient("tcp://127.0.0.1:port", SPEC)
