"""Running statistics against NumPy on all data at once, and exact restore."""

import json

import numpy as np
import pytest

from mpo_robot.normalization import ReturnScale, RunningNormalizer


def data(count=200, size=3, seed=0):
    return (np.random.default_rng(seed).standard_normal((count, size)) * [1.0, 10.0, 0.01] + [5.0, -100.0, 0.0]).astype(
        np.float32
    )


def statistics(normalizer):
    return normalizer.mean, normalizer.squares / normalizer.count


@pytest.mark.parametrize("cuts", [[], [1], [50, 51, 120], [0, 200]])
def test_batches_and_single_updates_agree_with_numpy(cuts):
    observations = data()
    batched, single = RunningNormalizer(3), RunningNormalizer(3)
    for part in np.split(observations, cuts):
        batched.update(part)
    for row in observations:
        single.update(row)
    for normalizer in (batched, single):
        mean, variance = statistics(normalizer)
        assert normalizer.count == 200
        np.testing.assert_allclose(mean, observations.astype(np.float64).mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(variance, observations.astype(np.float64).var(axis=0), rtol=1e-10)


def test_output_has_zero_mean_and_unit_variance():
    observations = data() * 10.0  # large enough that epsilon does not matter
    normalizer = RunningNormalizer(3)
    normalizer.update(observations)
    normalized = normalizer(observations)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(normalized.std(axis=0), 1.0, atol=1e-2)


def test_by_hand():
    normalizer = RunningNormalizer(1, epsilon=0.0)
    normalizer.update(np.array([[1.0], [3.0]], np.float32))  # mean 2, variance 1
    assert normalizer(np.array([4.5], np.float32)).tolist() == pytest.approx([2.5])


def test_the_input_is_left_alone():
    normalizer = RunningNormalizer(3)
    normalizer.update(data())
    observations = data(seed=1)
    before = observations.copy()
    normalizer(observations)
    assert (observations == before).all()


def test_leading_axes_are_kept():
    normalizer = RunningNormalizer(3)
    normalizer.update(data())
    batch = data(24).reshape(2, 12, 3)
    assert np.array_equal(normalizer(batch)[1, 5], normalizer(batch[1, 5]))


def test_before_two_observations_it_only_centers():
    normalizer = RunningNormalizer(2, epsilon=0.0)
    assert normalizer(np.array([3.0, -4.0], np.float32)).tolist() == [3.0, -4.0]
    normalizer.update(np.array([1.0, 1.0], np.float32))
    assert normalizer(np.array([3.0, -4.0], np.float32)).tolist() == [2.0, -5.0]


def test_a_constant_dimension_is_not_blown_up():
    normalizer = RunningNormalizer(2)
    observations = np.random.default_rng(0).standard_normal((100, 2)).astype(np.float32)
    observations[:, 1] = 7.0
    normalizer.update(observations)
    for row in observations:
        normalizer.update(row)
    assert normalizer(np.array([0.0, 7.01], np.float32))[1] == pytest.approx(0.01, rel=1e-2)


def test_outputs_are_clipped():
    normalizer = RunningNormalizer(1, clip=2.0)
    normalizer.update(np.array([[-1.0], [1.0]], np.float32))
    assert normalizer(np.array([[1e6], [-1e6], [0.5]], np.float32)).ravel().tolist() == pytest.approx(
        [2.0, -2.0, 0.5], rel=1e-3
    )


def test_an_empty_batch_changes_nothing():
    normalizer = RunningNormalizer(3)
    normalizer.update(data())
    before = normalizer.state_dict()
    normalizer.update(np.zeros((0, 3), np.float32))
    assert normalizer.state_dict() == before


def test_the_state_is_exact_through_json_and_both_go_on_alike():
    one, two = RunningNormalizer(3), RunningNormalizer(3)
    one.update(data())
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for normalizer in (one, two):
        normalizer.update(data(seed=3)[0])
    assert one.state_dict() == two.state_dict()
    assert np.array_equal(one(data(seed=4)), two(data(seed=4)))


def test_large_offsets_keep_their_variance():
    # Sum of squares minus square of sums would lose everything here.
    normalizer = RunningNormalizer(1)
    values = (1e6 + np.random.default_rng(0).standard_normal((1000, 1))).astype(np.float32)
    for row in values:
        normalizer.update(row)
    assert statistics(normalizer)[1][0] == pytest.approx(values.astype(np.float64).var(), rel=1e-9)


def test_return_scale_by_hand():
    scale = ReturnScale(discount=0.5, bound=5.0)
    assert scale.scale == 1.0
    # G: 1, 0.5 + 2 = 2.5 | new episode: 4, 2 - 1 = 1
    for reward, ended in ((1.0, False), (2.0, True), (4.0, False), (-1.0, False)):
        scale.update(reward, ended)
    returns = np.array([1.0, 2.5, 4.0, 1.0])
    assert scale.scale == pytest.approx(returns.std())
    assert scale.largest == 4.0
    assert scale.running == 1.0


def test_the_largest_return_stays_within_the_bound():
    scale = ReturnScale(discount=0.0, bound=5.0)
    for _ in range(999):
        scale.update(0.0, False)
    scale.update(-100.0, False)
    assert 100.0 / scale.scale == pytest.approx(5.0)


def test_rewards_that_are_always_zero_give_a_positive_scale():
    scale = ReturnScale(discount=0.99)
    for _ in range(10):
        scale.update(0.0, False)
    assert scale.scale > 0.0


def test_the_return_scale_is_restored_exactly():
    one, two = ReturnScale(0.9), ReturnScale(0.9)
    rng = np.random.default_rng(0)
    for reward in rng.standard_normal(50):
        one.update(float(reward), False)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for scale in (one, two):
        scale.update(0.3, True)
        scale.update(0.1, False)
    assert one.state_dict() == two.state_dict()
    assert one.scale == two.scale
