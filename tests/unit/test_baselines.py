"""SAC, DDPG and EPG: what they act with, what reaches their targets and gradients, and that they learn."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from mpo_robot.baselines.ddpg import DDPG
from mpo_robot.baselines.epg import EPG
from mpo_robot.baselines.sac import SAC
from mpo_robot.errors import ConfigError
from mpo_robot.learner import Learner
from mpo_robot.learners import ALGORITHMS, make_learner
from mpo_robot.losses.gaussian import log_prob
from mpo_robot.losses.squashed_gaussian import squashed_log_prob_of
from mpo_robot.replay import SequenceBatch
from mpo_robot.specs import PolicySpec, TermSpec
from tests.support.learning import ACTION_SIZE, CONFIG, OBSERVATION_SIZE, change, gradients, make_batch, tensors
from tests.support.point_environment import SPEC

BASELINES = ("sac", "ddpg", "epg")


def make(algorithm, seed=0, **changes):
    """A baseline whose online and target networks differ."""
    learner = make_learner(SPEC, change(CONFIG, algorithm=algorithm, **changes), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for flat in (learner.flat["target_policy"], learner.flat["target_critic"]):
            flat.add_(0.1 * torch.randn(flat.shape, generator=generator))
    return learner


def replaced(batch, **arrays):
    return batch._replace(**{name: np.asarray(array, np.float32) for name, array in arrays.items()})


def grads(learner, batch, **options):
    """Gradients by network; learners without dual variables have no such entry."""
    state = learner.generator.get_state()
    learner.backward(batch, **options)
    learner.generator.set_state(state)
    result = {name: learner.flat[name].grad.clone() for name in ("policy", "critic", "duals") if name in learner.flat}
    for name in result:
        learner.flat[name].grad.zero_()
    return result


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_the_configuration_names_the_learner():
    assert {name: type(make_learner(SPEC, change(CONFIG, algorithm=name), 0)) for name in ALGORITHMS} == {
        "mpo": Learner,
        "sac": SAC,
        "ddpg": DDPG,
        "epg": EPG,
    }
    with pytest.raises(ValueError, match="algorithm must be one of mpo, sac, ddpg, epg"):
        change(CONFIG, algorithm="a3c")
    with pytest.raises(ValueError, match="diagonal"):
        change(CONFIG, algorithm="sac", policy__covariance="full")
    with pytest.raises(ValueError, match="c51 is for mpo"):
        change(CONFIG, algorithm="sac", returns="td_zero", critic__head="c51")


def test_baselines_refuse_discrete_actions():
    spec = PolicySpec((TermSpec("x", 1),), (TermSpec.discrete("push", 3),), 0.1)
    with pytest.raises(ConfigError, match="discrete"):
        make_learner(spec, change(CONFIG, algorithm="ddpg"), 0)


@pytest.mark.parametrize("algorithm", BASELINES)
@pytest.mark.parametrize("returns", ["retrace", "td_zero", "n_step", "td_lambda"])
def test_one_update_is_finite_and_moves_everything(algorithm, returns):
    learner = make(algorithm, returns=returns)
    before = {name: flat.clone() for name, flat in learner.flat.items()}
    metrics = learner.update(make_batch(), 2.0, want_metrics=True)
    assert metrics._fields == learner.metric_names
    assert all(math.isfinite(value) for value in metrics)
    assert all(not torch.equal(before[name], flat) for name, flat in learner.flat.items())


@pytest.mark.parametrize("algorithm", BASELINES)
@pytest.mark.parametrize("returns", ["retrace", "td_zero", "n_step"])
def test_borders_absorbing_states_and_missing_ratios_contribute_nothing(algorithm, returns):
    learner, batch = make(algorithm, returns=returns), make_batch()
    base = grads(learner, batch)
    border, absorbing = batch.is_transition == 0, batch.policy_state == 0
    assert border.any()
    assert absorbing.any()
    row = {"reward": 100.0, "behavior_log_prob": -100.0, "trace_valid": 1.0}
    changed = replaced(batch, **{name: np.where(border, value, getattr(batch, name)) for name, value in row.items()})
    assert same(grads(learner, changed), base)
    moved = replaced(batch, observation=np.where(absorbing[..., None], 7.0, batch.observation))
    assert same(grads(learner, moved), base)
    finite = replaced(batch, behavior_log_prob=np.nan_to_num(batch.behavior_log_prob, nan=3.0))
    assert same(grads(learner, finite), base)
    assert all(torch.isfinite(value).all() for value in base.values())


@pytest.mark.parametrize("algorithm", BASELINES)
def test_the_policy_loss_leaves_the_critic_alone_and_the_other_way_round(algorithm):
    learner, batch = make(algorithm), make_batch()
    base = grads(learner, batch)
    other_reward = grads(learner, replaced(batch, reward=batch.reward + 1.0))
    assert torch.equal(other_reward["policy"], base["policy"])
    assert not torch.equal(other_reward["critic"], base["critic"])
    # no row to learn values from: the critics get no gradient, though the policy's passes through them
    nothing = grads(learner, replaced(batch, is_transition=0.0 * batch.is_transition))
    assert (nothing["critic"] == 0.0).all()
    assert nothing["policy"].abs().sum() > 0


def targets_of(learner, batch):
    """The critic's targets, by catching them on their way to its loss."""
    seen = []
    learner.critic_loss = lambda tensors, returns: seen.append(returns) or torch.zeros((), requires_grad=True)
    state = learner.generator.get_state()
    learner.backward(batch, 2.0)
    learner.generator.set_state(state)
    del learner.critic_loss
    return seen[0]


