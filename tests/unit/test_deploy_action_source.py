from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from deploy.action_source import LocalSource, ServerSource
from deploy.client import ActionReply, ClientState, ClientStatistics
from deploy.onnx_policy import OnnxPolicy, gaussian_log_prob
from tests.support.fake_clock import FakeClock
from tests.support.onnx_files import small_spec, write_linear_policy

MS = 1_000_000
OBSERVATION = np.ones(3, np.float32)


@pytest.fixture
def policy(tmp_path: Path) -> OnnxPolicy:
    return OnnxPolicy(write_linear_policy(tmp_path / "policy.onnx", small_spec(), stddev=0.5))


def test_local_sample_has_its_exact_density(policy: OnnxPolicy) -> None:
    source = LocalSource(policy, stochastic=True, seed=1)
    assert source.begin_episode("x") == policy.policy_version
    first, second = source.act(OBSERVATION, 0, 0), source.act(OBSERVATION, 1, 0)
    assert first is not None
    assert second is not None
    assert not np.array_equal(first.action, second.action)
    assert first.log_prob == pytest.approx(gaussian_log_prob(first.action, np.zeros(2), np.full(2, 0.5)), abs=1e-5)
    assert first.policy_version == policy.policy_version
    again = LocalSource(policy, stochastic=True, seed=1).act(OBSERVATION, 0, 0)
    assert again is not None
    np.testing.assert_array_equal(again.action, first.action)


def test_local_mean_has_no_density(policy: OnnxPolicy) -> None:
    action = LocalSource(policy, stochastic=False).act(OBSERVATION, 0, 0)
    assert action is not None
    np.testing.assert_allclose(action.action, 0.0, atol=1e-6)
    assert math.isnan(action.log_prob)


def test_local_policy_that_fails_gives_no_action(policy: OnnxPolicy) -> None:
    source = LocalSource(policy, stochastic=True)
    assert source.act(OBSERVATION * np.float32(np.nan), 0, 0) is None
    assert "NaN" in source.last_error


class FlakyClient:
    """Ready again after `lost` attempts to reconnect."""

    def __init__(self, clock: FakeClock, lost: int) -> None:
        self.clock, self.lost = clock, lost
        self.statistics = ClientStatistics()
        self.state = ClientState.READY
        self.spec = small_spec()
        self.asked: list[np.ndarray] = []

    def act(self, observation: np.ndarray, step_index: int, deadline_ns: int) -> ActionReply | None:
        self.asked.append(observation)
        if self.lost > 0:
            return None
        return ActionReply(np.zeros(2, np.float32), math.nan, "v", 1, 1, 1)

    def begin_episode(self, episode_id: str, timeout_s: float) -> str:
        return "v"

    def reconnect_if_needed(self) -> bool:
        self.lost -= 1
        return self.lost <= 0


@pytest.mark.parametrize(("patient", "lost", "answered"), [(False, 1, False), (True, 5, True), (True, 50, False)])
def test_only_a_patient_source_waits_for_a_lost_server(patient: bool, lost: int, answered: bool) -> None:
    clock = FakeClock()
    source = ServerSource(FlakyClient(clock, lost), 1.0, clock, patient)  # type: ignore[arg-type]
    start = clock.monotonic_ns()
    action = source.act(OBSERVATION, 0, start + 50 * MS)
    assert (action is not None) == answered
    assert clock.monotonic_ns() - start <= 50 * MS
    if not patient:
        assert clock.monotonic_ns() == start


def test_server_is_asked_once_before_the_first_tick() -> None:
    client = FlakyClient(FakeClock(), 0)
    source = ServerSource(client, 1.0, client.clock)  # type: ignore[arg-type]
    assert source.begin_episode("x") == "v"
    (asked,) = client.asked
    np.testing.assert_array_equal(asked, np.zeros(3))


def test_local_policy_is_run_once_before_the_first_tick_without_drawing_numbers(policy: OnnxPolicy) -> None:
    calls: list[bool] = []
    act = policy.act

    def spy(observation: np.ndarray, stochastic: bool, rng: object = None):  # type: ignore[no-untyped-def]
        calls.append(stochastic)
        return act(observation, stochastic, rng)  # type: ignore[arg-type]

    policy.act = spy  # type: ignore[method-assign, assignment]
    warm = LocalSource(policy, stochastic=True, seed=1)
    warm.begin_episode("x")
    assert calls == [False]
    action, cold = warm.act(OBSERVATION, 0, 0), LocalSource(policy, stochastic=True, seed=1).act(OBSERVATION, 0, 0)
    assert action is not None
    assert cold is not None
    np.testing.assert_array_equal(action.action, cold.action)


def test_cause_of_a_missing_action_is_told() -> None:
    client = FlakyClient(FakeClock(), 99)
    source = ServerSource(client, 1.0, client.clock)  # type: ignore[arg-type]
    causes = []
    for spoil in ("", "bad_replies", "error_replies"):

        def spoiled(*arguments: object, name: str = spoil) -> None:
            if name:
                setattr(client.statistics, name, getattr(client.statistics, name) + 1)

        client.act = spoiled  # type: ignore[method-assign, assignment]
        source.act(OBSERVATION, 0, 0)
        causes.append(source.miss_cause)
    client.act = lambda *_: None  # type: ignore[method-assign]
    client.state = ClientState.LOST
    source.act(OBSERVATION, 0, 0)
    causes.append(source.miss_cause)
    assert causes == ["no_reply", "bad_reply", "error_reply", "disconnected"]
