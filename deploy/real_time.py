"""What keeps other programs and the kernel's paging from delaying the control loop. Linux; each part may be refused."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

from deploy.timing import pin_thread, use_real_time_priority
from mpo_robot.errors import ConfigError

_MCL_CURRENT_AND_FUTURE = 1 | 2


@dataclass(frozen=True)
class RealTimeConfig:
    """What to ask the operating system for. Real-time pace only.

    Attributes:
        priority: 1 to 99 asks for this real-time priority (SCHED_FIFO), so that other programs do not delay the loop;
            0 does not.
        lock_memory: Keep all memory of the process in RAM (mlockall), so that no page must come from the disk.
        cpus: Numbers of the CPUs that the loop's thread may run on; empty: all. Helper threads (log, watchdog) stay
            off them as long as there are others. Best together with CPUs kept free (`isolcpus`).
        required: Refuse to run if any of these is not permitted. Otherwise a line says so and the loop runs without.
    """

    priority: int = 0
    lock_memory: bool = False
    cpus: tuple[int, ...] = ()
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
    if config.priority > 0:
        problems.append(use_real_time_priority(config.priority))
    problems = [problem for problem in problems if problem]
    if problems and config.required:
        raise ConfigError(
            "loop.real_time.required is set and not everything is permitted: " + "; ".join(problems) + ". Give the "
            "process CAP_SYS_NICE and CAP_IPC_LOCK (or rtprio and memlock limits), or set required: false"
        )
    return problems


def lock_memory() -> str:
    """Lock all memory of this process, present and future, in RAM. Returns an empty text, or why it is not done."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if library.mlockall(_MCL_CURRENT_AND_FUTURE) == 0:
            return ""
        return f"no permission to lock memory: {os.strerror(ctypes.get_errno())}; raise the memlock limit"
    except (OSError, AttributeError):
        return "this system cannot lock memory"
