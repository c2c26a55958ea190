"""One update of the learner: what contributes, what must not, and what changes."""

import math

import numpy as np
import pytest
import torch

from mpo_robot.duals import MIN_RAW_ALPHA, MIN_RAW_TEMPERATURE
from mpo_robot.errors import DivergenceError
from mpo_robot.learner import Learner
from mpo_robot.losses.estep import nonparametric_estep, out_of_bounds_cost
from mpo_robot.losses.gaussian import entropy, kl_mean, kl_stddev, log_prob
from tests.support.learning import (
    ACTION_SIZE,
    CONFIG,
    OBSERVATION_SIZE,
    gradients,
    make_batch,
    make_learner,
    target_pass,
    tensors,
)

NETWORKS = ("policy", "critic", "target_policy", "target_critic", "duals")


def replaced(batch, **arrays):
    """Copy of a batch with some arrays replaced."""
    return batch._replace(**{name: np.asarray(array, np.float32) for name, array in arrays.items()})


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_rows_that_are_no_transition_contribute_nothing():
    learner, batch = make_learner(), make_batch()
    base = gradients(learner, batch)
    border = batch.is_transition == 0
    assert border.any()
    # a large ratio, which would carry the row's own return to the step before it, and far-off values
    content = {"reward": 100.0, "behavior_log_prob": -100.0, "trace_valid": 1.0}
    changed = {name: np.where(border, value, getattr(batch, name)) for name, value in content.items()}
    changed["action"] = np.where(border[..., None], 0.9, batch.action)
    assert same(gradients(learner, replaced(batch, **changed)), base)
    moved = replaced(batch, reward=batch.reward + (~border))
    assert not same(gradients(learner, moved), base)


def test_states_after_termination_contribute_nothing():
    # Pitfall 12: neither as a bootstrap value nor as a state of the policy loss.
    learner, batch = make_learner(), make_batch()
    base = gradients(learner, batch)
    absorbing = batch.policy_state == 0
    assert absorbing.any()
    assert same(
        gradients(learner, replaced(batch, observation=np.where(absorbing[..., None], 7.0, batch.observation))), base
    )
    # while the final observation of a truncated episode counts in both
    truncated = (batch.is_transition == 0) & (batch.policy_state[:, :-1] == 1)
    assert truncated[:, 1:].any()
    observation = batch.observation.copy()
    observation[:, :-1][truncated] += 1.0
    changed = gradients(learner, replaced(batch, observation=observation))
    assert not torch.equal(changed["critic"], base["critic"])
    assert not torch.equal(changed["policy"], base["policy"])


def test_an_invalid_trace_cuts_the_return_but_not_the_transition():
    # The batch holds NaN log densities where no ratio exists; they must not reach any gradient.
    learner, batch = make_learner(), make_batch()
    assert np.isnan(batch.behavior_log_prob[(batch.is_transition > 0) & (batch.trace_valid == 0)]).all()
    base = gradients(learner, batch)
    assert all(torch.isfinite(value).all() for value in base.values())
    finite = replaced(batch, behavior_log_prob=np.nan_to_num(batch.behavior_log_prob, nan=3.0))
    assert same(gradients(learner, finite), base)


def test_a_terminated_step_has_no_bootstrap_and_a_truncated_one_has():
    learner = make_learner()
    batch = tensors(make_batch())
    state = learner.generator.get_state()

    def returns(shift):
        learner.generator.set_state(state)
        with torch.no_grad():
            for member in learner.target_critic.members:
                member.tail[-1].bias += shift
        return target_pass(learner, batch, 1.0).returns

    change = (returns(10.0) - returns(-10.0))[:, 0]  # the second call is the unshifted critic again
    first_row = batch.is_transition[:, 0] > 0
    ends = first_row & (batch.terminated[:, 0] > 0)
    cut = first_row & (batch.is_transition[:, 1] == 0) & ~ends
    assert ends.any()
    assert cut.any()
    assert (change[ends] == 0.0).all()
    assert change[cut].tolist() == pytest.approx([CONFIG.discount * 10.0] * int(cut.sum()), rel=1e-4)


