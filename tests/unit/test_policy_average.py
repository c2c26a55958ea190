"""The averaged policy: what it is, that it changes nothing else, and where it is used."""

import copy

import numpy as np
import pytest
import torch

from mpo_robot.learners import make_learner as learner_for
from mpo_robot.specs import PolicySpec
from tests.support.learning import CONFIG, change, make_batch, make_learner
from tests.support.onnx_files import small_spec

BASELINES = ("sac", "ddpg", "epg")


def trained(updates: int, **changes):
    """A learner and the online policy's parameters after each update."""
    learner, seen = make_learner(**changes), []
    for update in range(updates):
        learner.update(make_batch(1 + update % 3))
        seen.append(learner.flat["policy"].clone())
    return learner, torch.stack(seen)


def test_it_forgets_exponentially_and_as_fast_as_the_training_is_short():
    learner, seen = trained(45, policy_average_updates=3)
    expected = seen[18]  # a tenth of the updates is one until the 19th, from the 20th two, from the 30th three
    for window, policies in ((2, seen[19:29]), (3, seen[29:])):
        for policy in policies:
            expected = expected + (policy - expected) / window
    torch.testing.assert_close(learner.flat["averaged_policy"], expected)


@pytest.mark.parametrize("updates", [1, None])
def test_over_one_update_or_none_it_is_the_online_policy(updates):
    learner, seen = trained(3, policy_average_updates=updates)
    for mine, theirs in zip(learner.averaged_policy.parameters(), learner.online_policy.parameters()):
        assert torch.equal(mine, theirs)
    assert ("averaged_policy" in learner.flat) == (updates is not None)
    assert not torch.equal(seen[0], seen[-1])


def test_what_is_learnt_does_not_depend_on_it():
    assert torch.equal(trained(4, policy_average_updates=2)[1], trained(4, policy_average_updates=None)[1])


def test_a_checkpoint_without_one_starts_it_from_its_policy():
    older, seen = trained(3, policy_average_updates=None)
    learner = make_learner(policy_average_updates=100)
    learner.load_state_dict(older.state_dict())
    assert torch.equal(learner.flat["averaged_policy"], seen[-1])


def test_it_is_restored_with_the_rest():
    learner, _ = trained(30, policy_average_updates=3)
    again = make_learner(policy_average_updates=3)
    again.load_state_dict(copy.deepcopy(learner.state_dict()))
    for item in (learner, again):
        item.update(make_batch(9))
    assert torch.equal(learner.flat["averaged_policy"], again.flat["averaged_policy"])


def test_started_anew_it_forgets_what_was_before():
    learner, _ = trained(30, policy_average_updates=1000)
    again = make_learner(policy_average_updates=1000)
    learner.restart_average()
    again.load_state_dict(copy.deepcopy(learner.state_dict()))
    for item in (learner, again):
        for _ in range(19):
            item.update(make_batch(9))
        assert torch.equal(item.flat["averaged_policy"], item.flat["policy"])  # a tenth of 19 is one
        item.update(make_batch(9))
        assert not torch.equal(item.flat["averaged_policy"], item.flat["policy"])


@pytest.mark.parametrize("algorithm", ["mpo", *BASELINES])
def test_it_is_what_evaluations_and_exports_take_while_the_online_policy_collects(algorithm):
    spec: PolicySpec = small_spec()
    learner = learner_for(spec, change(CONFIG, algorithm=algorithm, policy_average_updates=10), seed=0)
    observation = np.full(spec.observation_size, 0.4, np.float32)
    before = learner.actor().distribution(observation)[0].copy()
    with torch.no_grad():
        learner.flat["averaged_policy"] += 0.1 * torch.randn(learner.flat["averaged_policy"].shape)
    assert np.array_equal(learner.actor().distribution(observation)[0], before)
    mean = learner.averaged_actor().distribution(observation)[0]
    assert np.abs(mean - before).max() > 1e-3
    with torch.no_grad():
        exported = learner.exported_policy().mean_and_stddev(torch.from_numpy(observation[None])).mean[0].numpy()
    np.testing.assert_allclose(mean, exported, atol=1e-5)


@pytest.mark.parametrize("updates", [0, -3])
def test_a_number_of_updates_below_one_is_refused(updates):
    with pytest.raises(ValueError, match="policy_average_updates must be at least 1 or null"):
        change(CONFIG, policy_average_updates=updates)