def test_sac_targets_by_hand():
    # r / scale + discount (min Q'(s', a') - temperature log pi(a'|s')), no bootstrap after a termination only
    learner, batch = make("sac", returns="td_zero"), make_batch()
    data = tensors(batch)
    returns = targets_of(learner, batch)
    observation = data.observation.flatten(0, 1)
    with torch.no_grad():
        mean, stddev = learner.online_policy(observation)
        noise = torch.randn(*mean.shape, generator=torch.Generator().manual_seed(0))
        squashed = TransformedDistribution(Normal(mean, stddev), TanhTransform(cache_size=1))
        action = squashed.transforms[0](mean + stddev * noise)
        density = squashed.log_prob(action).sum(-1)
        value = learner.target_critic(observation, action).amin(0) - learner.duals.temperature * density
    shape = data.observation.shape[:2]
    expected = data.reward / 2.0 + 0.9 * (1.0 - data.terminated) * value.view(shape)[:, 1:]
    torch.testing.assert_close(returns, expected, atol=1e-5, rtol=1e-5)
    ends = (data.terminated > 0) & (data.is_transition > 0)
    assert torch.equal(returns[ends], (data.reward / 2.0)[ends])
    cut = (data.is_transition[:, :-1] > 0) & (data.is_transition[:, 1:] == 0) & (data.terminated[:, :-1] == 0)
    assert cut.any()
    assert (returns[:, :-1][cut] != (data.reward / 2.0)[:, :-1][cut]).all()


