from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import zmq

from deploy import estop_topic
from deploy.allow_list import AllowList, Role
from deploy.estop import EStop, EStopConfig, EStopGuard
from deploy.estop_sources import KeyEStop, SignalEStop
from deploy.estop_topic import EStopUnreachableError, StopReply, TopicEStop, send_estop
from deploy.key_files import create_keys
from deploy.security import ClientSecurity, ServerSecurity, secure_client
from deploy.stopping import StopFailedError
from mpo_robot.cli.main import main
from mpo_robot.errors import ConfigError
from tests.support.fake_robot import FakeRobot
from tests.support.robot_process import wait_until
from tests.support.stoppable import How, StoppableRobot

ANY_PORT = "tcp://127.0.0.1:*"


def test_first_reason_stays_until_a_human_rearms() -> None:
    estop = EStop()
    assert (estop.tripped, estop.reason) == (False, "")
    estop.trip("smoke")
    estop.trip("fire")
    assert (estop.tripped, estop.reason) == (True, "smoke")
    estop.rearm()
    assert not estop.tripped
    estop.trip("")
    assert estop.tripped, "a stop without a reason is a stop"


def test_guard_stops_the_robot_at_once_and_again() -> None:
    robot, estop = FakeRobot(), EStop()
    with EStopGuard(robot, estop):
        assert robot.calls == []
        estop.trip("one")
        wait_until(lambda: robot.calls == ["stop"])
        estop.trip("two")
        wait_until(lambda: robot.calls == ["stop", "stop"])


def test_guard_outlives_a_driver_whose_stop_fails_and_ends_without_a_stop() -> None:
    robot, estop, attempts = FakeRobot(), EStop(), []

    def broken() -> None:
        attempts.append(1)
        raise OSError("bus")

    robot.stop = broken  # type: ignore[method-assign]
    with EStopGuard(robot, estop):
        estop.trip("one")
        wait_until(lambda: len(attempts) == 3)
        estop.trip("two")
        wait_until(lambda: len(attempts) == 6)
    quiet = FakeRobot()
    with EStopGuard(quiet, EStop()):
        pass
    assert quiet.calls == []


def test_signal_trips_and_is_harmless_afterwards() -> None:
    estop = EStop()
    before = signal.getsignal(signal.SIGUSR1)
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        with SignalEStop(estop, "SIGUSR1"):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert estop.reason == "signal SIGUSR1"
        os.kill(os.getpid(), signal.SIGUSR1)  # would kill this process if the default had come back
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        handler = signal.signal(signal.SIGUSR1, lambda number, frame: None)
        mine = signal.getsignal(signal.SIGUSR1)
        with SignalEStop(EStop(), "SIGUSR1"):
            pass
        assert signal.getsignal(signal.SIGUSR1) is mine, "a handler of another program part was lost"
        assert handler is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signal_can_be_switched_off_and_needs_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with SignalEStop(EStop(), ""):
        assert signal.getsignal(signal.SIGUSR1) is before
    seen = []

    def use() -> None:
        with SignalEStop(EStop(), "SIGUSR1"):
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("key", [b" ", b"e", b"xyE"])
def test_key_of_a_terminal_trips(key: bytes) -> None:
    master, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        estop = EStop()
        with KeyEStop(estop, terminal) as keys:
            assert keys.active
            during = termios.tcgetattr(terminal)
            assert not during[3] & (termios.ICANON | termios.ECHO)
            assert during[3] & termios.ISIG, "Ctrl-C must go on working"
            assert during[6][termios.VSUSP] == b"\0", "Ctrl-Z would freeze the loop with the motors on"
            os.write(master, key)
            wait_until(lambda: estop.tripped)
            assert estop.reason == "key"
        assert termios.tcgetattr(terminal) == before
    finally:
        os.close(master)
        os.close(terminal)


def test_other_keys_do_nothing() -> None:
    master, terminal = pty.openpty()
    try:
        estop = EStop()
        with KeyEStop(estop, terminal):
            os.write(master, b"qwrtz\n")
            os.write(master, b"\x1b")
        assert not estop.tripped
    finally:
        os.close(master)
        os.close(terminal)


def test_without_a_terminal_keys_are_not_listened_to() -> None:
    read_end, write_end = os.pipe()
    try:
        with KeyEStop(EStop(), read_end) as keys:
            assert not keys.active
    finally:
        os.close(read_end)
        os.close(write_end)


def test_hung_up_terminal_ends_the_listener_without_a_stop() -> None:
    master, terminal = pty.openpty()
    estop = EStop()
    with KeyEStop(estop, terminal) as keys:
        assert keys.active
        os.close(master)
    os.close(terminal)
    assert not estop.tripped


def test_message_stops_and_tells_the_state() -> None:
    estop = EStop()
    with TopicEStop(estop, ANY_PORT, None, lambda: "RUN") as topic:
        assert send_estop(topic.endpoint, verb="status", timeout_s=30) == StopReply(False, "", "RUN")
        assert not estop.tripped
        reply = send_estop(topic.endpoint, "arm too close", timeout_s=30)
    assert reply == StopReply(True, "message: arm too close", "RUN")
    assert estop.tripped


