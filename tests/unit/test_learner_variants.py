"""The learner's settings that choose among estimators and E-step forms use the function they name."""

import math

import numpy as np
import pytest
import torch

from mpo_robot.errors import DivergenceError
from mpo_robot.losses.families import DiagonalFamily, FullFamily, weighted_moments
from mpo_robot.losses.returns import n_step, off_policy_returns, td_lambda, td_zero
from mpo_robot.mpo_config import LearnerConfig, MPOConfig
from mpo_robot.networks import CriticConfig, PolicyConfig
from tests.support.learning import make_batch, make_learner, target_pass, tensors


@pytest.mark.parametrize(
    ("settings", "traces"),
    [
        ({"returns": "td_zero"}, lambda v, valid: td_zero(v)),
        ({"returns": "td_lambda", "retrace_lambda": 0.6}, lambda v, valid: td_lambda(v, valid, 0.6)),
        ({"returns": "n_step", "return_horizon": 2}, lambda v, valid: n_step(v, valid, 2)),
        ({"returns": "n_step"}, lambda v, valid: n_step(v, valid, 3)),
    ],
)
def test_returns_are_those_of_the_named_estimator(settings, traces):
    learner, batch = make_learner(**settings), tensors(make_batch())
    target = target_pass(learner, batch, reward_scale=2.0)
    sequences, steps = batch.reward.shape
    next_value = target.q_values.mean(dim=0).view(sequences, steps + 1)[:, 1:]
    valid = batch.trace_valid * batch.is_transition
    discount = learner.config.discount * (1 - batch.terminated)
    expected = off_policy_returns(batch.reward / 2.0, discount, next_value, *traces(next_value, valid))
    torch.testing.assert_close(target.returns, expected)


def test_a_horizon_of_one_makes_retrace_the_one_step_target():
    batch = tensors(make_batch())
    results = []
    for settings in ({"returns": "td_zero"}, {"return_horizon": 1}, {"retrace_lambda": 0.0}):
        results.append(target_pass(make_learner(**settings), batch).returns)
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_the_exact_temperature_spends_the_whole_bound():
    learner = make_learner(mpo__temperature_update="exact", mpo__num_samples=64)
    before = learner.duals.raw_alpha_mean.clone()
    metrics = learner.update(make_batch(), want_metrics=True)
    assert metrics is not None
    assert metrics.kl_q_rel == pytest.approx(1.0, abs=1e-3)
    assert metrics.temperature == pytest.approx(learner.duals.temperature.item())
    assert not torch.equal(before, learner.duals.raw_alpha_mean)  # the multipliers are learned all the same


def test_a_fixed_temperature_stays_what_it_was():
    learner = make_learner(mpo__temperature_update="fixed", mpo__init_temperature=0.3)
    for _ in range(3):
        learner.update(make_batch())
    assert learner.duals.temperature.item() == pytest.approx(0.3)
    assert learner.duals.penalty_temperature.item() == pytest.approx(0.3)


@pytest.mark.parametrize("value", [1e-6, 1e-3, 0.7, 20.0, 500.0])
def test_temperatures_can_be_written(value):
    duals = make_learner().duals
    duals.set_temperatures_(torch.tensor([value, 2 * value]))
    assert duals.temperature.item() == pytest.approx(value, rel=1e-4)
    assert duals.penalty_temperature.item() == pytest.approx(2 * value, rel=1e-4)
    duals.set_temperatures_(torch.tensor([value]))
    assert duals.penalty_temperature.item() == pytest.approx(2 * value, rel=1e-4)


