from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo_robot.config import load_config
from mpo_robot.errors import ConfigError
from sim.config import EnvironmentConfig
from sim.distributions import combine, draw
from sim.make import make_environment
from sim.randomization_config import PARAMETERS, RandomizationConfig, RandomizationTerm

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "randomization"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"parameter": "body_mas"}, "did you mean body_mass"),
        ({"parameter": "xyz"}, "known: body_mass"),
        ({"parameter": "body_mass", "low": 1}, "uniform needs low and high"),
        ({"parameter": "body_mass", "low": 2, "high": 1}, "low must not exceed high"),
        ({"parameter": "body_mass", "low": -0.5, "high": 1}, "low must be at least 0"),
        ({"parameter": "body_mass", "low": 0, "high": 1}, "low must be above 0"),
        ({"parameter": "body_mass", "low": 1, "high": float("inf")}, "high must be finite"),
        ({"parameter": "body_mass", "low": 1, "high": 2, "mean": 1}, "mean and stddev are for a gaussian"),
        ({"parameter": "gravity", "distribution": "gaussian", "low": 1}, "a gaussian needs mean"),
        ({"parameter": "gravity", "distribution": "gaussian", "mean": 1, "stddev": -1}, "a gaussian needs mean"),
        ({"parameter": "body_mass", "distribution": "gaussian", "mean": 1, "stddev": 1}, "needs `low`"),
        (
            {"parameter": "dropped_observations", "distribution": "gaussian", "mean": 0, "stddev": 1, "low": 0},
            "needs `high`",
        ),
        ({"parameter": "gravity", "distribution": "log_uniform", "low": 0, "high": 1}, "log_uniform needs low > 0"),
        ({"parameter": "action_delay", "low": 0.5, "high": 1}, "whole physics steps"),
        ({"parameter": "action_delay", "distribution": "gaussian", "mean": 1, "stddev": 1}, "whole physics steps"),
        ({"parameter": "action_delay", "low": -1, "high": 1}, "low must be at least 0"),
        ({"parameter": "dropped_observations", "low": 0, "high": 1.5}, "high must be at most 1"),
        ({"parameter": "body_com", "operation": "scale", "low": 1, "high": 1}, "operation must be add or abs"),
        ({"parameter": "initial_pose", "mode": "startup", "low": 1, "high": 1}, "mode must be reset"),
        ({"parameter": "gravity", "mode": "interval", "low": 1, "high": 1}, "mode interval needs interval_s"),
        ({"parameter": "gravity", "interval_s": (1, 2), "low": 1, "high": 1}, "mode reset has no interval_s"),
        ({"parameter": "observation_noise", "interval_s": (1, 2), "low": 1, "high": 1}, "has no interval_s"),
        (
            {"parameter": "gravity", "mode": "interval", "interval_s": (2, 1), "low": 1, "high": 1},
            "ordered numbers of seconds",
        ),
        ({"parameter": "gravity", "select": ("world",), "low": 1, "high": 1}, "nothing to select"),
        ({"parameter": "push_force", "interval_s": (1, 2), "low": 1, "high": 1}, "duration_steps is for push_force"),
        ({"parameter": "gravity", "duration_steps": 3, "low": 1, "high": 1}, "duration_steps is for push_force"),
        (
            {"parameter": "push_force", "interval_s": (1, 2), "low": 1, "high": 1, "duration_steps": 0},
            "at least 1",
        ),
        ({"parameter": "gravity", "components": (-1,), "low": 1, "high": 1}, "components must be indices from 0"),
    ],
)
def test_a_malformed_term_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        RandomizationTerm(**settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"parameter": "body_mass", "select": ("torzo",)}, "nothing is called 'torzo': did you mean 'torso'"),
        ({"parameter": "body_mass", "select": ("[",)}, "neither a name nor a regular expression"),
        ({"parameter": "body_mass", "select": ("qqqqqq",)}, "known: world, torso"),
        ({"parameter": "body_mass", "select": ("world",)}, "world has no mass"),
        ({"parameter": "body_mass", "operation": "add", "low": -3}, "would bring right_leg to -0.2186"),
        ({"parameter": "joint_damping", "operation": "add", "low": -0.2}, "would bring rootz to -0.2"),
        ({"parameter": "geom_friction", "components": (3,)}, "components go from 0 to 2"),
        ({"parameter": "joint_damping", "components": (1,)}, "components go from 0 to 0"),
        ({"parameter": "initial_pose", "components": (1,)}, "components go from 0 to 0"),
        ({"parameter": "observation_bias", "select": ("hight",)}, "did you mean 'height'"),
        ({"parameter": "observation_bias", "select": ("height",), "components": (1,)}, "components 0 to 0"),
        ({"parameter": "push_velocity", "interval_s": (1, 2)}, "name in `select` which joint is pushed"),
    ],
)
def test_a_term_that_does_not_fit_the_model_is_refused(settings, text):
    config = RandomizationConfig((RandomizationTerm(**{"low": 1.0, "high": 1.0, **settings}),))
    with pytest.raises(ConfigError, match=text):
        make_environment(EnvironmentConfig("dm_control:walker-walk", config))


