"""The soak's checker finds what it is there for: each test breaks the implementation, and the checker says so."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import conclude
from deploy.action_source import Action, ServerSource
from deploy.client import PolicyClient
from deploy.episode_runner import EpisodeRunner
from deploy.fallback import FallbackConfig, Rung
from deploy.log_writer import EpisodeLogWriter, LogConfig
from deploy.loop_parts import LoopConfig
from deploy.observation_checks import ObservationConfig, StaleCheck
from deploy.onnx_policy import OnnxPolicy
from deploy.policy_store import PolicyStore
from deploy.safety import (
    AccelerationLimit,
    CommandLimits,
    Filtered,
    PositionLimit,
    RateLimit,
    SafetyConfig,
    compile_limits,
)
from deploy.timing import RateSchedule, SystemClock, Tick
from tests.support.loop_bench import SPEC, Bench
from tests.support.onnx_files import write_linear_policy
from tests.support.serving import ServerThread
from tests.support.soak_audit import Problem, ReadLog, Swap, check_bus, check_episode, check_policies, read_files
from tests.support.soak_disk import SoakDisk
from tests.support.soak_schedule import KINDS, make_schedule
from tests.support.soak_watch import Bounds, Heartbeat, Violations, Watch, WatchedClock, WatchedRobot, WatchedSource

LENGTH = 30
VELOCITY, ACCELERATION = 40.0, 2000.0  # per s, per s^2; a period is 0.01 s
SAFETY = SafetyConfig(
    PositionLimit("clamp", margin=0.1),
    RateLimit("clamp", {"default": VELOCITY}),
    AccelerationLimit("clamp", {"default": ACCELERATION}),
)
PERIOD_NS = 10_000_000


def make_watch(heartbeat: Heartbeat | None = None) -> Watch:
    inset = 0.1 * 6.0
    bounds = Bounds(
        low=np.full(2, -2.0 + inset),
        high=np.full(2, 4.0 - inset),
        velocity=np.full(2, VELOCITY),
        acceleration=np.full(2, ACCELERATION),
        command_dt=0.01,
        home=np.full(2, 0.25),
    )
    return Watch(bounds, Violations(), heartbeat)


class Watched:
    """A bench under the checker: one episode, the violations of its running, and those of its log."""

    def __init__(self, directory: Path, **parts: object) -> None:
        self.watch = make_watch()
        self.bench = Bench(directory, length=LENGTH, safety=SAFETY, **parts)
        self.fake = self.bench.robot
        self.bench.robot = WatchedRobot(self.fake, self.watch)  # type: ignore[assignment]
        self.writer: EpisodeLogWriter | None = None
        self.begun: dict[str, object] = {}
        source = WatchedSource(self.bench.parts.source, self.watch, self.begin)
        self.bench.parts = dataclasses.replace(self.bench.parts, source=source, open_log=self.open_log)  # type: ignore[arg-type]
        self.directory = directory

    def begin(self, episode_id: str, before: float, after: float, version: str) -> None:
        self.begun = {"episode_id": episode_id, "asked": before, "answered": after, "version": version}

    def open_log(self, episode_id: str) -> EpisodeLogWriter:
        disk = SoakDisk(self.watch)
        config = LogConfig(fsync="never")
        self.writer = EpisodeLogWriter(self.directory, SPEC, episode_id, config=config, disk=disk)
        return self.writer

    def run(self) -> set[str]:
        """Kinds of violations, the log's included."""
        self.bench.run()
        return self.watch.violations.kinds | {problem.kind for problem in self.audit(self.log())}

    def log(self) -> ReadLog:
        return read_files([self.directory / "ep.mcap"])

    def audit(self, log: ReadLog) -> list[Problem]:
        assert self.writer is not None
        trace = self.watch.trace
        arrays = {"observations": trace.observations, "applied": trace.applied, "outcomes": trace.outcomes}
        return check_episode(
            {"episode_id": "ep", "completed": len(trace.applied), "dropped": self.writer.dropped}, log, arrays
        )