@pytest.mark.parametrize(
    ("how", "confirmation", "wait_s", "code", "words"),
    [
        ("works", "stopped", 60.0, 0, "stopped"),  # no test waits for that long: answered at once
        ("raises", "failed", 0.2, 1, "COULD NOT BE STOPPED"),
        ("hangs", "unconfirmed", 0.2, 1, "NOT KNOWN TO HAVE STOPPED"),
    ],
)
def test_answer_says_whether_the_robot_has_stopped(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: How,
    confirmation: str,
    wait_s: float,
    code: int,
    words: str,
) -> None:
    monkeypatch.setattr(estop_topic, "CONFIRM_S", wait_s)
    with StoppableRobot(how) as robot:
        assert send_estop(robot.topic.endpoint, timeout_s=30).confirmation == confirmation
        assert send_estop(robot.topic.endpoint, verb="status", timeout_s=30).confirmation == confirmation
        assert main(["estop", robot.topic.endpoint, "--timeout", "30"]) == code
        output = capsys.readouterr().out
        assert words in output
        assert ("Cut its power" in output) == (code == 1)
        assert main(["estop", robot.topic.endpoint, "--status", "--timeout", "30"]) == 0
        assert words in capsys.readouterr().out


def test_others_are_answered_while_a_stop_is_to_be_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estop_topic, "CONFIRM_S", 60.0)
    with StoppableRobot("hangs") as robot, ThreadPoolExecutor() as pool:
        stops = [pool.submit(send_estop, robot.topic.endpoint, timeout_s=30) for _ in range(3)]
        wait_until(lambda: robot.estop.tripped)
        assert send_estop(robot.topic.endpoint, verb="status", timeout_s=30).confirmation == "unconfirmed"
        assert not any(stop.done() for stop in stops)
        robot.is_free.set()
        assert {stop.result().confirmation for stop in stops} == {"stopped"}


def test_listener_that_ends_answers_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estop_topic, "CONFIRM_S", 60.0)
    with StoppableRobot("hangs") as robot, ThreadPoolExecutor() as pool:
        stop = pool.submit(send_estop, robot.topic.endpoint, timeout_s=30)
        wait_until(lambda: robot.estop.tripped)
        robot.topic.__exit__()
        assert stop.result().confirmation == "unconfirmed"


def test_only_a_stop_that_began_after_the_last_trip_counts() -> None:
    robot, estop = FakeRobot(), EStop()
    estop.stop(robot)
    assert estop.confirmation == "", "not tripped"
    estop.trip("one")
    assert estop.confirmation == "unconfirmed"
    estop.stop(robot)
    assert estop.confirmation == "stopped"
    robot.stop = lambda: estop.trip("meanwhile")  # type: ignore[method-assign]
    estop.stop(robot)
    assert estop.confirmation == "unconfirmed"
    robot.stop = lambda: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(StopFailedError):
        estop.stop(robot)
    assert estop.confirmation == "failed"
    estop.trip("again")
    assert estop.confirmation == "unconfirmed"


def test_stop_that_a_driver_may_take_back_is_not_confirmed() -> None:
    robot, estop = FakeRobot(), EStop()
    estop.trip("test")
    estop.stop(robot)
    with estop.may_undo_stops():
        assert estop.confirmation == "unconfirmed"
        estop.stop(robot)
        assert estop.confirmation == "unconfirmed"
    assert estop.confirmation == "unconfirmed"
    estop.stop(robot)
    assert estop.confirmation == "stopped"


def test_older_sides_understand_each_other() -> None:
    """`confirmation` was added: older clients ignore it, older robots do not send it and so confirm nothing."""

    class OldReply(msgspec.Struct):
        tripped: bool
        reason: str = ""
        state: str = ""
        error: str = ""

    with StoppableRobot() as robot, zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.linger = 0
        client.connect(robot.topic.endpoint)
        client.send(b'{"verb":"stop","reason":"x"}')
        assert client.poll(30_000)
        assert msgspec.json.decode(client.recv(), type=OldReply) == OldReply(True, "message: x", "FAULT")
    with zmq.Context() as context, context.socket(zmq.REP) as old, ThreadPoolExecutor() as pool:
        old.linger = 0
        port = old.bind_to_random_port("tcp://127.0.0.1")
        answer = pool.submit(send_estop, f"tcp://127.0.0.1:{port}", timeout_s=30)
        assert old.poll(30_000)
        assert msgspec.json.decode(old.recv()) == {"verb": "stop", "reason": ""}, "unknown fields would be refused"
        old.send(msgspec.json.encode(OldReply(True, "message", "RUN")))
        assert answer.result().confirmation == "unconfirmed"


