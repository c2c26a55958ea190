"""`mpo-robot serve` as users run it: a process of its own that is stopped, killed, frozen, swapped and misused."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import zmq

from deploy.client import ClientState, PolicyClient
from deploy.registry import PolicyRegistry
from deploy.server import ServerConfig
from mpo_robot.cli.main import main
from mpo_robot.config import load_config
from mpo_robot.errors import SpecMismatchError
from tests.support.onnx_files import small_spec, write_linear_policy
from tests.support.serving import ServerProcess

SPEC = small_spec()
ZERO = np.zeros(3, np.float32)
PATIENCE_S = 30.0


@pytest.fixture
def policy(tmp_path):
    return write_linear_policy(tmp_path / "policy.onnx", SPEC)


def act(client, step_index=0, wait_s=PATIENCE_S):
    return client.act(ZERO, step_index, time.monotonic_ns() + int(wait_s * 1e9))


def tick_until_answered(client, step_index):
    """What a robot's loop does in every tick: keep the session, ask, and go on without an answer."""
    give_up = time.monotonic() + PATIENCE_S
    misses = 0
    while True:
        client.reconnect_if_needed()
        reply = act(client, step_index, wait_s=0.02)
        if reply is not None:
            return reply, misses
        misses += 1
        assert time.monotonic() < give_up, (client.state, client.last_error, client.statistics)
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_act_and_clean_stop(policy, number):
    with ServerProcess(policy, "--seed", "1") as server:
        assert server.endpoint.startswith("tcp://127.0.0.1:")
        with PolicyClient(server.endpoint, SPEC) as client:
            assert client.connect(PATIENCE_S).stochastic
            version = client.begin_episode("e", PATIENCE_S)
            first = [act(client, step) for step in range(5)]
            assert client.begin_episode("e", PATIENCE_S) == version
            again = [act(client, step) for step in range(5)]
        for a, b in zip(first, again):
            np.testing.assert_array_equal(a.action, b.action)
            assert a.log_prob == b.log_prob
        server.process.send_signal(number)
        assert server.finish() == 0
        output = "\n".join(server.output)
        assert f"policy {version}" in output
        assert re.search(r"stopped; .*actions 10, episodes 2, outcomes 0, malformed 0", output)
        assert "Traceback" not in output


def test_deterministic_by_flag_config_and_override(policy, tmp_path):
    config = tmp_path / "server.yaml"
    config.write_text("stochastic: true\nmax_sessions: 1\n")
    for arguments in (["--deterministic"], ["--config", str(config), "stochastic=false"]):
        with ServerProcess(policy, *arguments) as server, PolicyClient(server.endpoint, SPEC) as client:
            assert not client.connect(PATIENCE_S).stochastic
            client.begin_episode("e", PATIENCE_S)
            assert np.isnan(act(client).log_prob)


def test_real_time_priority_is_taken_or_its_lack_is_said(policy):
    with ServerProcess(policy, "realtime_priority=1") as server, PolicyClient(server.endpoint, SPEC) as client:
        client.begin_episode("e", PATIENCE_S)
        assert act(client) is not None
        if "realtime priority 1" in server.output:
            assert os.sched_getscheduler(server.process.pid) == os.SCHED_FIFO
            assert os.sched_getparam(server.process.pid).sched_priority == 1
        else:
            assert any(line.startswith("note ") for line in server.output)


def test_cpus_are_kept_awake_or_the_reason_is_said(policy):
    with ServerProcess(policy, "keep_cpus_awake=true") as server:
        if "realtime CPUs awake" in server.output:
            files = [os.readlink(link) for link in Path(f"/proc/{server.process.pid}/fd").iterdir()]
            assert "/dev/cpu_dma_latency" in files
        else:
            assert any("cannot keep the CPUs awake" in line for line in server.output)


def test_every_config_file_is_valid():
    files = sorted(Path(__file__).parents[2].glob("configs/deploy/*.yaml"))
    assert files
    for path in files:
        load_config(ServerConfig, path)


def test_a_killed_server_is_picked_up_again_in_the_same_episode(policy, tmp_path):
    """The loop goes on without actions, and the restarted server resumes the version although a newer one is out."""
    with ServerProcess(policy) as server:
        endpoint = server.endpoint
        client = PolicyClient(endpoint, SPEC)
        version = client.begin_episode("e", PATIENCE_S)
        assert act(client, 0) is not None
        server.process.kill()
        server.finish()
    with client:
        give_up = time.monotonic() + PATIENCE_S
        while client.state is ClientState.READY:
            assert act(client, 1, wait_s=0.02) is None
            assert time.monotonic() < give_up
        for _ in range(20):
            assert not client.reconnect_if_needed()
            assert act(client, 1, wait_s=0.02) is None
        new = PolicyRegistry(tmp_path / "policy.onnx.versions").publish(
            write_linear_policy(tmp_path / "new.onnx", SPEC, bias=0.5)
        )
        with ServerProcess(policy, endpoint=endpoint) as again:
            reply, _ = tick_until_answered(client, 2)
            assert reply.policy_version == version
            assert client.statistics.reconnects == 1
            assert client.begin_episode("next", PATIENCE_S) == new
            assert any("already had" in line for line in again.output)


