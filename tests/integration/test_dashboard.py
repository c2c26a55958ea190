"""The operator's page over HTTP, with the server, its page and a robot's e-stop as they really run."""

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import time

import numpy as np
import pytest

from deploy.client import EpisodeOutcome, PolicyClient
from deploy.dashboard.launcher import Dashboard
from deploy.server import ServerConfig
from mpo_robot.cli.main import main
from mpo_robot.errors import ConfigError
from tests.support.dashboard import SPEC, DashboardServer
from tests.support.onnx_files import write_linear_policy
from tests.support.robot_process import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the page's process in /proc")
PATIENCE_S = 30.0
ROBOT = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """For tests that change nothing."""
    with DashboardServer(tmp_path_factory.mktemp("dashboard"), ROBOT) as page:
        yield page


def act(client, step=0):
    return client.act(np.zeros(3, np.float32), step, time.monotonic_ns() + int(PATIENCE_S * 1e9))


def audit(page):
    return [json.loads(line) for line in (page.registry.directory / "dashboard.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("path", ["/", "/app.js", "/plots.js", "/style.css"])
def test_the_page_is_the_same_for_everybody_and_holds_no_secret(shared, path):
    status, text = shared.request("GET", path, headers={"Authorization": None})
    assert status == 200
    assert text == shared.request("GET", path)[1]
    assert shared.token not in text
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", ""), "nothing from elsewhere"
    assert "https:" not in text


def test_without_the_token_nothing_is_told_and_nothing_done(shared):
    for headers in ({"Authorization": None}, {"Authorization": "Bearer x"}):
        assert shared.request("GET", "/api/state", headers=headers)[0] == 401
        assert shared.request("POST", "/api/estop", {}, headers)[0] == 401
        assert shared.request("POST", "/api/rollback", {"expect": shared.new}, headers)[0] == 401
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": None}):
        assert shared.request("POST", "/api/estop", {}, headers)[0] == 403
        assert shared.request("POST", "/api/rollback", {"expect": shared.new}, headers)[0] == 403
    assert shared.request("GET", "/api/state", headers={"Host": "evil.example"})[0] == 403
    assert not shared.estop.tripped
    assert shared.registry.current_version() == shared.new


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/../pyproject.toml", None, 404),
        ("GET", "/%2e%2e/app.py", None, 404),
        ("GET", "/static/app.py", None, 404),
        ("GET", "/api/nothing", None, 404),
        ("GET", "/api/estop", None, 405),
        ("POST", "/api/state", {}, 405),
        ("POST", "/api/rollback", b"{", 400),
        ("POST", "/api/rollback", b"[]", 400),
        ("POST", "/api/rollback", {"expect": 1}, 400),
        ("POST", "/api/rollback", b'{"x": "' + b"x" * 9000 + b'"}', 413),
        ("POST", "/api/rearm", {}, 404),  # only a human at the robot
    ],
)
def test_what_is_no_request_is_refused_without_harm(shared, method, path, body, code):
    status, answer = shared.request(method, path, body)
    assert status == code
    assert "Traceback" not in str(answer)
    assert shared.request("GET", "/api/state")[0] == 200


def test_the_page_listens_on_loopback_only(shared):
    port = int(shared.host.rpartition(":")[2])
    with open(f"/proc/{shared.page_process()}/net/tcp") as stream:
        listening = [line.split()[1] for line in stream if line.split()[3] == "0A"]
    assert [address for address in listening if int(address.rpartition(":")[2], 16) == port] == [f"0100007F:{port:04X}"]


def test_live_numbers_and_a_robot_whose_name_is_markup(shared):
    with PolicyClient(shared.server.endpoint, SPEC) as client:
        client.begin_episode("arm-0001", PATIENCE_S)
        for step in range(7):
            assert act(client, step) is not None

        def sessions():
            found = (shared.state()["server"] or {"sessions": []})["sessions"]
            return [(item["episode_id"], item["step_index"], item["policy_version"]) for item in found]

        wait_until(lambda: sessions() == [("arm-0001", 6, shared.new)])
        client.end_episode(EpisodeOutcome(7, 3.5, 2, True, "safety"), PATIENCE_S)
        wait_until(lambda: bool(shared.state()["faults"]) and shared.state()["robots"][0]["state"] == "RUN")
        wait_until(lambda: shared.state()["server"]["counters"]["outcomes"] == 1)
    state = shared.state()
    assert state["server"]["counters"]["actions"] == 7
    assert max(point[1] for point in state["series"]) > 0
    assert all(point[2] <= point[3] <= point[4] for point in state["series"] if point[2] is not None)
    assert (state["episodes"][0]["misses"], state["episodes"][0]["steps"]) == (2, 7)
    assert [row["role"] for row in state["policies"]["versions"]] == ["in force", "before"]
    # It travels as JSON, which no browser takes for markup; that the page shows it as text is tested in a browser.
    assert state["robots"][0]["name"] == ROBOT