def test_ddpg_targets_are_the_target_critics_value_of_the_target_policys_action():
    learner, batch = make("ddpg", returns="td_zero"), make_batch()
    data = tensors(batch)
    observation = data.observation.flatten(0, 1)
    with torch.no_grad():
        action = learner.target_policy(observation).mean
        value = learner.target_critic(observation, action).amin(0).view(data.observation.shape[:2])
    expected = data.reward / 2.0 + 0.9 * (1.0 - data.terminated) * value[:, 1:]
    torch.testing.assert_close(targets_of(learner, batch), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(learner.online_policy(observation).mean, action, atol=1e-3)


@pytest.mark.parametrize("algorithm", BASELINES)
def test_retrace_uses_the_ratio_of_the_policy_that_is_evaluated(algorithm):
    learner, batch = make(algorithm, returns="retrace"), make_batch()
    data = tensors(batch)
    policy = learner.target_policy if algorithm == "ddpg" else learner.online_policy
    with torch.no_grad():
        parameters = policy(data.observation[:, :-1].flatten(0, 1))
    density = squashed_log_prob_of if algorithm == "sac" else log_prob
    log_probs = density(*parameters, data.action.flatten(0, 1)).view(data.reward.shape)
    base = targets_of(learner, batch)
    # twice as likely as under the behaviour policy, or as likely: the trace is cut at 1 either way
    likely = replaced(batch, behavior_log_prob=log_probs.numpy() - np.log(2.0))
    equal = replaced(batch, behavior_log_prob=log_probs.numpy() - 1e-6)
    torch.testing.assert_close(targets_of(learner, likely), targets_of(learner, equal))
    unlikely = replaced(batch, behavior_log_prob=log_probs.numpy() + 3.0)
    assert not torch.allclose(targets_of(learner, unlikely), targets_of(learner, equal))
    assert not torch.allclose(base, targets_of(learner, equal))


@pytest.mark.parametrize("algorithm", BASELINES)
def test_actors_agree_with_the_networks_and_store_exact_densities(algorithm):
    learner = make(algorithm)
    with torch.no_grad():  # an untrained policy is too tame: move means and deviations
        learner.flat["policy"].add_(0.5 * torch.randn(learner.flat["policy"].shape, generator=learner.generator))
    actor, rng = learner.actor(), np.random.default_rng(0)
    for _ in range(20):
        observation, noise = rng.standard_normal(3, np.float32), rng.standard_normal(2, np.float32)
        with torch.no_grad():
            mean, stddev = learner.online_policy(torch.from_numpy(observation.copy()).unsqueeze(0))
        action, density = actor.sample(observation.copy(), noise)
        evaluated, _ = actor.distribution(observation.copy())
        expected = (mean + stddev * torch.from_numpy(noise))[0]
        stored = torch.from_numpy(action).double().unsqueeze(0)
        if algorithm == "sac":
            expected, mean_action = expected.tanh(), mean[0].tanh()
            reference = squashed_log_prob_of(mean.double(), stddev.double(), stored)
        else:
            mean_action = mean[0]
            reference = log_prob(mean.double(), stddev.double(), stored)
        np.testing.assert_allclose(action, expected, atol=1e-5)
        np.testing.assert_allclose(evaluated, mean_action, atol=1e-5)
        assert density == pytest.approx(reference.item(), abs=2e-3, rel=1e-3)
        assert action.dtype == np.float32


def test_a_saturated_action_of_sac_keeps_a_finite_density():
    learner = make("sac")
    with torch.no_grad():
        learner.online_policy.head.bias[:ACTION_SIZE] = torch.tensor([40.0, -40.0])
    action, density = learner.actor().sample(np.zeros(3, np.float32), np.zeros(2, np.float32))
    assert np.abs(action).max() < 1.0
    assert np.abs(action).min() > 0.999999
    assert math.isfinite(density)


def test_the_noise_of_ddpg_has_the_configured_deviation():
    actor = make("ddpg", ddpg__noise_stddev=0.3).actor()
    observation = np.ones(3, np.float32)
    mean, stddev = actor.distribution(observation.copy())
    action, density = actor.sample(observation.copy(), np.array([1.0, -2.0], np.float32))
    np.testing.assert_allclose(action - mean, [0.3, -0.6], atol=1e-6)
    assert stddev.tolist() == pytest.approx([0.3, 0.3])
    assert density == pytest.approx(-2.5 - 2 * math.log(0.3) - math.log(2 * math.pi), abs=1e-5)


@pytest.mark.parametrize("algorithm", BASELINES)
def test_a_restored_learner_continues_exactly(algorithm):
    learner, batch = make(algorithm), make_batch()
    learner.update(batch)
    restored = make(algorithm, seed=5)
    restored.load_state_dict(copy.deepcopy(learner.state_dict()))
    for _ in range(2):
        learner.update(batch)
        restored.update(batch)
    assert same(learner.flat, restored.flat)


BEST = torch.tensor([0.4, -0.3])


def bandit_states(seed, count=32):
    """One-step episodes: uniform actions, reward -10 |a - best|^2."""
    rng = np.random.default_rng(seed)
    ones = np.ones((count, 1), np.float32)
    action = rng.uniform(-1, 1, (count, 1, ACTION_SIZE)).astype(np.float32)
    return SequenceBatch(
        observation=rng.standard_normal((count, 2, OBSERVATION_SIZE)).astype(np.float32),
        action=action,
        reward=(-10.0 * np.square(action - BEST.numpy()).sum(-1)).astype(np.float32),
        terminated=ones,
        behavior_log_prob=-ACTION_SIZE * math.log(2.0) * ones,
        trace_valid=ones,
        is_transition=ones,
        policy_state=np.repeat(np.array([[1.0, 0.0]], np.float32), count, axis=0),
    )


@pytest.mark.parametrize("algorithm", BASELINES)
def test_each_baseline_learns_values_and_the_best_action_of_a_bandit(algorithm):
    settings = {
        "policy__hidden_sizes": (32,),
        "policy__tanh_mean": True,  # beyond the bounds, where actions are clipped, Q has no slope
        "critic__hidden_sizes": (32, 32),
        "learning_rate_critic": 1e-2,
        "learning_rate_policy": 1e-3,
    }
    learner = make_learner(SPEC, change(CONFIG, algorithm=algorithm, sac__init_temperature=0.1, **settings), 0)
    states = np.random.default_rng(99).standard_normal((30, OBSERVATION_SIZE)).astype(np.float32)

    def distance():
        actor = learner.actor()
        return np.mean([np.abs(actor.distribution(state.copy())[0] - BEST.numpy()).max() for state in states])

    assert distance() > 0.3
    for step in range(250):
        learner.update(bandit_states(step))
    assert distance() < 0.15


@pytest.mark.parametrize(("target", "sign"), [(5.0, 1.0), (-20.0, -1.0)])
def test_the_temperature_of_sac_follows_the_entropy(target, sign):
    learner, batch = make("sac", sac__target_entropy=target), bandit_states(0)
    start = learner.update(batch, want_metrics=True).temperature
    for _ in range(10):
        metrics = learner.update(batch, want_metrics=True)
    assert target < metrics.entropy if sign < 0 else target > metrics.entropy
    assert sign * (metrics.temperature - start) > 0.03


def test_an_entropy_bonus_keeps_the_deviation_of_epg_up():
    def stddev(bonus):
        learner = make_learner(SPEC, change(CONFIG, algorithm="epg", epg__entropy_bonus=bonus), 0)
        for step in range(60):
            metrics = learner.update(bandit_states(step), want_metrics=step == 59)
        return metrics.stddev_mean

    assert stddev(5.0) > stddev(0.0) + 0.05


def test_dual_gradients_of_mpo_and_sac_come_from_their_own_losses_only():
    learner = make("sac")
    base = gradients(learner, make_batch())
    other = gradients(learner, replaced(make_batch(), reward=make_batch().reward + 5.0))
    assert torch.equal(base["duals"], other["duals"])
