"""Updates of the critics alone, between those of the policy."""

import numpy as np
import pytest
import torch

from mpo_robot.learners import make_learner as learner_for
from tests.support.discrete_point import make_discrete_batch, make_discrete_learner
from tests.support.learning import CONFIG, change, gradients, make_batch, make_learner
from tests.support.point_environment import SPEC


def changed(learner, batch):
    """Names of the parameters that an update changes."""
    before = {name: flat.clone() for name, flat in learner.flat.items()}
    learner.update(batch)
    return {name for name, flat in learner.flat.items() if not torch.equal(flat, before[name])}


def test_policy_and_duals_are_updated_every_so_many_updates():
    learner = make_learner(policy_update_period=3)
    seen = [changed(learner, make_batch()) for _ in range(7)]
    everything = {"policy", "critic", "duals", "target_policy", "target_critic"}
    assert [names == everything for names in seen] == [True, False, False, True, False, False, True]
    # the target policy goes on towards the online one
    assert all(names == {"critic", "target_policy", "target_critic"} for names in (seen[1], seen[2], seen[4], seen[5]))


@pytest.mark.parametrize("settings", [{}, {"returns": "n_step", "critic__head": "c51", "critic__num_atoms": 11}])
def test_the_critics_learn_as_with_two_samples(settings):
    alone = make_learner(policy_update_period=2, mpo__num_samples=2, **settings)
    usual = make_learner(mpo__num_samples=2, **settings)
    for learner in (alone, usual):
        learner.update(make_batch())
    assert not alone.improves_policy
    measured = [gradients(learner, make_batch()) for learner in (alone, usual)]
    torch.testing.assert_close(measured[0]["critic"], measured[1]["critic"])
    assert (measured[0]["policy"] == 0.0).all()


@pytest.mark.parametrize("temperature_update", ["learned", "exact"])
def test_metrics_change_nothing_and_are_there_for_every_update(temperature_update):
    settings = {"policy_update_period": 2, "mpo__temperature_update": temperature_update}
    learners = [make_learner(**settings) for _ in range(2)]
    for _ in range(4):
        measured, silent = (
            learner.update(make_batch(), want_metrics=want) for learner, want in zip(learners, (True, False))
        )
        assert silent is None
        assert np.isfinite(list(measured)).all()
    for name, flat in learners[0].flat.items():
        assert torch.equal(flat, learners[1].flat[name])


@pytest.mark.parametrize("algorithm", ["sac", "ddpg", "epg"])
def test_it_holds_for_the_baselines(algorithm):
    learner = learner_for(SPEC, change(CONFIG, algorithm=algorithm, policy_update_period=2), seed=0)
    assert "policy" in changed(learner, make_batch())
    assert changed(learner, make_batch()) == {"critic", "target_policy", "target_critic"}


def test_it_holds_for_discrete_actions():
    learner = make_discrete_learner(policy_update_period=2)
    assert "policy" in changed(learner, make_discrete_batch())
    assert changed(learner, make_discrete_batch()) == {"critic", "target_policy", "target_critic"}


def test_a_period_below_one_is_refused():
    with pytest.raises(ValueError, match="policy_update_period must be at least 1"):
        change(CONFIG, policy_update_period=0)