def test_garbage_neither_stops_nor_silences_the_listener() -> None:
    estop = EStop()
    garbage = [
        [b""], [b"stop"], [b"{}"], [b"\xff\xfe"], [b'{"verb":"rearm"}'], [b'{"verb":"stop","x":1}'],
        [b'{"verb":"stop"}', b"more"], [b"[" * 500],
    ]  # fmt: skip
    with TopicEStop(estop, ANY_PORT, None) as topic:
        with zmq.Context() as context:
            for frames in garbage:
                with context.socket(zmq.REQ) as socket:
                    socket.linger = 0
                    socket.connect(topic.endpoint)
                    socket.send_multipart(frames)
                    assert socket.poll(30_000)
                    reply = msgspec.json.decode(socket.recv(), type=StopReply)
                    assert reply.error
                    assert not reply.tripped
            with context.socket(zmq.DEALER) as socket:
                socket.linger = 0
                socket.connect(topic.endpoint)
                socket.send(b"x" * 100_000)  # above the size limit: the peer is cut off
                socket.send(b"no envelope")
        assert not estop.tripped
        assert send_estop(topic.endpoint, timeout_s=30).tripped


def test_only_operators_keys_are_heard(tmp_path: Path) -> None:
    robot_public, robot_secret = create_keys(tmp_path / "robot", "robot")
    operator_public, operator_secret = create_keys(tmp_path / "operator", "operator")
    other_public, other_secret = create_keys(tmp_path / "other", "other")
    _, stranger_secret = create_keys(tmp_path / "stranger", "stranger")
    allowed = AllowList(tmp_path / "allow")
    allowed.allow(operator_public, Role.OPERATOR)
    allowed.allow(other_public, Role.ROBOT)
    estop = EStop()
    with TopicEStop(estop, ANY_PORT, ServerSecurity(robot_secret, tmp_path / "allow")) as topic:
        with pytest.raises(EStopUnreachableError):
            send_estop(topic.endpoint, timeout_s=0.3)
        with pytest.raises(EStopUnreachableError, match="another way"):
            send_estop(topic.endpoint, security=ClientSecurity(stranger_secret, robot_public), timeout_s=0.3)
        reply = send_estop(topic.endpoint, security=ClientSecurity(other_secret, robot_public), timeout_s=30)
        assert "operator" in reply.error
        assert not estop.tripped
        operator = ClientSecurity(operator_secret, robot_public)
        assert send_estop(topic.endpoint, "operator", security=operator, timeout_s=30).tripped
    assert estop.reason == "message: operator"


def test_keys_count_as_the_list_has_them_when_the_message_comes(tmp_path: Path) -> None:
    """Not as of the handshake: over the same connection, for a revoked key and a list that others can write to."""
    robot_public, robot_secret = create_keys(tmp_path / "robot", "robot")
    allowed, folder = AllowList(tmp_path / "allow"), tmp_path / "allow" / "operators"
    connections = {}
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        for name in ("anna", "otto"):
            public, secret = create_keys(tmp_path / name, name)
            allowed.allow(public, Role.OPERATOR)
            connections[name] = stack.enter_context(context.socket(zmq.REQ))
            connections[name].linger, connections[name].rcvtimeo = 0, 30_000
            secure_client(connections[name], ClientSecurity(secret, robot_public))
        estop = EStop()
        topic = stack.enter_context(TopicEStop(estop, ANY_PORT, ServerSecurity(robot_secret, allowed.directory)))

        def ask(name: str, verb: str) -> StopReply:
            connections[name].send(msgspec.json.encode({"verb": verb}))
            return msgspec.json.decode(connections[name].recv(), type=StopReply)

        for name, connection in connections.items():
            connection.connect(topic.endpoint)
            assert ask(name, "status").error == ""
        allowed.revoke("anna")
        folder.chmod(0o777)
        for name in connections:
            assert "operator" in ask(name, "stop").error
        folder.chmod(0o755)
        assert "operator" in ask("anna", "stop").error
        assert not estop.tripped
        assert ask("otto", "stop").tripped
        folder.chmod(0o777)
        with pytest.raises(ConfigError, match="chmod"):
            TopicEStop(estop, ANY_PORT, ServerSecurity(robot_secret, allowed.directory))
        folder.chmod(0o755)


def test_listening_off_loopback_needs_keys() -> None:
    with pytest.raises(ConfigError, match="CURVE"):
        TopicEStop(EStop(), "tcp://0.0.0.0:*", None)
    with pytest.raises(ConfigError, match="go together"):
        EStopConfig(secret_key=Path("a"))


def test_used_endpoint_is_named() -> None:
    with TopicEStop(EStop(), ANY_PORT, None) as topic, pytest.raises(ConfigError, match="cannot listen"):
        TopicEStop(EStop(), topic.endpoint, None)


def test_trip_from_a_handler_cannot_deadlock_with_a_trip_that_it_interrupts() -> None:
    # In a process of its own: a deadlock is a time-out there. Signals arrive in the middle of `trip` again and again.
    code = (
        "import os, signal\nfrom deploy.estop import EStop\ne = EStop()\n"
        "signal.signal(signal.SIGALRM, lambda *_: e.trip('signal'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)\n"
        "for _ in range(20000): e.trip('main')\nsignal.setitimer(signal.ITIMER_REAL, 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