def test_metrics_are_what_their_names_say():
    # Pitfall 17: loss_policy_mean is not the total. Recomputed with N log densities and torch.distributions.
    learner, batch = make_learner(), make_batch()
    scale = 2.0
    state = learner.generator.get_state()
    before = {name: value.detach().clone() for name, value in vars_of_duals(learner).items()}
    with torch.no_grad():
        online = learner.online_policy(tensors(batch).observation.flatten(0, 1))
    target = target_pass(learner, tensors(batch), scale)
    critic = learner.critic_loss(tensors(batch), target.returns).item()
    learner.generator.set_state(state)
    metrics = learner.update(batch, scale, want_metrics=True)
    weights = torch.from_numpy(batch.policy_state.flatten() / batch.policy_state.sum())
    mpo = CONFIG.mpo
    task = nonparametric_estep(target.q_values, before["temperature"], mpo.epsilon, weights)
    bounds_cost = out_of_bounds_cost(target.actions)
    penalty = nonparametric_estep(bounds_cost, before["penalty_temperature"], mpo.epsilon_penalty, weights)
    both = task.normalized_weights + penalty.normalized_weights
    nll = {
        "mean": -(both * log_prob(online.mean, target.policy.stddev, target.actions)).sum(0),
        "stddev": -(both * log_prob(target.policy.mean, online.stddev, target.actions)).sum(0),
    }
    kl = {
        "mean": weights @ kl_mean(target.policy.mean, target.policy.stddev, online.mean),
        "stddev": weights @ kl_stddev(target.policy.stddev, online.stddev),
    }
    rows = torch.from_numpy(batch.is_transition)
    loss_penalty = before["alpha_mean"] @ kl["mean"] + before["alpha_stddev"] @ kl["stddev"]
    expected = {
        "loss_critic": critic,
        "loss_policy_mean": weights @ nll["mean"],
        "loss_policy_stddev": weights @ nll["stddev"],
        "loss_penalty": loss_penalty,
        "temperature": before["temperature"],
        "penalty_temperature": before["penalty_temperature"],
        "kl_q_rel": weights @ task.kl_nonparametric / mpo.epsilon,
        "kl_mean_rel": kl["mean"].mean() / mpo.epsilon_mean,
        "kl_mean_rel_max": kl["mean"].max() / mpo.epsilon_mean,
        "kl_stddev_rel": kl["stddev"].mean() / mpo.epsilon_stddev,
        "alpha_mean": before["alpha_mean"].mean(),
        "alpha_stddev": before["alpha_stddev"].mean(),
        "entropy": entropy(online.stddev).mean(),
        "stddev_mean": online.stddev.mean(),
        "q_mean": target.q_values.mean() * scale,
        "q_min": target.q_values.min() * scale,
        "q_max": target.q_values.max() * scale,
        "return_target_mean": target.returns[rows > 0].mean() * scale,
        "trace_coefficient_mean": target.coefficients[rows > 0].mean(),
        "out_of_bounds_mean": (target.actions.abs() > 1.0).any(-1).float().mean(),
    }
    assert set(expected) == set(metrics._fields)
    for name, value in expected.items():
        assert getattr(metrics, name) == pytest.approx(float(value), rel=1e-4, abs=1e-7), name


def vars_of_duals(learner):
    return {
        name: getattr(learner.duals, name)
        for name in ("temperature", "penalty_temperature", "alpha_mean", "alpha_stddev")
    }


def test_gradients_go_where_they_belong():
    # Pitfall 5, at the level of the whole update: the critics' loss, the policy's and the duals' do not mix.
    learner, batch = make_learner(), make_batch()
    base = gradients(learner, batch)
    assert all(value.abs().max() > 0 for value in base.values())
    learner.online_critic.members[0].tail[-1].bias.data += 1.0  # changes the critic's own loss only
    changed = gradients(learner, batch)
    assert torch.equal(changed["policy"], base["policy"])
    assert torch.equal(changed["duals"], base["duals"])
    assert not torch.equal(changed["critic"], base["critic"])
    learner.online_policy.head.bias.data += 0.1
    moved = gradients(learner, batch)
    assert torch.equal(moved["critic"], changed["critic"])
    assert not torch.equal(moved["policy"], changed["policy"])


@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_gradients_agree_with_a_plain_implementation(center, penalty):
    from benchmarks._naive_update import NaiveLearner

    learner = make_learner(mpo__center_weights=center, mpo__action_penalization=penalty)
    batch = make_batch()
    keep = (
        (batch.is_transition > 0).all(axis=1)
        & (batch.policy_state > 0).all(axis=1)
        & (batch.trace_valid > 0).all(axis=1)
    )
    batch = replaced(batch, **{name: getattr(batch, name)[keep] for name in batch._fields})
    assert keep.any()
    naive = NaiveLearner(learner)
    naive.copy_targets(learner)
    learner.backward(batch)
    naive.gradients(batch)
    assert max(naive.gradient_differences(learner).values()) < 1e-4


