import stat
import time

import numpy as np
import pytest

from deploy.allow_list import AllowList, Role
from deploy.client import PolicyClient, ServerTimeoutError
from deploy.key_files import create_keys
from deploy.security import ClientSecurity, is_local
from mpo_robot.errors import ConfigError
from tests.support.onnx_files import small_spec, write_linear_policy
from tests.support.serving import ServerThread

SPEC = small_spec()
PATIENCE_S = 20.0


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.9.9.9:*", True),
        ("tcp://localhost:5555", True),
        ("tcp://[::1]:5555", True),
        ("ipc:///tmp/policy", True),
        ("ipc://@abstract", True),
        ("tcp://*:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://[::]:5555", False),
        ("tcp://eth0:5555", False),
        ("tcp://lo:5555", False),
        ("tcp://192.168.1.2:5555", False),
        ("tcp://robot.local:5555", False),
        ("tcp://localhost.example.com:5555", False),
        ("tcp://127.0.0.1.example.com:5555", False),
        ("tcp://10.0.0.1;127.0.0.1:5555", False),
        ("tcp://127.0.0.1:0;10.0.0.1:5555", False),
    ],
)
def test_what_counts_as_local(endpoint, local):
    assert is_local(endpoint) is local


@pytest.mark.parametrize("port", ["65536", "99999", "x", "-1", "+5"])
def test_a_port_that_is_none_is_refused(port):
    # ZeroMQ would bind 99999 as 34463.
    with pytest.raises(ConfigError, match="the port must be a number of at most 65535"):
        is_local(f"tcp://127.0.0.1:{port}")


@pytest.fixture
def keys(tmp_path):
    """Key pairs of a server, an allowed robot and a stranger; only the robot is in the allow-list."""
    paths = {name: create_keys(tmp_path / "keys", name) for name in ("server", "robot", "stranger")}
    allow = tmp_path / "allow"
    AllowList(allow).allow(paths["robot"][0], Role.ROBOT)
    return paths, allow


@pytest.fixture
def serving(keys, tmp_path):
    paths, allow = keys
    policy = write_linear_policy(tmp_path / "p.onnx", SPEC)
    with ServerThread(policy, curve_secret_key=paths["server"][1], curve_allow=allow) as serving:
        yield serving


def test_an_allowed_robot_is_served(keys, serving):
    paths, _ = keys
    trusted = ClientSecurity(paths["robot"][1], paths["server"][0])
    with PolicyClient(serving.endpoint, SPEC, security=trusted) as client:
        client.begin_episode("e", PATIENCE_S)
        reply = client.act(np.zeros(3, np.float32), 0, time.monotonic_ns() + int(PATIENCE_S * 1e9))
        assert reply is not None


@pytest.mark.parametrize("case", ["stranger", "no keys", "wrong server"])
def test_nobody_else_is(keys, serving, case):
    paths, _ = keys
    trusted = {
        "stranger": ClientSecurity(paths["stranger"][1], paths["server"][0]),
        "no keys": None,
        "wrong server": ClientSecurity(paths["robot"][1], paths["stranger"][0]),
    }[case]
    with PolicyClient(serving.endpoint, SPEC, security=trusted) as client, pytest.raises(ServerTimeoutError) as caught:
        client.connect(0.4)
    hint = "does it want keys (server.secret_key, server.server_key)?" if trusted is None else "are the keys right?"
    assert hint in str(caught.value)
    assert serving.server.statistics.frames == 0


def test_a_client_with_keys_does_not_talk_to_a_server_without(keys, tmp_path):
    paths, _ = keys
    trusted = ClientSecurity(paths["robot"][1], paths["server"][0])
    with (
        ServerThread(write_linear_policy(tmp_path / "p.onnx", SPEC)) as serving,
        PolicyClient(serving.endpoint, SPEC, security=trusted) as client,
    ):
        with pytest.raises(ServerTimeoutError):
            client.connect(0.4)
        assert serving.server.statistics.frames == 0


def test_secret_keys_are_private_and_never_overwritten(tmp_path):
    public, secret = create_keys(tmp_path, "robot")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert "secret-key" not in public.read_text()
    before = secret.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        create_keys(tmp_path, "robot")
    assert secret.read_bytes() == before


def test_faulty_keys_are_named(keys, tmp_path):
    paths, _ = keys
    public, secret = paths["robot"]
    garbage = tmp_path / "garbage.key"
    garbage.write_text("no key in here")

    def connect(own, server_key):
        PolicyClient("tcp://127.0.0.1:5", SPEC, security=ClientSecurity(own, server_key))

    with pytest.raises(ConfigError, match="no secret key"):
        connect(public, public)
    with pytest.raises(ConfigError, match=r"cannot read key file .*absent.key: there is none"):
        connect(secret, tmp_path / "absent.key")
    with pytest.raises(ConfigError, match="cannot read key file"):
        connect(secret, garbage)
    server_key = paths["server"][0]
    server_key.chmod(0o666)  # any local user could name another server
    with pytest.raises(ConfigError, match=f"chmod go-w {server_key}"):
        connect(secret, server_key)
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        connect(secret, public)


@pytest.mark.parametrize("case", ["absent", "empty", "garbage"])
def test_an_allow_list_without_usable_keys_is_refused(keys, tmp_path, case):
    paths, _ = keys
    allow = tmp_path / "list"
    if case != "absent":
        allow.mkdir()
    if case == "garbage":
        (allow / "x.key").write_text("no key in here")
    policy = write_linear_policy(tmp_path / "p.onnx", SPEC)
    with pytest.raises(ConfigError, match=r"allow-list|key file"):
        ServerThread(policy, curve_secret_key=paths["server"][1], curve_allow=allow)
