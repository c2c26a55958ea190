"""The learner on problems whose Q function is known: it stands in for the target critics."""

import numpy as np
import pytest
import torch

from mpo_robot.duals import MIN_RAW_ALPHA
from mpo_robot.learner import Learner
from mpo_robot.replay import SequenceBatch
from tests.support.learning import ACTION_SIZE, CONFIG, OBSERVATION_SIZE, change

BEST = torch.tensor([0.4, -0.3])


def make_bandit(q_function, **changes):
    """A learner of single steps whose target critics say `q_function(actions, learner_steps)`."""
    settings = {"target_update_rate": None, "target_update_period": 10, "mpo__num_samples": 16} | changes
    learner = Learner(OBSERVATION_SIZE, ACTION_SIZE, change(CONFIG, **settings), seed=0)
    learner.target_critic.target_values = lambda observation, actions: q_function(actions, learner.learner_steps)
    return learner


def states(seed, count=16):
    """A batch of one-step episodes in random states."""
    rng = np.random.default_rng(seed)
    ones = np.ones((count, 1), np.float32)
    return SequenceBatch(
        observation=rng.standard_normal((count, 2, OBSERVATION_SIZE)).astype(np.float32),
        action=np.zeros((count, 1, ACTION_SIZE), np.float32),
        reward=0.0 * ones,
        terminated=ones,
        behavior_log_prob=0.0 * ones,
        trace_valid=ones,
        is_transition=ones,
        policy_state=np.repeat(np.array([[1.0, 0.0]], np.float32), count, axis=0),
    )


def learn(learner, updates, measured=0):
    """Metrics of the last `measured` updates."""
    metrics = [learner.update(states(step), want_metrics=step >= updates - measured) for step in range(updates)]
    return metrics[updates - measured :]


def quadratic(actions, _):
    return -10.0 * (actions - BEST).square().sum(-1)


@pytest.mark.parametrize("per_dimension", [True, False])
def test_on_a_quadratic_q_the_mean_reaches_the_optimum_and_the_stddev_shrinks(per_dimension):
    learner = make_bandit(quadratic, learning_rate_policy=3e-3, mpo__per_dim_constraining=per_dimension)
    start = torch.randn(50, OBSERVATION_SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (learner.online_policy(start).mean - BEST).abs().max() > 0.3
    learn(learner, 300)
    with torch.no_grad():
        mean, stddev = learner.online_policy(start)
    assert (mean - BEST).abs().max() < 0.06
    assert stddev.max() < 0.6 * CONFIG.policy.init_stddev


@pytest.mark.parametrize("init_temperature", [0.1, 3.0])
def test_the_temperature_moves_until_the_kl_of_the_weights_is_epsilon(init_temperature):
    # Pitfall 1, closed loop: from above and from below, with a target policy that stays.
    learner = make_bandit(
        lambda actions, _: -(actions - BEST).square().sum(-1),
        target_update_period=10**6,
        learning_rate_duals=0.03,
        mpo__init_temperature=init_temperature,
    )
    before = learn(learner, 1, measured=1)[0].kl_q_rel
    assert not 0.5 < before < 2.0
    after = [metrics.kl_q_rel for metrics in learn(learner, 250, measured=50)]
    assert np.mean(after) == pytest.approx(1.0, abs=0.1)


def pulled(learner_options):
    """A Q function that pulls the mean to and fro, far harder than the bound on its KL allows."""

    def q_function(actions, learner_steps):
        return (1.0 if learner_steps % 80 < 40 else -1.0) * 4.0 * actions.sum(-1)

    settings = {
        "target_update_period": 20,
        "learning_rate_policy": 1e-2,
        "learning_rate_duals": 3e-2,
        "policy__init_stddev": 0.2,
        "mpo__init_alpha_stddev": 1000.0,
        "mpo__epsilon_mean": 4e-3,
        "mpo__action_penalization": False,
    }
    return make_bandit(q_function, **(settings | learner_options))


def test_the_mean_kl_stays_near_its_bound():
    # Pitfall 6: a multiplier that is never trained, or trained on a KL that is always 0, leaves the policy unbound.
    metrics = learn(pulled({}), 480, measured=160)
    assert 0.7 < np.mean([item.kl_mean_rel for item in metrics]) < 1.6
    unbound = learn(pulled({"mpo__init_alpha_mean": 1e-6, "learning_rate_duals": 1e-9}), 240, measured=160)
    assert np.mean([item.kl_mean_rel for item in unbound]) > 10.0


def test_a_multiplier_at_its_floor_recovers():
    # Pitfall 3: with a plain clip at zero its gradient would vanish and it would never come back; too low a floor of
    # the softplus comes to the same, because Adam takes the tiny gradient for nothing.
    learner = pulled({})
    with torch.no_grad():
        learner.duals.raw_alpha_mean.fill_(MIN_RAW_ALPHA)
    learn(learner, 240)
    assert learner.duals.alpha_mean.detach().min() > 0.5


def test_multipliers_fall_when_the_policy_stands_still():
    learner = make_bandit(lambda actions, _: torch.zeros(actions.shape[:2]), learning_rate_policy=1e-9)
    before = learner.duals.alpha_mean.detach().clone(), learner.duals.alpha_stddev.detach().clone()
    learn(learner, 50)
    assert (learner.duals.alpha_mean < before[0]).all()
    assert (learner.duals.alpha_stddev < before[1]).all()


def test_the_penalty_keeps_the_policy_inside_the_bounds():
    # A flat Q: nothing else moves the policy, which starts with much of its mass outside.
    def mass_outside(penalized):
        learner = make_bandit(
            lambda actions, _: torch.zeros(actions.shape[:2]),
            learning_rate_policy=3e-3,
            policy__init_stddev=1.0,
            mpo__epsilon_stddev=0.01,
            mpo__epsilon_penalty=0.1,
            mpo__action_penalization=penalized,
        )
        return learn(learner, 200, measured=1)[0].out_of_bounds_mean

    assert mass_outside(False) > 0.45
    assert mass_outside(True) < 0.35
