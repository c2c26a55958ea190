"""Every discrete task keeps the contract of `mpo_robot.types.Environment`, whatever library is behind it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from mpo_robot.errors import ConfigError, MpoRobotError
from sim.config import AtariConfig, EnvironmentConfig
from sim.discrete.atari import area_weights
from sim.discrete.classic_control import TASKS as CLASSIC
from sim.discrete.environment import DiscreteEnvironment
from sim.make import make_environment
from sim.randomization_config import RandomizationConfig, RandomizationTerm

NAMES = {f"gymnasium:{name}": "gymnasium" for name in CLASSIC} | {"ale:Pong": "ale_py", "ale:Breakout": "ale_py"}
TASKS = [
    pytest.param(task, marks=pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}"))
    for task, module in NAMES.items()
]


def make(task: str, **settings) -> DiscreteEnvironment:
    environment = make_environment(EnvironmentConfig(task, **settings))
    assert isinstance(environment, DiscreteEnvironment)
    return environment


def random_actions(environment: DiscreteEnvironment, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(environment.spec.num_actions, size=(count, 1)).astype(np.float32)


def play(environment: DiscreteEnvironment, actions: np.ndarray) -> list:
    """Observations, rewards and ends of the actions; an episode that ends is followed by the next."""
    log = []
    for action in actions:
        observation, reward, terminated, truncated, _ = environment.step(action)
        log.append((observation.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            log.append(environment.reset()[0].tobytes())
    return log


@pytest.mark.parametrize("task", TASKS)
def test_shapes_types_and_spec(task):
    environment = make(task)
    spec = environment.spec
    assert spec.num_actions == environment.game.num_actions >= 2
    assert spec.action_size == 1
    observation, info = environment.reset(seed=0)
    result = environment.step([0])
    for flat in (observation, result.observation):
        assert flat.shape == (spec.observation_size,)
        assert flat.dtype == np.float32
        assert np.isfinite(flat).all()
    assert isinstance(info, dict)
    assert [type(value) for value in result[1:]] == [float, bool, bool, dict]
    environment.close()
    environment.close()


@pytest.mark.parametrize("task", TASKS)
def test_observations_are_not_reused(task):
    environment = make(task)
    first, _ = environment.reset(seed=0)
    kept = first.copy()
    second = environment.step([1]).observation
    kept_second = second.copy()
    environment.step([1])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(second, kept_second)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_repeats_everything(task):
    logs = []
    for seed in (5, 5, 6):
        environment = make(task)
        start = environment.reset(seed=seed)[0].tolist()
        logs.append([start, play(environment, random_actions(environment, 60))])
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("steps", [0, 1, 37])
def test_a_saved_state_continues_exactly_in_a_fresh_instance(task, steps):
    environment, fresh = make(task), make(task)
    environment.reset(seed=1)
    play(environment, random_actions(environment, steps))
    state = environment.get_state()
    actions = random_actions(environment, 250 if task.startswith("gymnasium") else 50, seed=1)
    expected = play(environment, actions)
    fresh.reset(seed=77)
    play(fresh, actions[:3])
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert play(fresh, actions) == expected
    assert fresh.get_state() == environment.get_state()


def test_the_tasks_are_gymnasiums_own():
    import gymnasium

    for name in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0"):
        reference, environment = gymnasium.make(name), make(f"gymnasium:{name}")
        expected, _ = reference.reset(seed=3)
        observation, _ = environment.reset(seed=3)
        for action in random_actions(environment, 600):
            np.testing.assert_array_equal(observation, expected)
            expected, *outcome, _ = reference.step(int(action[0]))
            observation, *mine, _ = environment.step(action)
            assert mine == outcome
            if any(outcome[1:]):
                expected, observation = reference.reset()[0], environment.reset()[0]
        reference.close()


def test_termination_is_not_truncation_and_both_end_the_episode():
    environment = make("gymnasium:CartPole-v1")
    environment.reset(seed=0)
    results = [environment.step([0])]
    while not results[-1].terminated:
        results.append(environment.step([0]))
    assert not results[-1].truncated
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step([0])
    mountain = make("gymnasium:MountainCar-v0")
    mountain.reset(seed=0)
    results = [mountain.step([1]) for _ in range(200)]
    assert [result.truncated for result in results] == [False] * 199 + [True]
    assert not results[-1].terminated


def test_time_limit_and_action_repeat():
    environment = make("gymnasium:CartPole-v1", time_limit_s=0.1, action_repeat=2)
    assert environment.spec.control_dt == pytest.approx(0.04)
    environment.reset(seed=0)
    results = [environment.step([1]) for _ in range(3)]
    assert [result.reward for result in results] == [2.0, 2.0, 1.0]
    assert [result.truncated for result in results] == [False, False, True]


@pytest.mark.parametrize("task", TASKS)
def test_bad_actions_are_refused_and_change_nothing(task):
    environment = make(task)
    environment.reset(seed=3)
    state = environment.get_state()
    with pytest.raises(ValueError, match="NaN"):
        environment.step([np.nan])
    for wrong in ([0, 1], 0.0, [[0]]):
        with pytest.raises(ValueError, match="shape"):
            environment.step(wrong)
    for wrong in (-1, 0.5, environment.game.num_actions, np.inf):
        with pytest.raises(ValueError, match="index from 0 to"):
            environment.step([wrong])
    assert environment.get_state() == state


def test_step_before_reset_raises():
    with pytest.raises(RuntimeError, match="reset"):
        make("gymnasium:CartPole-v1").step([0])


def test_states_are_checked():
    cart, car = make("gymnasium:CartPole-v1"), make("gymnasium:MountainCar-v0")
    cart.reset(seed=0)
    with pytest.raises(MpoRobotError, match=r"task gymnasium:CartPole-v1, this environment is .*MountainCar"):
        car.set_state(cart.get_state())
    with pytest.raises(MpoRobotError, match="not the state"):
        cart.set_state(b"nothing")


def test_randomisation_is_refused():
    terms = RandomizationConfig((RandomizationTerm("body_mass", operation="scale", low=0.8, high=1.2),))
    for randomization in (terms, "configs/randomization/none.yaml"):
        with pytest.raises(ConfigError, match="cannot be randomised"):
            make("gymnasium:CartPole-v1", randomization=randomization)


def test_spelling_is_forgiven_and_typos_get_a_hint():
    assert make("gymnasium:cartpole-V1").spec == make("gymnasium:CartPole-v1").spec
    with pytest.raises(ConfigError, match="CartPole-v1"):
        make("gymnasium:CartPol-v1")


@pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs ale_py")
def test_atari_preprocessing():
    settings = AtariConfig(frame_skip=3, frame_stack=2, sticky_actions=0.0, full_action_space=True)
    environment = make("ale:breakout", atari=settings)
    spec = environment.spec
    assert spec.num_actions == 18
    assert spec.control_dt == pytest.approx(3 / 60)
    assert [term.name for term in spec.observation] == ["frame_0", "frame_1"]
    assert spec.observation[0].size == 84 * 84
    first, _ = environment.reset(seed=0)
    older, newer = np.split(first, 2)
    np.testing.assert_array_equal(older, newer)
    second = environment.step([1]).observation
    np.testing.assert_array_equal(np.split(second, 2)[0], newer)  # oldest first
    assert first.min() >= 0.0
    assert 0 < first.max() <= 255.0
    assert (first == np.rint(first)).all()
    weights = area_weights(210)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(weights[0, :4], [0.4, 0.4, 0.2, 0.0], atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs ale_py")
def test_atari_rewards_are_clipped_in_training_only_and_lives_end_episodes_if_wanted():
    config = EnvironmentConfig("ale:Qbert", atari=AtariConfig(sticky_actions=0.0, life_loss_terminates=True))
    training, evaluation = make_environment(config), make_environment(config.nominal())
    results = []
    for environment in (training, evaluation):
        environment.reset(seed=0)
        results.append([])
        for action in random_actions(environment, 200):
            results[-1].append(environment.step(action))
            if results[-1][-1].terminated:
                break
    assert len(results[0]) < len(results[1])  # a life before the whole game
    scores = [result.reward for result in results[1]]
    assert max(scores) >= 25.0
    for clipped, score in zip(results[0], scores):
        assert clipped.reward == np.sign(score)
        assert clipped.info["score"] == score


def test_an_unknown_game_gets_a_hint():
    pytest.importorskip("ale_py")
    with pytest.raises(ConfigError, match="pong"):
        make("ale:Pomg")