def test_flat_parameters_are_the_modules_parameters():
    learner = make_learner()
    modules = (
        learner.online_policy,
        learner.online_critic,
        learner.target_policy,
        learner.target_critic,
        learner.duals,
    )
    for name, module in zip(NETWORKS, modules):
        flat = learner.flat[name]
        assert flat.numel() == sum(p.numel() for p in module.parameters())
        flat.copy_(torch.arange(flat.numel(), dtype=torch.float32))
        assert torch.equal(torch.cat([p.detach().flatten() for p in module.parameters()]), flat)
    learner = make_learner()
    learner.backward(make_batch())
    for name in NETWORKS[:2]:
        collected = torch.cat([p.grad.flatten() for p in getattr(learner, f"online_{name}").parameters()])
        assert torch.equal(collected, learner.flat[name].grad)


def test_an_update_moves_the_networks_and_clears_the_gradients():
    learner = make_learner()
    before = {name: learner.flat[name].clone() for name in NETWORKS}
    learner.update(make_batch())
    for name in NETWORKS:
        assert not torch.equal(learner.flat[name], before[name]), name
    for name in ("policy", "critic", "duals"):
        assert learner.flat[name].grad.abs().max() == 0.0


def test_duals_are_above_their_floors_after_every_update():
    learner = make_learner()
    with torch.no_grad():
        learner.flat["duals"].fill_(-1e3)
    learner.update(make_batch())
    temperatures, multipliers = learner.flat["duals"][:2], learner.flat["duals"][2:]
    assert temperatures.min() >= MIN_RAW_TEMPERATURE
    assert multipliers.min() >= MIN_RAW_ALPHA


def test_polyak_targets():
    learner = make_learner(target_update_rate=0.25)
    for _ in range(3):
        old = {name: learner.flat[f"target_{name}"].clone() for name in ("policy", "critic")}
        learner.update(make_batch())
        for name, value in old.items():
            want = 0.75 * value + 0.25 * learner.flat[name]
            assert torch.allclose(learner.flat[f"target_{name}"], want, atol=1e-7)


def test_hard_targets_are_copied_every_period_and_only_then():
    learner = make_learner(target_update_rate=None, target_update_period=3)
    old = {name: learner.flat[f"target_{name}"].clone() for name in ("policy", "critic")}
    for step in range(1, 8):
        learner.update(make_batch())
        for name in old:
            if step % 3 == 0:
                old[name] = learner.flat[name].clone()
            assert torch.equal(learner.flat[f"target_{name}"], old[name]), (step, name)


def test_the_gradient_norm_is_bounded_for_policy_and_critics_but_not_for_duals():
    # Pitfall 15: a bound in the config that is never applied.
    def gradients_at_the_optimizer(bound):
        learner = make_learner(grad_clip_norm=bound)
        seen = {}
        for name, optimizer in learner.optimizers.items():
            flat = learner.flat[name]
            optimizer.step = lambda name=name, flat=flat: seen.update({name: flat.grad.clone()})
        learner.update(make_batch())
        return seen

    free, bound = gradients_at_the_optimizer(None), gradients_at_the_optimizer(1e-3)
    for name in ("policy", "critic"):
        assert free[name].norm().item() > 1e-3
        assert bound[name].norm().item() == pytest.approx(1e-3, rel=1e-2)
        assert torch.nn.functional.cosine_similarity(free[name], bound[name], dim=0).item() == pytest.approx(1.0)
        loose = gradients_at_the_optimizer(1e6)
        assert torch.equal(loose[name], free[name])
    assert torch.equal(free["duals"], bound["duals"])


@pytest.mark.parametrize("spoiled", ["reward", "observation", "action"])
def test_a_batch_that_is_not_finite_is_refused_and_changes_nothing(spoiled):
    learner, control = make_learner(), make_learner()
    learner.update(make_batch())
    control.update(make_batch())
    batch = make_batch()
    array = getattr(batch, spoiled).copy()
    array[0, 0] = np.nan
    with pytest.raises(DivergenceError, match="learner step 1"):
        learner.update(replaced(batch, **{spoiled: array}))
    assert learner.learner_steps == 1
    learner.generator.set_state(control.generator.get_state())  # only the noise was used up
    assert_equal_states(learner.state_dict(), control.state_dict())
    learner.update(batch)
    control.update(batch)
    assert_equal_states(learner.state_dict(), control.state_dict())