@pytest.mark.parametrize(
    ("config", "settings", "text"),
    [
        (MPOConfig, {"temperature_update": "newton"}, "one of learned, exact, fixed"),
        (MPOConfig, {"mstep": "triple"}, "one of decoupled, single"),
        (MPOConfig, {"variational": "implicit"}, "one of nonparametric, parametric"),
        (MPOConfig, {"variational": "parametric", "mstep": "single"}, "needs mstep: decoupled"),
        (MPOConfig, {"parametric_estimator": "score"}, "one of importance, likelihood_ratio"),
        (MPOConfig, {"kl_form": "soft"}, "one of bound, price"),
        (PolicyConfig, {"covariance": "sparse"}, "diagonal or full"),
        (LearnerConfig, {"compile": True, "mpo": MPOConfig(temperature_update="exact")}, "cannot make one graph"),
        (LearnerConfig, {"critic": CriticConfig(head="hl_gauss"), "return_scale_bound": None}, "needs return_scale"),
        (LearnerConfig, {"critic": CriticConfig(head="hl_gauss"), "return_scale_bound": 6.1}, "cut off"),
        (LearnerConfig, {"returns": "gae"}, "one of retrace, td_lambda, n_step, td_zero"),
        (LearnerConfig, {"return_horizon": 0}, "at least 1"),
        (LearnerConfig, {"returns": "td_zero", "return_horizon": 3}, "no effect"),
    ],
)
def test_bad_settings_are_refused(config, settings, text):
    with pytest.raises(ValueError, match=text):
        config(**settings)


def test_centered_weights_keep_the_moments_expectation_and_lower_their_variance():
    states, size, samples = 4000, 3, 6
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(samples, states, size, generator=generator)
    q_values = noise @ torch.tensor([1.0, 0.5, 0.0]) - 0.2 * noise.square().sum(dim=-1)
    weights = torch.softmax(q_values, dim=0)
    moments = {}
    for center in (False, True):
        moments[center] = weighted_moments(DiagonalFamily, weights, noise, 1.0, center)
    for name in ("first", "second"):
        plain, centered = getattr(moments[False], name), getattr(moments[True], name)
        error = 5 * plain.std(dim=0) / states**0.5
        assert ((plain.mean(dim=0) - centered.mean(dim=0)).abs() < error).all()
        assert (centered.var(dim=0) < 0.8 * plain.var(dim=0)).all()
    assert moments[True].total == 1.0


def test_centered_weights_of_values_without_differences_leave_the_policy_alone():
    # All weights equal: the likelihood's gradient at the target policy itself is exactly zero, whatever was sampled.
    noise = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(1))
    weights = torch.full((6, 5), 2 / 6)
    for family, second in ((DiagonalFamily, torch.full((2,), 2.0)), (FullFamily, 2.0 * torch.eye(2))):
        moments = weighted_moments(family, weights, noise, 2.0, center=True)
        torch.testing.assert_close(moments.first, torch.zeros(5, 2), atol=1e-6, rtol=0)
        torch.testing.assert_close(moments.second, second.expand(5, *second.shape), atol=1e-6, rtol=0)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("form", ["bound", "price"])
@pytest.mark.parametrize("step", ["decoupled", "single"])
def test_every_form_of_the_mstep_trains(step, form, covariance):
    learner = make_learner(mpo__mstep=step, mpo__kl_form=form, policy__covariance=covariance)
    before = {name: flat.clone() for name, flat in learner.flat.items()}
    for _ in range(3):
        metrics = learner.update(make_batch(), want_metrics=True)
    assert metrics is not None
    assert all(math.isfinite(value) for value in metrics)
    assert not torch.equal(before["policy"], learner.flat["policy"])
    alphas = before["duals"][2:] != learner.flat["duals"][2:]
    assert alphas.any() == (form == "bound")
    assert (metrics.kl_stddev_rel == 0.0) == (step == "single")


