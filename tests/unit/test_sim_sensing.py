"""Noise and biases of readings: one draw per reading, the present bias, and exact continuation."""

from __future__ import annotations

import numpy as np
import pytest

from mpo_robot.specs import TermSpec
from sim.randomization_config import RandomizationTerm
from sim.sensing import Sensing, bind_observation

TERMS = (TermSpec("angle", 2), TermSpec("speed", 1))
STATE = np.array([1.0, 2.0, 3.0], np.float32)


def noise(**settings) -> RandomizationTerm:
    return RandomizationTerm("observation_noise", distribution="gaussian", **{"mean": 0.0, "stddev": 1.0, **settings})


def sensing_with(*terms: RandomizationTerm) -> tuple[Sensing, list]:
    sensing, biases = Sensing(3), []
    for term in terms:
        bound, places = bind_observation(TERMS, term)
        if term.parameter == "observation_bias":
            bound.draw(np.random.default_rng(1))
            sensing.add_bias(bound, places)
            biases.append(bound)
        else:
            sensing.add_noise(bound, places)
    sensing.seed(0)
    sensing.use_biases()
    return sensing, biases


def readings(sensing: Sensing, count: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.array([sensing.pass_on(STATE, step, generator) for step in range(count)])


def test_every_reading_has_a_noise_of_its_own_with_the_stated_moments():
    sensing, _ = sensing_with(noise(select=("angle",), mean=0.5, stddev=0.2))
    errors = readings(sensing, 4000) - STATE
    assert len(np.unique(errors[:, 0])) > 3990
    np.testing.assert_allclose(errors[:, :2].mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(errors[:, :2].std(0), 0.2, atol=0.01)
    assert abs(np.corrcoef(errors[:-1, 0], errors[1:, 0])[0, 1]) < 0.05
    assert abs(np.corrcoef(errors[:, 0], errors[:, 1])[0, 1]) < 0.05
    np.testing.assert_array_equal(errors[:, 2], 0)


def test_a_shared_noise_is_the_same_everywhere():
    sensing, _ = sensing_with(noise(shared=True))
    errors = readings(sensing, 40) - STATE
    np.testing.assert_allclose(errors, errors[:, :1].repeat(3, 1), atol=1e-6)


def test_scales_and_offsets_combine_in_the_order_of_the_terms():
    add = RandomizationTerm("observation_bias", low=10.0, high=10.0)
    double = RandomizationTerm("observation_noise", operation="scale", low=2.0, high=2.0, select=("speed",))
    sensing, _ = sensing_with(add, double)
    np.testing.assert_allclose(readings(sensing, 3), [[11, 12, 26]] * 3)
    sensing, _ = sensing_with(RandomizationTerm("observation_bias", operation="scale", low=3.0, high=3.0), add)
    np.testing.assert_allclose(readings(sensing, 2), [[13, 16, 19]] * 2)


@pytest.mark.parametrize("with_noise", [False, True])
def test_a_new_bias_holds_from_the_next_reading(with_noise):
    bias = RandomizationTerm("observation_bias", low=-1.0, high=1.0)
    terms = (bias, noise(stddev=0.0)) if with_noise else (bias,)
    sensing, (bound,) = sensing_with(*terms)
    before = readings(sensing, 5)
    bound.draw(np.random.default_rng(2))
    sensing.use_biases()
    after = readings(sensing, 300)
    np.testing.assert_allclose(before, np.broadcast_to(before[0], before.shape))
    np.testing.assert_allclose(after, np.broadcast_to(STATE + bound.draws[:, 0], after.shape), rtol=1e-6)
    assert not np.allclose(after[0], before[0])


@pytest.mark.parametrize("taken", [0, 1, 255, 256, 257])
def test_the_noise_continues_exactly_wherever_it_was_saved(taken):
    terms = (RandomizationTerm("observation_bias", low=-1.0, high=1.0), noise(), noise(stddev=0.1, select=("speed",)))
    sensing, _ = sensing_with(*terms)
    sensing.start(STATE)
    readings(sensing, taken)
    values, arrays = sensing.state()
    expected = readings(sensing, 600)
    other, _ = sensing_with(*terms)
    other.seed(9)
    other.start(STATE)
    other.set_state(values, {name: array.copy() for name, array in arrays.items()})
    np.testing.assert_array_equal(readings(other, 600), expected)


def test_a_reading_is_never_the_state_itself():
    sensing, _ = sensing_with()
    reading = sensing.pass_on(STATE, 0, np.random.default_rng(0))
    assert reading is not STATE
    np.testing.assert_array_equal(reading, STATE)
