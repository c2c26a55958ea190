"""The soak's checker finds policies that act where they must not: each test breaks the implementation."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from deploy.action_source import Action, ServerSource
from deploy.client import PolicyClient
from deploy.loop_parts import LoopConfig
from deploy.onnx_policy import OnnxPolicy
from deploy.policy_store import PolicyStore
from deploy.timing import SystemClock
from tests.support.loop_bench import SPEC
from tests.support.onnx_files import write_linear_policy
from tests.support.serving import ServerThread
from tests.support.soak_audit import Problem, Swap, check_policies
from tests.support.soak_bench import LENGTH, Watched
from tests.support.soak_watch_loop import WatchedSource


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
