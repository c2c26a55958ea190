"""Runs a soak: starts the processes, injects the faults of a schedule, collects what was seen, checks it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zmq

from deploy.key_files import load_public, load_secret
from deploy.registry import PolicyRegistry
from mpo_robot.errors import ConfigError
from tests.support.soak_audit import Problem, Swap
from tests.support.soak_schedule import Fault
from tests.support.soak_world import World

ROOT = Path(__file__).parents[2]
START_S = 300.0  # patience with a busy machine
FINISH_S = 120.0
_POLL_S = 0.005
_PUBLISHER = """
import sys
from deploy.registry import PolicyRegistry
registry = PolicyRegistry(sys.argv[1])
print("ready", flush=True)
registry.publish(sys.stdin.readline().strip())
"""
_INTERNAL_ERRORS = re.compile(r"internal_errors (\d+)")


class SoakRun:
    """A context: all processes have ended when it is left.

    Attributes:
        swaps: What was in force when, by the registry's own pointer file.
        problems: Violations that this process has seen.
        injected: Faults that were carried out: (monotonic seconds, fault).
        restarts: Servers started beyond the first.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._seed = world, seed
        self._rng = np.random.default_rng(seed)
        self._registry = PolicyRegistry(world.folder / "registry")
        self._processes: list[subprocess.Popen[str]] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._server_output = world.folder / "server.txt"
        self.swaps: list[Swap] = []
        self.problems: list[Problem] = []
        self.injected: list[tuple[float, Fault]] = []
        self.restarts = 0

    def __enter__(self) -> SoakRun:
        try:
            self._start()
        except BaseException:
            self._kill_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill_all()

    def run(self, schedule: list[Fault], seconds: float, say: Callable[[str], None] = lambda text: None) -> None:
        """Inject every fault at its time, then let the robot end its episode and all processes end cleanly."""
        start = time.monotonic()
        for fault in schedule:
            self._wait(start + fault.second)
            if self._robot.poll() is not None:
                break
            say(str(fault))
            self.injected.append((time.monotonic(), fault))
            getattr(self, f"_{fault.kind}", self._pass_on)(fault)
        self._wait(start + seconds)
        self._finish()

    def _start(self) -> None:
        world = self._world
        self._publish(world.policies[0])
        self._server = self._start_server()
        bus = self._spawn("tests.support.soak_bus", str(world.write_bus()), str(world.folder / "bus.jsonl"))
        proxy = self._spawn("tests.support.soak_proxy", str(world.server_port), str(self._seed))
        self._publisher = self._start_publisher()
        self._bus, self._proxy = bus, proxy
        settings = world.write_robot(_line(bus), int(_line(proxy)))
        self._robot = self._spawn("tests.support.soak_loop", str(settings))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._intruder = self._context.socket(zmq.DEALER)
        self._intruder.linger = 0
        keys = world.folder / "keys"
        self._intruder.curve_publickey, self._intruder.curve_secretkey = load_secret(keys / "intruder.key_secret")
        self._intruder.curve_serverkey = load_public(keys / "server.key")
        self._intruder.connect(f"tcp://127.0.0.1:{world.server_port}")
        self._wait_for_episode()

    def _wait_for_episode(self) -> None:
        """The clock of the schedule starts when the robot does."""
        end = time.monotonic() + START_S
        while not any((self._world.folder / "logs").glob("*.mcap")):
            if self._robot.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the robot did not start; see {self._world.folder}")
            time.sleep(_POLL_S)

    def _finish(self) -> None:
        if self._robot.poll() is not None:
            self.problems.append(Problem("process_died", f"the robot's process ended with {self._robot.returncode}"))
        while self._later:  # whatever is still suspended goes on
            self._later.pop(0)[1]()
        assert self._robot.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._robot.stdin.close()
        end = time.monotonic() + FINISH_S
        while self._robot.poll() is None and time.monotonic() < end:
            self._look_after_server()
            time.sleep(_POLL_S)
        if self._robot.poll() is None:
            self.problems.append(Problem("process_hangs", "the robot's process did not end"))
        self._server.terminate()
        try:
            self._server.wait(FINISH_S)
        except subprocess.TimeoutExpired:
            self.problems.append(Problem("process_hangs", "the server did not end"))
        for text in _INTERNAL_ERRORS.findall(self._server_output.read_text()):
            if text != "0":
                self.problems.append(Problem("internal_error", f"{text} in the server, see {self._server_output}"))
        assert self._bus.stdin is not None
        self._bus.stdin.close()
        self._bus.wait(FINISH_S)
        self._bus_errors()

    def _bus_errors(self) -> None:
        if self._bus.returncode != 0:
            self.problems.append(Problem("process_died", f"the bus ended with {self._bus.returncode}"))

    def _wait(self, until: float) -> None:
        while True:
            now = time.monotonic()
            for item in [item for item in self._later if item[0] <= now]:
                self._later.remove(item)
                item[1]()
            self._look_after_server()
            if now >= until:
                return
            time.sleep(min(_POLL_S, until - now))

    # Faults; the names are the kinds of the schedule.

    def _server_kill(self, fault: Fault) -> None:
        self._server.kill()
        self._server.wait()
        self._restart()

    def _server_suspend(self, fault: Fault) -> None:
        self._suspend(self._server, fault.seconds)

    def _robot_suspend(self, fault: Fault) -> None:
        self._suspend(self._robot, fault.seconds)

    def _estop(self, fault: Fault) -> None:
        self._robot.send_signal(signal.SIGUSR1)

    def _operator_stop(self, fault: Fault) -> None:
        self._robot.send_signal(signal.SIGTERM)

    def _policy_publish(self, fault: Fault) -> None:
        self._publish(self._world.policies[fault.values["policy"]])

    def _policy_rollback(self, fault: Fault) -> None:
        before = time.monotonic()
        with contextlib.suppress(ConfigError):  # nothing to go back to
            self._registry.rollback("soak")
        self._note_swap(before)

    def _policy_publish_killed(self, fault: Fault) -> None:
        before, publisher = time.monotonic(), self._publisher
        _order(publisher, str(self._world.policies[fault.values["policy"]]))
        time.sleep(fault.values["after_s"])
        publisher.kill()
        publisher.wait()
        self._note_swap(before)
        self._publisher = self._start_publisher()

    def _garbage(self, fault: Fault) -> None:
        for _ in range(fault.values["frames"]):
            frames = [self._rng.bytes(int(self._rng.integers(0, 400))) for _ in range(int(self._rng.integers(1, 4)))]
            with contextlib.suppress(zmq.Again):
                self._intruder.send_multipart(frames, zmq.NOBLOCK)
        with contextlib.suppress(OSError), socket.socket() as raw:
            raw.settimeout(0.2)
            raw.connect(("127.0.0.1", self._world.server_port))
            raw.sendall(self._rng.bytes(2000))

    def _pass_on(self, fault: Fault) -> None:
        """Faults that another process carries out by itself."""
        order = {"kind": fault.kind, "seconds": fault.seconds, **fault.values}
        if fault.kind.startswith("net_"):
            _order(self._proxy, json.dumps({**order, "mode": fault.kind.removeprefix("net_")}))
        elif fault.kind.startswith("servo_"):
            _order(self._bus, json.dumps(order))
        else:
            _order(self._robot, json.dumps(order))

    def _suspend(self, process: subprocess.Popen[str], seconds: float) -> None:
        process.send_signal(signal.SIGSTOP)
        self._later.append((time.monotonic() + seconds, lambda: process.send_signal(signal.SIGCONT)))

    # The registry, and the processes.

    def _publish(self, path: Path) -> None:
        before = time.monotonic()
        self._registry.publish(path, "soak")
        self._note_swap(before)

    def _note_swap(self, before: float) -> None:
        pointer = json.loads((self._world.folder / "registry" / "current").read_text())
        version = pointer["versions"][-1]
        if not self.swaps or self.swaps[-1].version != version:
            self.swaps.append(Swap(before, time.monotonic(), version))

    def _start_server(self) -> subprocess.Popen[str]:
        keys, world = self._world.folder / "keys", self._world
        arguments = [
            "--endpoint",
            f"tcp://127.0.0.1:{world.server_port}",
            "--curve-allow",
            str(world.folder / "allowed"),
        ]
        arguments += ["--curve-secret-key", str(keys / "server.key_secret")]
        command = [sys.executable, "-m", "mpo_robot.cli.main", "serve", str(world.folder / "registry"), *arguments]
        with self._server_output.open("a") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True)
        self._processes.append(process)
        return process

    def _restart(self) -> None:
        self.restarts += 1
        self._server = self._start_server()

    def _look_after_server(self) -> None:
        """A server that ends without having been killed is a violation; the run goes on with another."""
        if self._server.poll() is not None:
            self.problems.append(Problem("process_died", f"the server ended with {self._server.returncode}"))
            self._restart()

    def _start_publisher(self) -> subprocess.Popen[str]:
        """A process that is about to publish: killed in the middle of it, it shows what a crash leaves in force."""
        command = [sys.executable, "-c", _PUBLISHER, str(self._world.folder / "registry")]
        return self._popen(command, stderr=subprocess.DEVNULL)

    def _spawn(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        with (self._world.folder / f"{module.rpartition('.')[2]}.txt").open("a") as errors:
            return self._popen([sys.executable, "-m", module, *arguments], stderr=errors)

    def _popen(self, command: list[str], stderr: Any) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=stderr, text=True)
        self._processes.append(process)
        return process

    def _kill_all(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        if hasattr(self, "_context"):
            self._intruder.close(linger=0)
            self._context.term()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"{' '.join(map(str, process.args[:4]))} did not start")  # type: ignore[index]
    return line


def _order(process: subprocess.Popen[str], line: str) -> None:
    """Tell a process something; one that has ended is noticed elsewhere."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line + "\n")
        process.stdin.flush()