def test_a_frozen_server_costs_actions_but_no_wrong_ones(policy):
    with ServerProcess(policy, "--deterministic") as server, PolicyClient(server.endpoint, SPEC) as client:
        client.begin_episode("e", PATIENCE_S)
        assert act(client, 0) is not None
        server.process.send_signal(signal.SIGSTOP)
        for step in range(1, 6):
            client.reconnect_if_needed()
            assert act(client, step, wait_s=0.02) is None
        server.process.send_signal(signal.SIGCONT)
        reply, _ = tick_until_answered(client, 6)
        assert reply is not None
        assert client.statistics.bad_replies == 0
        assert client.statistics.deadline_misses + client.statistics.send_failures >= 5


def test_a_server_with_another_spec_is_refused_by_field(policy):
    with (
        ServerProcess(policy) as server,
        PolicyClient(server.endpoint, small_spec(control_dt=0.01)) as client,
        pytest.raises(SpecMismatchError, match=r"control_dt: .*0\.02.*0\.01"),
    ):
        client.connect(PATIENCE_S)


def test_hot_swap_failed_publish_and_rollback_on_a_running_server(policy, tmp_path, capsys):
    # It looks at the registry only when an episode begins, so that it cannot load a version before we damage it.
    look_never = "registry_poll_s=3600"
    with ServerProcess(policy, look_never) as server, PolicyClient(server.endpoint, SPEC) as client:
        first = client.begin_episode("1", PATIENCE_S)
        registry = PolicyRegistry(tmp_path / "policy.onnx.versions")
        second = registry.publish(write_linear_policy(tmp_path / "new.onnx", SPEC, bias=0.5))
        assert act(client).policy_version == first
        assert client.begin_episode("2", PATIENCE_S) == second
        third = registry.publish(write_linear_policy(tmp_path / "newer.onnx", SPEC, bias=0.6))
        registry.path(third).write_bytes(b"lost on the way to the disk")
        assert client.begin_episode("3", PATIENCE_S) == second
        for expected in (second, first):
            assert main(["serve", str(policy), "--rollback"]) == 0
            assert expected in capsys.readouterr().out
            assert client.begin_episode("back", PATIENCE_S) == expected
            assert act(client).policy_version == expected
        assert main(["serve", str(policy), "--rollback"]) == 2
        assert "no version before" in capsys.readouterr().err
        server.process.terminate()
        assert server.finish() == 0
        assert any("kept policy" in line for line in server.output)


def test_garbage_and_oversized_frames_leave_the_process_alive(policy):
    with ServerProcess(policy) as server, PolicyClient(server.endpoint, SPEC) as client:
        client.begin_episode("e", PATIENCE_S)
        context = zmq.Context()
        with context.socket(zmq.DEALER) as socket:
            socket.linger = 1000
            socket.connect(server.endpoint)
            rng = np.random.default_rng(0)
            for _ in range(200):
                socket.send(rng.bytes(int(rng.integers(0, 500))))
            socket.send(b"x" * (4 << 20))
        context.term()
        for step in range(50):
            assert act(client, step) is not None
        server.process.terminate()
        assert server.finish() == 0
        assert re.search(r"malformed (\d+), .*internal_errors 0", server.output[-1])


def test_two_servers_one_port(policy, capsys):
    with ServerProcess(policy) as server:
        assert main(["serve", str(policy), "--endpoint", server.endpoint]) == 2
        assert "cannot serve on" in capsys.readouterr().err


def test_a_policy_that_cannot_be_sampled_is_refused_before_it_is_published(policy, tmp_path, capsys):
    registry = PolicyRegistry(tmp_path / "policy.onnx.versions")
    write_linear_policy(policy, small_spec(), metadata={"distribution": "none"})
    assert main(["serve", str(policy), "--endpoint", "tcp://127.0.0.1:0"]) == 2
    assert "serve --deterministic" in capsys.readouterr().err
    assert registry.signature() is None
    good = registry.publish(write_linear_policy(tmp_path / "good.onnx", small_spec()))
    assert main(["serve", str(policy), "--endpoint", "tcp://127.0.0.1:0"]) == 2
    assert registry.current_version() == good


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent.onnx"], "no policy file or registry"),
        (["{policy}", "--endpoint", "tcp://*:5999"], "CURVE"),
        (["{policy}", "--endpoint", "tcp://0.0.0.0:5999"], "CURVE"),
        (["{policy}", "--endpoint", "5555"], "must look like"),
        (["{policy}", "--curve-secret-key", "k"], "belong together"),
        (["{policy}", "max_session=3"], "did you mean max_sessions"),
        (["{policy}", "max_sessions=0"], "at least 1"),
        (["{policy}", "--config", "absent.yaml"], "cannot read"),
        (["{garbage}"], "not an ONNX policy"),
    ],
)
def test_bad_input_exits_2_and_says_why(policy, tmp_path, capsys, arguments, text):
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage")
    assert main(["serve", *(item.format(policy=policy, garbage=garbage) for item in arguments)]) == 2
    assert text in capsys.readouterr().err
