"""Time several ways of doing the same thing so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Way(NamedTuple):
    """One of the ways that are compared.

    Attributes:
        call: Called with the number of the call.
        server_pid: Process id of its server.
        around: Makes the context in which each round is timed.
    """

    call: Callable[[int], Any]
    server_pid: int
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass
class Timings:
    """What was measured of one way.

    Attributes:
        rounds_ns: Wall time of each call, one array [calls] per round.
        client_cpu_ns: CPU time of this process, all threads, during the timed calls.
        server_cpu_ns: CPU time of the server process during the same.
    """

    rounds_ns: list[npt.NDArray[np.int64]] = field(default_factory=list)
    client_cpu_ns: int = 0
    server_cpu_ns: int = 0

    @property
    def calls_ns(self) -> npt.NDArray[np.int64]:
        """Wall time of every call [rounds * calls]."""
        return np.concatenate(self.rounds_ns)


def cpu_time_ns(pid: int) -> int:
    """CPU time of a process and all its threads since it started (Linux); 0 where that cannot be asked."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)  # what clock_getcpuclockid gives
    except (OSError, AttributeError):
        return 0


def interleave(ways: Mapping[str, Way], rounds: int, calls: int, warm_up: int) -> dict[str, Timings]:
    """Time `rounds` rounds, in each of which every way makes `warm_up` untimed and then `calls` timed calls.

    The order shifts by one way from round to round, so that none is always first or always behind the same one.

    Args:
        ways: By name.
        rounds: At least 1.
        calls: Per round and way.
        warm_up: Untimed calls before them: caches and sleeping threads are those of this way by then.
    """
    names, result = list(ways), {name: Timings() for name in ways}
    gc.collect()
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            with ways[name].around():
                _measure(ways[name], calls, warm_up, result[name])
    return result


def _measure(way: Way, calls: int, warm_up: int, into: Timings) -> None:
    call, pid = way.call, way.server_pid
    for index in range(warm_up):
        call(index)
    times = np.empty(calls, np.int64)
    server_ns, client_ns = cpu_time_ns(pid), time.process_time_ns()
    for index in range(calls):
        start = time.perf_counter_ns()
        call(index)
        times[index] = time.perf_counter_ns() - start
    into.client_cpu_ns += time.process_time_ns() - client_ns
    into.server_cpu_ns += cpu_time_ns(pid) - server_ns
    into.rounds_ns.append(times)


def summarize(timings: Timings) -> dict[str, float]:
    """Percentiles of all calls and CPU time per call, in microseconds."""
    values = timings.calls_ns / 1e3
    p10, p50, p99 = np.percentile(values, [10, 50, 99])
    return {
        "calls": values.size,
        "min_us": values.min(),
        "p10_us": p10,
        "p50_us": p50,
        "p99_us": p99,
        "max_us": values.max(),
        "client_cpu_us": timings.client_cpu_ns / 1e3 / values.size,
        "server_cpu_us": timings.server_cpu_ns / 1e3 / values.size,
    }


def compare(ours: Timings, other: Timings) -> dict[str, float]:
    """The other's p50 in ours: of all calls, and the median, 10th and 90th percentile over the rounds.

    The rounds were measured next to each other, so their ratios hold on a machine whose speed drifts.
    """
    ratios = [np.median(b) / np.median(a) for a, b in zip(ours.rounds_ns, other.rounds_ns)]
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    return {
        "ratio_p50": float(np.median(other.calls_ns) / np.median(ours.calls_ns)),
        "ratio_by_round_p50": float(middle),
        "ratio_by_round_p10": float(low),
        "ratio_by_round_p90": float(high),
    }