def test_nothing_is_found_where_nothing_is_broken(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert watched.run() == set()
    assert len(watched.log().steps) == len(watched.watch.trace.applied) == LENGTH
    assert watched.watch.trace.commands == LENGTH


@pytest.mark.parametrize(
    ("kind", "breaks"),
    [
        ("position", lambda limits: {"low": limits.low - 3, "high": limits.high + 3}),
        ("velocity", lambda limits: {"rate_mode": "warn"}),
        ("velocity", lambda limits: {"max_change": limits.max_change * np.float32(1.001)}),
        ("acceleration", lambda limits: {"acceleration_mode": "off"}),
        ("acceleration", lambda limits: {"max_change_of_change": limits.max_change_of_change * 1.001}),
    ],
    ids=["position", "velocity", "velocity_by_little", "acceleration", "acceleration_by_little"],
)
def test_a_limit_that_does_not_hold_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, breaks: Callable[[CommandLimits], dict[str, object]]
) -> None:
    def compile_broken(*arguments, **options):  # type: ignore[no-untyped-def]
        limits = compile_limits(*arguments, **options)
        return dataclasses.replace(limits, **breaks(limits))

    monkeypatch.setattr("deploy.control_loop.compile_limits", compile_broken)
    assert Watched(tmp_path).run() == {kind}


def test_nan_on_its_way_to_the_motors_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.command_sender.filter_command", lambda command, *rest: Filtered(command, False, (), ""))
    monkeypatch.setattr(EpisodeRunner, "_checked", lambda self, action, cause: (action, cause))
    watched = Watched(tmp_path)
    watched.bench.source.actions[5] = np.nan
    assert "not_finite" in watched.run()


def test_a_command_after_a_stop_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(tmp_path)
    estop = watched.bench.parts.estop

    def stop_elsewhere() -> None:
        estop.trip("test")
        thread = threading.Thread(target=watched.bench.robot.stop)
        thread.start()
        thread.join()

    act = watched.bench.source.act
    monkeypatch.setattr(
        watched.bench.source, "act", lambda *arguments: stop_elsewhere() if arguments[1] == 4 else act(*arguments)
    )
    assert watched.run() == set()
    assert watched.watch.trace.commands == 4
    monkeypatch.setattr(type(estop), "tripped", property(lambda self: False))
    blind = Watched(tmp_path / "blind")
    estop, watched = blind.bench.parts.estop, blind
    act = watched.bench.source.act
    monkeypatch.setattr(
        watched.bench.source, "act", lambda *arguments: stop_elsewhere() if arguments[1] == 4 else act(*arguments)
    )
    assert "after_stop" in blind.run()


@pytest.mark.parametrize("counted", [False, True])
def test_a_record_that_is_lost_is_found_unless_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    add = EpisodeLogWriter._add

    def lose(self: EpisodeLogWriter, topic, record):  # type: ignore[no-untyped-def]
        if record.step_index != 7:
            add(self, topic, record)
        elif counted:
            self._lost += 1
        else:
            self._written += 1

    monkeypatch.setattr(EpisodeLogWriter, "_add", lose)
    assert Watched(tmp_path).run() == (set() if counted else {"record_lost"})


