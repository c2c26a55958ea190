from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import real_time, timing
from deploy.loop_parts import LoopConfig
from deploy.real_time import RealTimeConfig, keep_cpus_awake, let_cpus_sleep, lock_memory, use_real_time
from deploy.timing import give_way, pin_thread
from mpo_robot.errors import ConfigError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Calls to the operating system, which permits nothing."""
    seen: list[object] = []

    def record(name: str) -> Callable[..., str]:
        def call(*arguments: object) -> str:
            seen.append((name, *arguments))
            return f"no permission for {name}"

        return call

    monkeypatch.setattr(real_time, "lock_memory", record("memory"))
    monkeypatch.setattr(real_time, "pin_thread", record("cpus"))
    monkeypatch.setattr(real_time, "use_real_time_priority", record("priority"))
    return seen


def test_nothing_is_asked_for_by_default(calls: list[object]) -> None:
    assert use_real_time(RealTimeConfig(required=True)) == []
    assert calls == []


def test_each_field_asks_for_its_part_and_refusals_are_told(calls: list[object]) -> None:
    problems = use_real_time(RealTimeConfig(priority=7, lock_memory=True, cpus=(1, 2)))
    assert calls == [("memory",), ("cpus", (1, 2)), ("priority", 7)]
    assert problems == ["no permission for memory", "no permission for cpus", "no permission for priority"]


def test_required_refuses_to_go_on(calls: list[object]) -> None:
    with pytest.raises(ConfigError, match=r"no permission for memory.*CAP_IPC_LOCK"):
        use_real_time(RealTimeConfig(lock_memory=True, required=True))


def test_older_key_of_the_priority_still_counts() -> None:
    assert LoopConfig(realtime_priority=20).operating_system == RealTimeConfig(priority=20)
    both = LoopConfig(realtime_priority=20, real_time=RealTimeConfig(priority=30, lock_memory=True))
    assert both.operating_system == RealTimeConfig(priority=30, lock_memory=True)


@pytest.mark.parametrize("settings", [{"priority": 100}, {"priority": -1}, {"cpus": (-1,)}])
def test_senseless_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=r"loop\.real_time"):
        RealTimeConfig(**settings)


def test_missing_permission_to_lock_memory_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not really locked: the whole test process would be.
    class Library:
        result = 0

        def mlockall(self, flags: int) -> int:
            assert flags == 3
            return self.result

    monkeypatch.setattr(real_time.ctypes, "CDLL", lambda *_, **__: Library())
    assert lock_memory() == ""
    monkeypatch.setattr(Library, "result", -1)
    monkeypatch.setattr(real_time.ctypes, "get_errno", lambda: 1)
    assert "no permission" in lock_memory()
    assert "memlock" in lock_memory()


@pytest.fixture
def latency_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /dev/cpu_dma_latency."""
    device = tmp_path / "cpu_dma_latency"
    device.touch()
    monkeypatch.setattr(real_time, "_CPU_LATENCY", device)
    return device


def is_open(path: Path) -> bool:
    """Whether this process has the file open."""
    return any(Path(link).resolve() == path for link in Path("/proc/self/fd").iterdir())


def test_awake_cpus_are_asked_for_until_they_may_sleep(latency_device: Path) -> None:
    assert use_real_time(RealTimeConfig(keep_cpus_awake=True, required=True)) == []
    assert is_open(latency_device)
    assert keep_cpus_awake() == ""  # once is enough
    assert latency_device.read_bytes() == bytes(4)  # 0 us, as the kernel wants it
    let_cpus_sleep()
    assert not is_open(latency_device)
    let_cpus_sleep()


def test_cpus_that_cannot_be_kept_awake_are_explained(latency_device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latency_device.unlink()
    assert str(latency_device) in keep_cpus_awake()
    with pytest.raises(ConfigError, match="write access to"):
        use_real_time(RealTimeConfig(keep_cpus_awake=True, required=True))
    full = Path("/dev/full")
    if full.exists():
        monkeypatch.setattr(real_time, "_CPU_LATENCY", full)
        assert "No space left" in keep_cpus_awake()
        assert not is_open(full)


def in_thread(work: Callable[[], None]) -> None:
    """Affinity is a thread's own, and it would keep it."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_pinned_thread_keeps_its_cpu_and_helpers_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_helper_cpus", set())
    available = os.sched_getaffinity(0)
    chosen = min(available)
    seen: list[object] = []

    def helper() -> None:
        give_way()
        seen.append(os.sched_getaffinity(0))

    def loop() -> None:
        seen.append(pin_thread([chosen]))
        seen.append(os.sched_getaffinity(0))
        in_thread(helper)

    in_thread(loop)
    assert seen == ["", {chosen}, (available - {chosen}) or {chosen}]


def test_cpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_helper_cpus", set())
    seen: list[str] = []
    in_thread(lambda: seen.append(pin_thread([100_000])))
    in_thread(lambda: seen.append(pin_thread([min(os.sched_getaffinity(0)), 1000])))
    assert "100000" in seen[0]
    assert "CPU 1000 is not there" in seen[1]
