"""The discrete MPO learner: targets, masks, the prior, what it reaches, what it refuses."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from mpo_robot.actor_critic import TensorBatch
from mpo_robot.categorical_learner import CategoricalLearner, CategoricalMetrics
from mpo_robot.errors import ConfigError
from mpo_robot.learners import make_learner
from mpo_robot.networks import ResidualBlock
from mpo_robot.specs import PolicySpec, TermSpec
from tests.support import point_environment
from tests.support.discrete_point import DISCRETE_CONFIG, SPEC, make_discrete_batch, make_discrete_learner
from tests.support.learning import change, gradients


def as_tensors(batch, reward_scale=1.0):
    return TensorBatch.of(type(batch)(*(np.ascontiguousarray(array) for array in batch)), reward_scale)


def test_targets_are_retrace_with_exact_expectations():
    learner, batch = make_discrete_learner(), make_discrete_batch(4)
    targets = learner.target_pass(as_tensors(batch, 2.0))
    with torch.no_grad():
        observation = torch.from_numpy(batch.observation.copy())
        pi = learner.target_policy(observation).softmax(-1).numpy()
        q = learner.target_critic(observation).amin(0).numpy()
    value = (pi * q).sum(-1)  # [B, L + 1]
    for b in range(len(q)):
        following = None
        for t in reversed(range(4)):
            discount = 0.0 if batch.terminated[b, t] else 0.9
            correction = 0.0
            if following is not None and batch.trace_valid[b, t + 1] and batch.is_transition[b, t + 1]:
                action = int(batch.action[b, t + 1, 0])
                ratio = pi[b, t + 1, action] / np.exp(batch.behavior_log_prob[b, t + 1])
                correction = 0.95 * min(1.0, ratio) * (following - q[b, t + 1, action])
            following = batch.reward[b, t] / 2.0 + discount * (value[b, t + 1] + correction)
            if batch.is_transition[b, t]:
                assert targets.returns[b, t].item() == pytest.approx(following, abs=1e-5)
    assert 0.0 < targets.coefficients.mean() < 0.95


def test_its_critics_take_residual_blocks():
    config = change(DISCRETE_CONFIG, critic__hidden_sizes=(8, 8), critic__residual_expansion=2)
    learner = make_learner(SPEC, config, seed=0)
    assert sum(isinstance(module, ResidualBlock) for module in learner.target_critic.modules()) == 2
    assert np.isfinite(learner.update(make_discrete_batch(), want_metrics=True).loss_critic)


def test_equal_values_leave_a_policy_that_is_not_uniform_where_it_is():
    # Defect 8: weights without the prior would pull the policy to the uniform one.
    learner = make_discrete_learner()
    learner.flat["target_policy"].copy_(learner.flat["policy"])
    with torch.no_grad():
        for member in learner.target_critic.members:
            member[-1].weight.zero_()
            member[-1].bias.fill_(2.0)
    logits = learner.online_policy(torch.randn(50, 3))
    assert logits.softmax(-1).std(dim=-1).mean() > 0.05
    result = gradients(learner, make_discrete_batch())
    assert result["policy"].abs().max() < 1e-6
    assert result["critic"].abs().max() > 1e-3


def test_a_state_after_termination_teaches_nothing_and_one_after_truncation_does():
    learner, batch = make_discrete_learner(), make_discrete_batch()
    base = gradients(learner, batch)
    for terminated in (True, False):
        observation = batch.observation.copy()
        final = np.zeros(observation.shape[:2], bool)
        final[:, :-1] = batch.is_transition == 0
        after_termination = batch.policy_state == 0
        chosen = (final & after_termination) if terminated else (final & ~after_termination)
        assert chosen.any()
        if terminated:  # also where it is the last row of a window
            chosen |= after_termination
        observation[chosen] += 5.0
        changed = gradients(learner, batch._replace(observation=observation))
        for name in ("policy", "critic"):
            assert torch.allclose(changed[name], base[name], atol=1e-7) == terminated, (name, terminated)


def test_only_the_action_taken_is_fitted_and_only_in_transitions():
    learner, batch = make_discrete_learner(), make_discrete_batch()
    tensors = as_tensors(batch)
    returns = torch.randn(batch.reward.shape, generator=torch.Generator().manual_seed(0))
    loss = learner.critic_loss(tensors, returns)
    with torch.no_grad():
        q = learner.online_critic(tensors.observation[:, :-1])
    total, count = 0.0, 0
    for b, t in np.argwhere(batch.is_transition > 0):
        errors = q[:, b, t, int(batch.action[b, t, 0])] - returns[b, t]
        total += 0.5 * float(errors.square().sum())
        count += 1
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_scaled_rewards_and_a_scale_are_the_same():
    batch = make_discrete_batch()
    base = gradients(make_discrete_learner(), batch, reward_scale=4.0)
    scaled = gradients(make_discrete_learner(), batch._replace(reward=batch.reward / 4.0))
    for name in base:
        torch.testing.assert_close(base[name], scaled[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"mpo__temperature_update": "learned"},
        {"mpo__temperature_update": "exact"},
        {"mpo__variational": "parametric", "learning_rate_duals": 0.1},
    ],
)
def test_it_finds_the_best_action_of_each_state_and_keeps_its_kl_bounds(settings):
    # One-step episodes; the best of four actions depends on the sign of the first observation.
    changes = {
        "learning_rate_critic": 2e-2,
        "learning_rate_policy": 1e-2,
        **settings,
    }
    learner = CategoricalLearner(SPEC, change(DISCRETE_CONFIG, **changes), seed=0)
    rng = np.random.default_rng(0)
    metrics = []
    for step in range(100):
        observation = rng.standard_normal((64, 2, 3)).astype(np.float32)
        action = rng.integers(4, size=(64, 1, 1)).astype(np.float32)
        best = np.where(observation[:, 0, 0] > 0, 1, 3)
        ones = np.ones((64, 1), np.float32)
        batch = make_discrete_batch()._replace(
            observation=observation, action=action, reward=(action[:, 0] == best[:, None]).astype(np.float32),
            terminated=ones, behavior_log_prob=np.log(0.25) * ones, trace_valid=ones, is_transition=ones,
            policy_state=np.stack([ones[:, 0], 0 * ones[:, 0]], 1),
        )  # fmt: skip
        metrics.append(learner.update(batch, want_metrics=step >= 30))
    observation = torch.from_numpy(rng.standard_normal((200, 3)).astype(np.float32))
    observation[:, 0] += 0.3 * observation[:, 0].sign()
    chosen = learner.online_policy(observation).argmax(-1)
    wanted = torch.where(observation[:, 0] > 0, 1, 3)
    assert (chosen == wanted).float().mean() > 0.97
    measured = metrics[30:]
    # Far from the solution and on its way: the M-step's KL stays near its bound.
    assert np.mean([item.kl_policy_rel for item in measured]) < 2.0
    assert isinstance(measured[-1], CategoricalMetrics)
    if settings == {"mpo__temperature_update": "exact"}:
        assert measured[0].kl_q_rel == pytest.approx(1.0, abs=1e-3)


def test_the_parametric_variant_has_the_exact_gradient_and_no_temperature():
    learner, batch = make_discrete_learner(mpo__variational="parametric"), make_discrete_batch()
    result = gradients(learner, batch)
    tensors = as_tensors(batch)
    observation, weights = tensors.observation.flatten(0, 1), learner.state_weights(tensors)
    targets = learner.target_pass(tensors)
    before, online = targets.logits.softmax(-1), learner.online_policy(observation).softmax(-1)
    gain = weights @ (online * targets.q_values).sum(-1)
    kl = weights @ (online * (online / before).log()).sum(-1)
    loss = -gain + 3.0 * kl  # init_alpha
    loss.backward()
    torch.testing.assert_close(result["policy"], learner.flat["policy"].grad, rtol=1e-4, atol=1e-6)
    temperature, alpha = result["duals"]
    assert temperature == 0.0
    assert alpha.item() == pytest.approx((0.0025 - kl.item()) * (1.0 - np.exp(-3.0)), rel=1e-4)
    learner.flat["policy"].grad.zero_()
    metrics = learner.update(batch, want_metrics=True)
    assert metrics.kl_q_rel == 0.0
    assert metrics.temperature == pytest.approx(3.0)


def test_metrics_by_hand():
    learner, batch = make_discrete_learner(), make_discrete_batch()
    with torch.no_grad():
        observation = torch.from_numpy(batch.observation.copy())
        online = learner.online_policy(observation).softmax(-1)
        target = learner.target_policy(observation).softmax(-1)
        q = learner.target_critic(observation).amin(0)
        weights = torch.softmax(target.log() + q / learner.duals.temperature, -1)
    acts = torch.from_numpy(batch.policy_state.copy())

    def mean(values):
        return float((acts * values).sum() / acts.sum())

    metrics = learner.backward(batch, want_metrics=True)
    assert metrics.entropy == pytest.approx(mean(-(online * online.log()).sum(-1)), rel=1e-4)
    assert metrics.kl_policy_rel == pytest.approx(mean((target * (target / online).log()).sum(-1)) / 0.0025, rel=1e-3)
    assert metrics.kl_q_rel == pytest.approx(mean((weights * (weights / target).log()).sum(-1)) / 0.1, rel=1e-3)
    assert metrics.loss_policy == pytest.approx(mean(-(weights * online.log()).sum(-1)), rel=1e-4)
    assert metrics.temperature == pytest.approx(3.0)
    assert metrics.alpha == pytest.approx(3.0)
    assert metrics.q_max == pytest.approx(float(q.max()))


def test_a_restored_learner_goes_on_exactly():
    batch = make_discrete_batch()
    learner, other = make_discrete_learner(), make_discrete_learner(seed=7)
    learner.update(batch)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))  # through a file in a training
    for _ in range(3):
        learner.update(batch)
        other.update(batch)
    for name, flat in learner.flat.items():
        assert flat.equal(other.flat[name]), name


def test_multipliers_never_leave_their_range():
    learner = make_discrete_learner(learning_rate_duals=50.0)
    for _ in range(3):
        learner.update(make_discrete_batch())
        assert learner.duals.temperature.item() > 0
        assert learner.duals.alpha.item() > 3e-4


def test_the_learner_follows_from_the_spec():
    assert isinstance(make_learner(SPEC, DISCRETE_CONFIG, 0), CategoricalLearner)
    assert not isinstance(make_learner(point_environment.SPEC, DISCRETE_CONFIG, 0), CategoricalLearner)


@pytest.mark.parametrize(
    ("spec", "changes", "text"),
    [
        (point_environment.SPEC, {}, "discrete actions"),
        (SPEC, {"critic__head": "hl_gauss"}, "scalar critics only"),
        (SPEC, {"categorical__torso": "dqn"}, "is no image"),
        (
            PolicySpec((TermSpec("a", 16), TermSpec("b", 16)), SPEC.command, 0.1),
            {"categorical__torso": "dqn"},
            "too small",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(spec, changes, text):
    with pytest.raises(ConfigError, match=text):
        CategoricalLearner(spec, change(DISCRETE_CONFIG, **changes), 0)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(DISCRETE_CONFIG.categorical)])
def test_every_setting_has_an_effect(name):
    spec = PolicySpec((TermSpec("a", 9), TermSpec("b", 9)), SPEC.command, 0.1)  # an image of two channels
    rng = np.random.default_rng(0)
    batch = make_discrete_batch()
    shape = (*batch.observation.shape[:2], 18)
    batch = batch._replace(observation=rng.standard_normal(shape).astype(np.float32))
    value = getattr(DISCRETE_CONFIG.categorical, name)
    other = "minatar" if name == "torso" else 0.5 * value
    outcomes = []
    for setting in (value, other, value):
        learner = CategoricalLearner(spec, change(DISCRETE_CONFIG, **{f"categorical__{name}": setting}), 0)
        metrics = [learner.update(batch, want_metrics=True) for _ in range(4)]
        outcomes.append((learner.flat["policy"].tolist(), learner.flat["duals"].tolist(), metrics[-1].loss_critic))
    assert outcomes[0] != outcomes[1]
    assert outcomes[0] == outcomes[2]


@pytest.mark.parametrize(
    ("setting", "text"), [({"epsilon": 0.0}, "epsilon must be positive"), ({"torso": "cnn"}, "mlp, minatar, dqn")]
)
def test_impossible_settings_are_refused(setting, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(DISCRETE_CONFIG.categorical, **setting)
