"""What keeps other programs, the kernel's paging and sleeping CPUs from delaying the control loop.

Linux; each part may be refused.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from deploy.timing import pin_thread, use_real_time_priority
from mpo_robot.errors import ConfigError

_MCL_CURRENT_AND_FUTURE = 1 | 2
_CPU_LATENCY = Path("/dev/cpu_dma_latency")  # PM QoS: the request holds while the file is open
_NO_LATENCY = bytes(4)  # 0 us, a 32-bit number

_awake: dict[Path, int] = {}  # the open file


@dataclass(frozen=True)
class RealTimeConfig:
    """What to ask the operating system for. Real-time pace only.

    Attributes:
        priority: 1 to 99 asks for this real-time priority (SCHED_FIFO), so that other programs do not delay the loop;
            0 does not.
        lock_memory: Keep all memory of the process in RAM (mlockall), so that no page must come from the disk.
        cpus: Numbers of the CPUs that the loop's thread may run on; empty: all. Helper threads (log, watchdog) stay
            off them as long as there are others. Best together with CPUs kept free (`isolcpus`).
        keep_cpus_awake: While this process lives, idle CPUs of the machine wait busily instead of going to sleep: all
            threads wake up sooner. Costs power and heat; not for a robot on a battery that idles a lot.
        required: Refuse to run if any of these is not permitted. Otherwise a line says so and the loop runs without.
    """

    priority: int = 0
    lock_memory: bool = False
    cpus: tuple[int, ...] = ()
    keep_cpus_awake: bool = False
    required: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.priority <= 99:
            raise ConfigError(f"loop.real_time.priority must be 0 to 99, got {self.priority}")
        if any(cpu < 0 for cpu in self.cpus):
            raise ConfigError(f"loop.real_time.cpus must not be negative, got {list(self.cpus)}")


def use_real_time(config: RealTimeConfig) -> list[str]:
    """Apply what is asked for to the calling thread and process.

    Call it before other threads are started: they inherit the priority, and those of the transport must not be
    delayed either.

    Returns:
        Why parts could not be had, one line each; empty if all is as asked for.

    Raises:
        ConfigError: some part could not be had, and `required` is set.
    """
    problems: list[str] = []
    if config.lock_memory:
        problems.append(lock_memory())
    if config.cpus:
        problems.append(pin_thread(config.cpus))
    if config.keep_cpus_awake:
        problems.append(keep_cpus_awake())
    if config.priority > 0:
        problems.append(use_real_time_priority(config.priority))
    problems = [problem for problem in problems if problem]
    if problems and config.required:
        raise ConfigError(
            "loop.real_time.required is set and not everything is permitted: " + "; ".join(problems) + ". Give the "
            "process CAP_SYS_NICE and CAP_IPC_LOCK (or rtprio and memlock limits), for keep_cpus_awake write access to "
            f"{_CPU_LATENCY}, or set required: false"
        )
    return problems


def report_lines(config: RealTimeConfig, problems: list[str]) -> list[str]:
    """What `use_real_time` came to, for people: each part that could not be had, or else all that is in force."""
    if problems:
        return [f"note     {problem}" for problem in problems]
    parts = [f"priority {config.priority}"] if config.priority else []
    parts += ["memory locked"] if config.lock_memory else []
    parts += ["CPUs awake"] if config.keep_cpus_awake else []
    parts += [f"CPU {', '.join(map(str, config.cpus))}"] if config.cpus else []
    return [f"realtime {', '.join(parts)}"] if parts else []


def lock_memory() -> str:
    """Lock all memory of this process, present and future, in RAM. Returns an empty text, or why it is not done."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if library.mlockall(_MCL_CURRENT_AND_FUTURE) == 0:
            return ""
        return f"no permission to lock memory: {os.strerror(ctypes.get_errno())}; raise the memlock limit"
    except (OSError, AttributeError):
        return "this system cannot lock memory"


def keep_cpus_awake() -> str:
    """Keep idle CPUs of the machine from sleeping until this process ends, however it ends (Linux PM QoS).

    Returns an empty text, or why it is not done.
    """
    if _CPU_LATENCY in _awake:
        return ""
    try:
        file = os.open(_CPU_LATENCY, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, _NO_LATENCY)
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        return f"cannot keep the CPUs awake: {_CPU_LATENCY}: {error.strerror}"
    _awake[_CPU_LATENCY] = file
    return ""


def let_cpus_sleep() -> None:
    """Take `keep_cpus_awake` back."""
    if (file := _awake.pop(_CPU_LATENCY, None)) is not None:
        os.close(file)