def assert_equal_states(left, right, path=""):
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_equal_states(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for index, pair in enumerate(zip(left, right)):
            assert_equal_states(*pair, f"{path}[{index}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    else:
        assert left == right, path


def test_a_restored_learner_continues_exactly(tmp_path):
    # Pitfall 21: networks, targets, duals, optimiser moments and the noise generator are all in the state.
    learner = make_learner()
    for _ in range(3):
        learner.update(make_batch())
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    other = make_learner(seed=9)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_equal_states(other.state_dict(), learner.state_dict())
    for _ in range(3):
        left = learner.update(make_batch(), want_metrics=True)
        right = other.update(make_batch(), want_metrics=True)
        assert left == right
    assert_equal_states(other.state_dict(), learner.state_dict())


def test_settings_changed_at_a_resume_are_those_in_force():
    learner = make_learner()
    learner.update(make_batch())
    changes = {"learning_rate_policy": 2e-4, "learning_rate_critic": 3e-4, "learning_rate_duals": 4e-4}
    fixed = {"mpo__temperature_update": "fixed", "mpo__init_temperature": 0.1, "learning_rate_decay_steps": None}
    other = make_learner(**fixed, **changes)
    other.load_state_dict(learner.state_dict())
    for _ in range(2):
        metrics = other.update(make_batch(), want_metrics=True)
    rates = {f"learning_rate_{name}": item.param_groups[0]["lr"] for name, item in other.optimizers.items()}
    assert rates == pytest.approx(changes)
    assert metrics.temperature == pytest.approx(0.1)
    assert metrics.penalty_temperature == pytest.approx(0.1)


def test_the_state_is_a_copy():
    learner = make_learner()
    state = learner.state_dict()
    kept = {name: state[name].clone() for name in NETWORKS}
    learner.update(make_batch())
    for name in NETWORKS:
        assert torch.equal(state[name], kept[name])


def test_a_state_of_other_networks_is_refused():
    with pytest.raises(ValueError, match="policy has"):
        make_learner().load_state_dict(make_learner(policy__hidden_sizes=(9,)).state_dict())


def test_same_seed_same_updates_other_seed_other_updates():
    def run(seed):
        learner = Learner(OBSERVATION_SIZE, ACTION_SIZE, CONFIG, seed)
        return [learner.update(make_batch(), want_metrics=True) for _ in range(3)]

    first = run(1)
    torch.manual_seed(123)  # the global generator has no say
    assert run(1) == first
    assert run(2) != first


def test_metrics_do_not_change_the_update():
    plain, measured = make_learner(), make_learner()
    for _ in range(2):
        assert plain.update(make_batch()) is None
        metrics = measured.update(make_batch(), want_metrics=True)
        assert all(math.isfinite(value) for value in metrics)
    assert_equal_states(plain.state_dict(), measured.state_dict())


def test_the_reward_scale_divides_rewards_and_nothing_else():
    # Same returns in scaled units, and q metrics back in units of reward.
    batch = make_batch()
    small, large = make_learner(), make_learner()
    first = small.update(batch, 1.0, want_metrics=True)
    second = large.update(replaced(batch, reward=4.0 * batch.reward), 4.0, want_metrics=True)
    for name in first._fields:
        factor = 4.0 if name in ("q_mean", "q_min", "q_max", "return_target_mean") else 1.0
        assert getattr(second, name) == pytest.approx(factor * getattr(first, name), rel=1e-5), name
    assert_equal_states(small.state_dict(), large.state_dict())


def test_learning_rates_fall_linearly_and_stay_at_their_end():
    learner = make_learner(learning_rate_decay_steps=4, learning_rate_end=0.2, learning_rate_end_critic=0.6)
    seen = []
    for _ in range(6):
        learner.update(make_batch())
        seen.append({name: item.param_groups[0]["lr"] for name, item in learner.optimizers.items()})
    policy, critic = [1.0, 0.8, 0.6, 0.4, 0.2, 0.2], [1.0, 0.9, 0.8, 0.7, 0.6, 0.6]
    assert [rates["policy"] for rates in seen] == pytest.approx([CONFIG.learning_rate_policy * x for x in policy])
    assert [rates["critic"] for rates in seen] == pytest.approx([CONFIG.learning_rate_critic * x for x in critic])
    assert {rates["duals"] for rates in seen} == {CONFIG.learning_rate_duals}