def test_estop_stops_the_robot_at_once_and_is_audited(tmp_path):
    with DashboardServer(tmp_path) as page:
        status, answer = page.request("POST", "/api/estop", {"reason": "smoke"})
        assert status == 200
        assert [(item["name"], item["confirmation"]) for item in answer["robots"]] == [("arm", "stopped")]
        assert page.estop.tripped
        assert page.estop.reason == "message: operator's page: smoke"
        (entry,) = audit(page)
        assert (entry["event"], entry["reason"], entry["robots"]) == ("estop", "smoke", {"arm": "stopped"})
        wait_until(lambda: page.state()["robots"][0]["state"] == "FAULT")
        wait_until(lambda: page.state()["audit"][0]["event"] == "estop")
        page.request("POST", "/api/estop", {})
        assert len(audit(page)) == 2
        # A robot that does not answer is not said to be stopped, and the audit being out of reach stops no stop.
        page._topic.__exit__()
        (page.registry.directory / "dashboard.jsonl").unlink()
        (page.registry.directory / "dashboard.jsonl").mkdir()
        status, answer = page.request("POST", "/api/estop", {})
        assert status == 200
        assert not answer["robots"][0]["tripped"]
        assert not answer["robots"][0]["confirmation"]
        assert "no answer" in answer["robots"][0]["error"]
        assert "could not be written" in answer["audit_problem"]


@pytest.mark.parametrize(("stop", "part"), [("raises", "COULD NOT BE STOPPED"), ("hangs", "NOT KNOWN TO HAVE STOPPED")])
def test_robot_that_is_told_to_stop_is_not_said_to_have_stopped(tmp_path, stop, part):
    with DashboardServer(tmp_path, stop=stop) as page:
        answer = page.request("POST", "/api/estop", {})[1]["robots"][0]
        assert answer["tripped"]
        assert answer["confirmation"] == {"raises": "failed", "hangs": "unconfirmed"}[stop]
        assert part in answer["stop"]
        assert "Cut its power" in answer["stop"]
        assert audit(page)[0]["robots"] == {"arm": answer["stop"]}
        wait_until(lambda: any(part in problem for problem in page.state()["problems"]))


def test_rollback_takes_effect_once_and_only_from_what_was_shown(tmp_path):
    with DashboardServer(tmp_path) as page, PolicyClient(page.server.endpoint, SPEC) as client:
        assert client.begin_episode("one", PATIENCE_S) == page.new
        for body in ({}, {"expect": page.old}):
            status, answer = page.request("POST", "/api/rollback", body)
            assert (status, "not rolled back" in answer["error"]) == (409, True)
        assert page.registry.current_version() == page.new
        status, answer = page.request("POST", "/api/rollback", {"expect": page.new, "reason": "limps"})
        assert (status, answer) == (200, {"version": page.old})
        assert client.begin_episode("two", PATIENCE_S) == page.old
        # The second press of an impatient operator does not go one version further.
        assert page.request("POST", "/api/rollback", {"expect": page.new})[0] == 409
        entry = page.registry.audit.entries()[-1]
        assert (entry["event"], entry["detail"], entry["left"]) == ("rollback", "limps", page.new)
        assert entry["by"].startswith("operator's page of ")
        child = page.page_process()
        page.server.process.send_signal(signal.SIGTERM)
        assert page.server.finish() == 0
        assert _is_gone(child)


def test_browsers_that_hang_delay_neither_the_page_nor_robots(tmp_path):
    """Half a request, a reply that is never read, and at last a page that stands still as a whole."""
    with DashboardServer(tmp_path) as page, contextlib.ExitStack() as stack:
        host, _, port = page.host.rpartition(":")
        whole = f"GET /api/state HTTP/1.1\r\nHost: {page.host}\r\nAuthorization: Bearer {page.token}\r\n\r\n".encode()
        for data in [whole[:40]] * 20 + [whole * 40] * 20:
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(data)
        assert page.request("POST", "/api/estop", {})[1]["robots"][0]["tripped"]
        os.kill(page.page_process(), signal.SIGSTOP)
        try:
            with PolicyClient(page.server.endpoint, SPEC) as client:
                client.begin_episode("e", PATIENCE_S)
                # More than the pipe to the page holds: were the server to wait for it, it would answer no more.
                end = time.monotonic() + 2.0
                step = 0
                while time.monotonic() < end or step < 100:
                    assert act(client, step) is not None
                    step += 1
        finally:
            os.kill(page.page_process(), signal.SIGCONT)
        wait_until(lambda: page.state()["server"]["counters"]["actions"] >= 100)


def test_a_page_that_dies_costs_a_line_and_robots_nothing(tmp_path):
    with DashboardServer(tmp_path) as page, PolicyClient(page.server.endpoint, SPEC) as client:
        os.kill(page.page_process(), signal.SIGKILL)
        client.begin_episode("e", PATIENCE_S)
        end = time.monotonic() + 1.5  # three snapshots
        while time.monotonic() < end:
            assert act(client) is not None
        page.server.process.send_signal(signal.SIGTERM)
        assert page.server.finish() == 0
        assert sum("operator's page has ended" in line for line in page.server.output) == 1


def test_the_page_ends_with_a_server_that_is_killed(tmp_path):
    with DashboardServer(tmp_path) as page:
        child = page.page_process()
        page.server.process.kill()
        page.server.finish()
        wait_until(lambda: _is_gone(child))
        with pytest.raises((OSError, http.client.HTTPException)):
            page.request("GET", "/")


def _is_gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_port_in_use_is_bad_input(tmp_path, capfd):
    policy = write_linear_policy(tmp_path / "policy.onnx", SPEC)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", str(policy), f"--dashboard={port}"]) == 2
    assert f"port {port} cannot be used" in capfd.readouterr().err


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mpo-robot\[dashboard\]'"):
        Dashboard(ServerConfig().dashboard, tmp_path)


def test_an_option_in_the_wrong_place_is_explained(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--dashboard", "policy.onnx"])
    assert "--dashboard=PORT" in capsys.readouterr().err