def test_a_full_covariance_policy_that_is_diagonal_learns_like_a_diagonal_one():
    # The heads share their rows; with the rest of the Cholesky factor at zero every loss but its gradient is the same.
    diagonal, full = make_learner(), make_learner(policy__covariance="full")
    size = diagonal.online_policy.head.weight.shape[0]
    with torch.no_grad():
        for mine, theirs in (
            (full.online_policy, diagonal.online_policy),
            (full.target_policy, diagonal.target_policy),
        ):
            mine.torso.load_state_dict(theirs.torso.state_dict())
            for parameter, source in ((mine.head.weight, theirs.head.weight), (mine.head.bias, theirs.head.bias)):
                parameter.zero_()
                parameter[:size].copy_(source)
        for name in ("critic", "target_critic"):
            full.flat[name].copy_(diagonal.flat[name])
    first, second = (learner.backward(make_batch(), want_metrics=True) for learner in (full, diagonal))
    assert first is not None
    assert second is not None
    for name in first._fields:
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-4, abs=1e-6), name
    rows = full.online_policy.head.weight.grad[:size]
    torch.testing.assert_close(rows, diagonal.online_policy.head.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("aggregate", ["min", "mean"])
@pytest.mark.parametrize(("returns", "horizon"), [("td_zero", None), ("n_step", 2), ("n_step", None)])
def test_the_mean_of_a_c51_target_is_the_scalar_return(returns, horizon, aggregate):
    settings = {"returns": returns, "return_horizon": horizon, "critic__aggregate": aggregate, "critic__head": "c51"}
    learner = make_learner(**settings, critic__num_atoms=401, critic__value_bound=20.0)
    batch = tensors(make_batch())
    target = target_pass(learner, batch, reward_scale=1.0)
    atoms = torch.linspace(-20.0, 20.0, 401)
    assert target.critic_target.shape == (*batch.reward.shape, 401)
    torch.testing.assert_close(target.critic_target.sum(dim=-1), torch.ones_like(batch.reward), atol=1e-5, rtol=0)
    if aggregate == "mean":
        # E over actions of the mean critic is the mean of the mixture; the minimum is taken per state here, per
        # action there, so only a bound holds for it.
        torch.testing.assert_close(target.critic_target @ atoms, target.returns, atol=2e-4, rtol=0)
    else:
        assert (target.critic_target @ atoms >= target.returns - 2e-4).all()
    before = learner.flat["critic"].clone()
    learner.update(make_batch())
    assert not torch.equal(before, learner.flat["critic"])


def test_c51_with_corrected_returns_is_refused():
    for returns in ("retrace", "td_lambda"):
        with pytest.raises(ValueError, match="use td_zero or n_step, or head: hl_gauss"):
            make_learner(returns=returns, critic__head="c51")


def test_an_hl_gauss_critic_learns_a_scalar_target():
    learner = make_learner(critic__head="hl_gauss", learning_rate_critic=1e-2)
    batch = tensors(make_batch())
    target = torch.linspace(-2.0, 2.0, batch.reward.numel()).view(batch.reward.shape)
    first = learner.critic_loss(batch, target).item()
    for _ in range(200):
        learner.optimizers["critic"].zero_grad(set_to_none=False)
        learner.critic_loss(batch, target).backward()
        learner.optimizers["critic"].step()
    rows = batch.is_transition.flatten() > 0
    values = learner.online_critic(batch.observation[:, :-1].flatten(0, 1), batch.action.clamp(-1, 1).flatten(0, 1))
    assert learner.critic_loss(batch, target).item() < 0.5 * first
    assert (values.mean(dim=0) - target.flatten()).abs()[rows].mean() < 0.3


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("estimator", ["importance", "likelihood_ratio"])
def test_the_parametric_variant_learns_without_temperatures(estimator, covariance):
    settings = {"mpo__variational": "parametric", "mpo__parametric_estimator": estimator}
    learner = make_learner(**settings, policy__covariance=covariance)
    temperatures = learner.flat["duals"][:2].clone()
    before = learner.flat["policy"].clone()
    for _ in range(3):
        metrics = learner.update(make_batch(), want_metrics=True)
    assert metrics is not None
    assert all(math.isfinite(value) for value in metrics)
    assert metrics.kl_q_rel == pytest.approx(0.0, abs=1e-4)
    assert torch.equal(temperatures, learner.flat["duals"][:2])
    assert not torch.equal(before, learner.flat["policy"])


@pytest.mark.parametrize("estimator", ["importance", "likelihood_ratio"])
def test_the_parametric_gradient_is_that_of_the_online_policys_value(estimator):
    # Q = -|a|^2 / 2 has E Q = -(mean^2 + stddev^2) / 2, so the loss has the gradients mean and stddev: those of the
    # online policy, which is not the one that the critic's samples come from. (Narrow: actions are valued clipped.)
    settings = {"mpo__variational": "parametric", "mpo__parametric_estimator": estimator}
    learner = make_learner(**settings, mpo__num_samples=4000, mpo__action_penalization=False, policy__init_stddev=0.2)
    learner.target_critic.target_values = lambda observation, actions: -0.5 * actions.square().sum(-1)
    with torch.no_grad():
        bias = learner.online_policy.head.bias
        bias[:2] = torch.tensor([0.3, -0.2])
        learner.target_policy.head.bias.copy_(bias + torch.tensor([0.1, -0.1, 0.1, 0.2]))
    batch = tensors(make_batch())
    losses = learner.losses(batch, learner._noise(batch))
    acts = losses.state_weights > 0
    for gradient, wanted in zip(torch.autograd.grad(losses.mstep.loss_policy_mean, list(losses.online)), losses.online):
        each = gradient[acts] / losses.state_weights[acts].unsqueeze(-1)
        error = (each - wanted[acts].detach()).mean(dim=0)
        assert error.abs().max() < 0.02


def test_the_parametric_variant_climbs_towards_better_actions():
    # One dimension of a known Q: the mean must move up its slope and stay within the bound per target policy.
    learner = make_learner(mpo__variational="parametric", mpo__num_samples=64, mpo__action_penalization=False)
    batch = make_batch()
    learner.target_critic.target_values = lambda observation, actions: actions[..., 0]
    start = learner.online_policy(tensors(batch).observation.flatten(0, 1)).mean[:, 0].mean().item()
    for _ in range(30):
        learner.update(batch)
    end = learner.online_policy(tensors(batch).observation.flatten(0, 1)).mean[:, 0].mean().item()
    assert end > start + 0.05


@pytest.mark.slow  # compiling takes most of a minute, and longer beside other programs
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch, of itself
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"critic__head": "hl_gauss", "mpo__center_weights": True},
        {"critic__head": "c51", "returns": "n_step", "return_horizon": 2},
        {"policy__covariance": "full"},
        {"mpo__mstep": "single", "mpo__kl_form": "price", "mpo__temperature_update": "fixed"},
        {"mpo__variational": "parametric"},
        {"policy_update_period": 2},
        {
            "mpo__variational": "parametric",
            "mpo__parametric_estimator": "likelihood_ratio",
            "policy__covariance": "full",
        },
    ],
)
def test_compiled_losses_give_the_same_gradients(settings):
    compiled, eager = make_learner(compile=True, **settings), make_learner(**settings)
    for _ in range(2):
        for learner in (compiled, eager):
            learner.backward(make_batch(), reward_scale=1.5)
        for name in ("policy", "critic", "duals"):
            mine, plain = compiled.flat[name].grad, eager.flat[name].grad
            torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6 * plain.abs().max().item())
        for learner in (compiled, eager):
            learner._step()


def test_a_refused_batch_leaves_an_exact_temperature_alone():
    learner = make_learner(mpo__temperature_update="exact")
    learner.update(make_batch())
    before = {name: flat.clone() for name, flat in learner.flat.items()}
    batch = make_batch()
    for name in ("reward", "observation"):
        bad = batch._replace(**{name: np.full_like(getattr(batch, name), np.nan)})
        with pytest.raises(DivergenceError):
            learner.update(bad)
        assert all(torch.equal(flat, before[name]) for name, flat in learner.flat.items())