def test_records_that_are_invented_or_changed_are_found(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert watched.run() == set()
    steps, dropped = watched.log()
    changed = json.loads(json.dumps(steps))
    changed[3]["applied_command"][1] += 1e-6
    early = json.loads(json.dumps(steps))
    early[2]["wall_time_ns"] += 1
    assert {problem.kind for problem in watched.audit(ReadLog(changed, dropped))} == {"record_invented"}
    assert {problem.kind for problem in watched.audit(ReadLog([*steps, steps[-1]], dropped))} == {"record_invented"}
    surplus = {**steps[-1], "step_index": LENGTH}
    assert {problem.kind for problem in watched.audit(ReadLog([*steps, surplus], dropped))} == {"record_invented"}
    assert {problem.kind for problem in watched.audit(ReadLog(steps[::-1], dropped))} == {"record_order"}
    assert {problem.kind for problem in watched.audit(ReadLog(early, dropped))} == {"wall_time"}
    assert {problem.kind for problem in watched.audit(ReadLog(steps, 2))} == {"statistics"}


def test_a_log_that_writes_in_the_loops_thread_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = EpisodeLogWriter.append

    def eager(self: EpisodeLogWriter, record) -> bool:  # type: ignore[no-untyped-def]
        self._disk.sync(self._part._descriptor)
        return append(self, record)

    monkeypatch.setattr(EpisodeLogWriter, "append", eager)
    assert Watched(tmp_path).run() == {"blocked"}


def real_time(directory: Path, watch: Watch, heartbeat: Heartbeat | None = None) -> Watched:
    watched = Watched(
        directory,
        loop=LoopConfig(watchdog_s=0.0),
        observation=ObservationConfig(stale=StaleCheck("off")),
        fallback=FallbackConfig((Rung("hold"), Rung("stop"))),
    )
    clock = WatchedClock(watched.watch, PERIOD_NS, PERIOD_NS, allowed_s=0.005)
    watched.watch.heartbeat = heartbeat
    watched.bench.parts = dataclasses.replace(watched.bench.parts, clock=clock)
    watched.fake._clock = clock.monotonic_ns
    return watched


def test_a_loop_that_waits_for_its_log_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = EpisodeLogWriter.append

    def slow(self: EpisodeLogWriter, record) -> bool:  # type: ignore[no-untyped-def]
        if record.step_index == 3:
            time.sleep(0.6)
        return append(self, record)

    monkeypatch.setattr(EpisodeLogWriter, "append", slow)
    assert real_time(tmp_path, make_watch()).run() == {"blocked"}


def test_a_schedule_that_lets_lateness_add_up_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = real_time(tmp_path / "anchored", make_watch())
    heartbeat = Heartbeat()
    try:
        watched.watch.heartbeat = heartbeat
        assert watched.run() == set()
        assert watched.watch.trace.ticks > LENGTH / 2

        def relative(self: RateSchedule) -> Tick:
            scheduled = self._clock.monotonic_ns() + self._period_ns
            self._clock.sleep_until(scheduled)
            return Tick(0, scheduled, self._clock.monotonic_ns(), 0)

        monkeypatch.setattr(RateSchedule, "next_tick", relative)
        assert real_time(tmp_path / "relative", make_watch(), heartbeat).run() == {"schedule"}
    finally:
        heartbeat.stop()


def serve_after_swap(directory: Path) -> tuple[list[Problem], str]:
    """An episode begun just after a swap of the server's policy: problems found, version in force."""
    directory.mkdir()
    files = [write_linear_policy(directory / f"{bias}.onnx", SPEC, bias=bias, stddev=0.01) for bias in (-0.5, 0.5)]
    old, new = (OnnxPolicy(file).policy_version for file in files)
    actions = {old: (np.full(2, -0.6), np.full(2, -0.4)), new: (np.full(2, 0.4), np.full(2, 0.6))}
    with ServerThread(files[0]) as server:
        swaps = [Swap(0.0, 0.0, old)]
        before = time.monotonic()
        server.registry.publish(files[1])
        swaps.append(Swap(before, time.monotonic(), new))
        clock = SystemClock()
        client = PolicyClient(server.endpoint, SPEC, clock=clock.monotonic_ns)
        source = ServerSource(client, timeout_s=30.0, clock=clock, patient=True)
        watched = Watched(directory, loop=LoopConfig(pace="fast", fast_timeout_s=30.0))
        parts = dataclasses.replace(
            watched.bench.parts, clock=clock, source=WatchedSource(source, watched.watch, watched.begin)
        )
        watched.bench.parts, watched.fake._clock = parts, clock.monotonic_ns
        try:
            assert watched.run() == set()
        finally:
            source.close()
        return check_policies(watched.begun, watched.log().steps, swaps, actions, "local"), new


def test_a_server_that_does_not_follow_a_swap_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve_after_swap(tmp_path / "follows")[0] == []
    monkeypatch.setattr(PolicyStore, "newest", lambda self: self._newest)
    problems, _ = serve_after_swap(tmp_path / "stays")
    assert [problem.kind for problem in problems] == ["stale_policy"]
    assert "began with" in problems[0].text


def test_an_old_policy_under_a_new_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, first = PolicyStore._load, list[OnnxPolicy]()

    def mislabel(self: PolicyStore, version: str) -> OnnxPolicy:
        """Every version acts as the first one does."""
        policy = load(self, version)
        first.append(policy)
        monkeypatch.setattr(policy, "act", first[0].act)
        return policy

    monkeypatch.setattr(PolicyStore, "_load", mislabel)
    problems, new = serve_after_swap(tmp_path / "mislabeled")
    assert len(problems) == LENGTH
    assert {problem.kind for problem in problems} == {"stale_policy"}
    assert f"is no action of {new[:12]}" in problems[0].text


def test_another_policy_in_the_middle_of_an_episode_is_found(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    act = watched.bench.source.act

    def swap(observation, step_index, deadline_ns):  # type: ignore[no-untyped-def]
        action = act(observation, step_index, deadline_ns)
        return Action(action.action, action.log_prob, "v0") if action and step_index == 9 else action

    watched.bench.source.act = swap  # type: ignore[method-assign]
    assert watched.run() == {"stale_policy"}
    found = check_policies(
        {**watched.begun},
        watched.log().steps,
        [Swap(0.0, 0.0, "v1")],
        {"v1": (np.full(2, -np.inf), np.full(2, np.inf))},
        "local",
    )
    assert found == [Problem("stale_policy", "ep: step 9 by v0")]


def test_commands_out_of_a_policys_range_are_found(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.watch.bounds.ranges["v1"] = (np.full(2, -9.0), np.full(2, 0.3))
    assert watched.run() == {"stale_policy"}


def test_the_wire_shows_goals_beyond_limits_and_motors_on_outside_episodes() -> None:
    lines = [
        {"t": 1.5, "event": "on", "id": 1},
        {"t": 2.5, "event": "on", "id": 2},
        {"t": 3.0, "event": "off", "id": 2},
    ]
    assert check_bus(lines, [(1.0, 3.0)]) == []
    assert [problem.kind for problem in check_bus(lines, [(1.0, 2.0)])] == ["bus_on"]
    assert [problem.kind for problem in check_bus([{"t": 0.0, "event": "violation", "id": 1, "goal": 9}], [])] == [
        "bus_goal"
    ]


def test_a_schedule_follows_from_its_seed_and_knows_every_fault() -> None:
    schedule = make_schedule(5, 60)
    assert schedule == make_schedule(5, 60) != make_schedule(6, 60)
    assert [int(fault.second) for fault in schedule] == list(range(60))
    assert {fault.kind for fault in schedule[: len(KINDS)]} == set(KINDS)


@pytest.mark.parametrize("violations", [[], [{"kind": "velocity", "text": "0.2 too much", "events": ["1.0 command"]}]])
def test_a_violation_makes_the_exit_code_and_tells_the_seed(
    capsys: pytest.CaptureFixture[str], violations: list[dict[str, object]]
) -> None:
    (fault,) = make_schedule(3, 1)
    code = conclude({"ticks": 10, "violations": violations}, [(1.0, fault)], "python benchmarks/soak.py --seed 3")
    output, errors = capsys.readouterr()
    assert code == len(violations)
    if violations:
        assert "VIOLATION velocity: 0.2 too much" in output
        assert fault.kind in output
        assert "1.0 command" in output
        assert "--seed 3" in errors