def test_delays_are_given_once():
    twice = RandomizationConfig((RandomizationTerm("action_delay", low=0, high=1),) * 2)
    with pytest.raises(ConfigError, match="action_delay is given 2 times"):
        make_environment(EnvironmentConfig("dm_control:walker-walk", twice))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_files_fit_their_tasks(path):
    assert load_config(RandomizationConfig, path).terms or path.stem == "none"
    task = "dm_control:cartpole-swingup" if "cartpole" in path.stem else "dm_control:walker-walk"
    environment = make_environment(EnvironmentConfig(task, str(path)))
    environment.reset(seed=0)
    assert np.isfinite(environment.step(np.zeros(environment.spec.action_size)).observation).all()


finite = st.floats(-100, 100)
positive = st.floats(1e-3, 100)
seeds = st.integers(0, 2**32)


@given(finite, finite, seeds)
def test_uniform_draws_stay_within_bounds(first, second, seed):
    term = RandomizationTerm("gravity", low=min(first, second), high=max(first, second))
    values = draw(term, np.random.default_rng(seed), (50,))
    assert np.all((term.low <= values) & (values <= term.high))


@given(positive, positive, seeds)
def test_log_uniform_draws_stay_within_bounds(first, second, seed):
    low, high = min(first, second), max(first, second)
    term = RandomizationTerm("body_mass", distribution="log_uniform", low=low, high=high)
    values = draw(term, np.random.default_rng(seed), (50,))
    assert np.all((low <= values) & (values <= high))


@given(finite, st.floats(0, 50), finite, finite, seeds)
def test_gaussian_draws_are_clipped(mean, stddev, first, second, seed):
    low, high = min(first, second), max(first, second)
    term = RandomizationTerm("gravity", distribution="gaussian", mean=mean, stddev=stddev, low=low, high=high)
    values = draw(term, np.random.default_rng(seed), (50,))
    assert np.all((low <= values) & (values <= high))


@given(st.integers(0, 20), st.integers(0, 20), seeds)
def test_delays_are_whole_and_both_bounds_occur(first, second, seed):
    low, high = min(first, second), max(first, second)
    values = draw(RandomizationTerm("action_delay", low=low, high=high), np.random.default_rng(seed), (2000,))
    assert set(values.tolist()) == set(range(low, high + 1))


def test_distributions_have_the_stated_shape():
    generator = np.random.default_rng(0)
    values = draw(RandomizationTerm("gravity", low=2, high=6), generator, (20_000,))
    assert values.mean() == pytest.approx(4, abs=0.05)
    assert values.std() == pytest.approx(4 / 12**0.5, abs=0.03)
    term = RandomizationTerm("gravity", distribution="log_uniform", low=0.25, high=4)
    assert np.median(draw(term, generator, (20_000,))) == pytest.approx(1, abs=0.05)
    term = RandomizationTerm("gravity", distribution="gaussian", mean=3, stddev=2)
    values = draw(term, generator, (20_000,))
    assert (values.mean(), values.std()) == pytest.approx((3, 2), abs=0.06)


def test_operations():
    default, draws = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    assert combine("abs", default, draws).tolist() == [3, 5]
    assert combine("scale", default, draws).tolist() == [3, 10]
    assert combine("add", default, draws).tolist() == [4, 7]


def test_every_parameter_has_an_allowed_default():
    for name, info in PARAMETERS.items():
        assert info.default_mode in info.modes, name
        assert set(info.operations) <= {"abs", "scale", "add"}, name
        assert set(info.modes) <= {"startup", "reset", "interval"}, name
