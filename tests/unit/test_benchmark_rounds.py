"""What the latency benchmarks share: taking turns, percentiles, CPU time, and the hooks of the peers."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks._peers import Packer, Policy, pack_array, require, unpack_array
from benchmarks._rounds import Timings, Way, compare, cpu_time_ns, interleave, summarize
from mpo_robot.errors import ConfigError
from tests.support.onnx_files import small_spec, write_linear_policy


def test_the_ways_take_turns_and_none_is_always_first() -> None:
    order: list[str] = []
    ways = {name: Way(lambda index, name=name: order.append(f"{name}{index}"), os.getpid()) for name in "abc"}
    timings = interleave(ways, rounds=3, calls=2, warm_up=1)
    rounds = ["".join(order[start : start + 9]) for start in (0, 9, 18)]
    assert rounds == ["a0a0a1b0b0b1c0c0c1", "b0b0b1c0c0c1a0a0a1", "c0c0c1a0a0a1b0b0b1"]
    assert all(timings[name].calls_ns.shape == (6,) for name in "abc")  # the warm-up is not among them


def test_each_round_is_timed_in_the_context_of_its_way() -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        seen.append("open")
        yield
        seen.append("close")

    ways = {name: Way(lambda _, name=name: seen.append(name), os.getpid()) for name in "ab"}
    ways["a"] = ways["a"]._replace(around=around)
    interleave(ways, rounds=2, calls=1, warm_up=1)
    assert seen == ["open", "a", "a", "close", "b", "b", "b", "b", "open", "a", "a", "close"]


def test_percentiles_and_cpu_time_are_per_call() -> None:
    timings = Timings([np.array([1000, 3000]), np.array([2000, 4000])], client_cpu_ns=8000, server_cpu_ns=4000)
    row = summarize(timings)
    assert (row["calls"], row["min_us"], row["p50_us"], row["max_us"]) == (4, 1.0, 2.5, 4.0)
    assert (row["client_cpu_us"], row["server_cpu_us"]) == (2.0, 1.0)


def test_ratios_by_round_are_not_moved_by_a_slow_spell() -> None:
    ours = Timings(
        [np.array([100, 100]), np.array([100, 100]), np.array([900, 900])]
    )  # the machine was busy in round 3
    other = Timings([np.array([150, 150]), np.array([150, 150]), np.array([1350, 1350])])
    ratios = compare(ours, other)
    assert ratios["ratio_by_round_p50"] == ratios["ratio_by_round_p10"] == ratios["ratio_by_round_p90"] == 1.5


def test_cpu_time_of_a_process_is_its_own() -> None:
    before = cpu_time_ns(os.getpid())
    if before == 0:
        pytest.skip("this system cannot tell the CPU time of a process")
    until = time.process_time_ns() + 20_000_000
    while time.process_time_ns() < until:
        pass
    assert cpu_time_ns(os.getpid()) - before >= 19_000_000
    assert cpu_time_ns(2**22 + 1) == 0  # no such process


def test_arrays_survive_msgpack_as_openpi_sends_them() -> None:
    msgpack = pytest.importorskip("msgpack")
    sent = {"observation": np.array([1.5, -2.0], np.float32), "log_prob": np.float64(0.25), "n": 3}
    got = msgpack.unpackb(msgpack.packb(sent, default=pack_array), object_hook=unpack_array)
    np.testing.assert_array_equal(got["observation"], sent["observation"])
    assert got["observation"].dtype == np.float32
    assert (got["log_prob"], got["n"]) == (0.25, 3)
    with pytest.raises(TypeError):
        pack_array(object())


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(ConfigError, match=r"mpo-robot\[bench\]"):
        require("no_such_package_anywhere")


def test_the_lean_packer_calls_the_policy_once_per_request(tmp_path: Path) -> None:
    pytest.importorskip("msgpack")
    packer = Packer()
    policy = Policy(write_linear_policy(tmp_path / "p.onnx", small_spec(), bias=0.5, stddev=1e-6))
    reply = packer.reply(policy, packer.request(np.zeros(3, np.float32)))
    np.testing.assert_allclose(packer.action(reply), [0.5, 0.5], atol=1e-4)
    assert packer.unpack(reply)["log_prob"] == pytest.approx(2 * 12.9, abs=10)  # of a very narrow Gaussian
