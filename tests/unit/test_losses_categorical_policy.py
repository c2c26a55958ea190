"""E- and M-step over discrete actions against numbers worked by hand."""

import math

import pytest
import torch

from mpo_robot.losses.categorical_policy import categorical_estep, categorical_mstep

LOG = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
STATES = torch.tensor([0.25, 0.75])


def estep(q, logits=LOG, temperature=1.0, epsilon=0.1, states=STATES):
    eta = torch.tensor([temperature], requires_grad=True)
    return categorical_estep(torch.tensor(q), logits, eta, epsilon, states), eta


def test_the_prior_is_in_the_weights():
    # Defect 8: softmax(Q / eta) alone gives 1/4, 1/2, 1/4 in the first state.
    two = math.log(2.0)
    result, _ = estep([[0.0, two, 0.0], [0.0, 0.0, 3 * two]])
    torch.testing.assert_close(result.weights, torch.tensor([[0.4, 0.4, 0.2], [0.1 / 1.7, 0.8 / 1.7, 0.8 / 1.7]]))


def test_equal_values_leave_the_policy_and_cost_temperature_times_epsilon():
    result, eta = estep([[3.0] * 3, [-1.0] * 3], temperature=2.0)
    torch.testing.assert_close(result.weights, LOG.exp())
    torch.testing.assert_close(result.kl_nonparametric, torch.zeros(2), atol=1e-6, rtol=0)
    assert result.loss_temperature.item() == pytest.approx(2.0 * 0.1 + 0.25 * 3.0 + 0.75 * -1.0)
    result.loss_temperature.backward()
    assert eta.grad.item() == pytest.approx(0.1, abs=1e-6)


def test_the_duals_gradient_is_epsilon_minus_the_mean_kl():
    result, eta = estep([[0.0, 2.0, -1.0], [1.0, 0.5, 3.0]], temperature=0.7)
    p, q = LOG.exp(), result.weights
    kl = (q * (q / p).log()).sum(-1)
    torch.testing.assert_close(result.kl_nonparametric, kl)
    result.loss_temperature.backward()
    assert eta.grad.item() == pytest.approx(0.1 - float(STATES @ kl), rel=1e-5)


def test_offsets_of_values_and_logits_change_no_weight():
    values = [[0.0, 2.0, -1.0], [1.0, 0.5, 3.0]]
    base, _ = estep(values)
    moved, _ = estep([[value + 50.0 for value in row] for row in values], LOG + torch.tensor([[7.0], [-30.0]]))
    torch.testing.assert_close(base.weights, moved.weights)


def test_huge_values_and_impossible_actions_stay_finite():
    logits = torch.tensor([[0.0, -math.inf, 0.0], [0.0, 0.0, 0.0]])
    result, eta = estep([[0.0, 1e4, 2.0], [-1e4, 0.0, 1e4]], logits, temperature=0.01)
    assert result.weights.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    assert torch.isfinite(result.kl_nonparametric).all()
    result.loss_temperature.backward()
    assert torch.isfinite(eta.grad).all()


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="state_weights"):
        estep([[0.0, 1.0, 2.0]])


def test_cross_entropy_and_kl_by_hand_and_where_their_gradients_go():
    online = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.6, 0.2]]).log().requires_grad_()
    target = LOG.clone().requires_grad_()
    alpha = torch.tensor([3.0], requires_grad=True)
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], requires_grad=True)
    result = categorical_mstep(online, target, weights, alpha, 0.01, STATES)
    expected = 0.25 * math.log(4) - 0.75 * 0.5 * (math.log(0.6) + math.log(0.2))
    assert result.loss_policy.item() == pytest.approx(expected, rel=1e-5)
    first = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    second = 0.2 * math.log(0.5) + 0.8 * math.log(8 / 6)
    kl = 0.25 * first + 0.75 * second  # KL(target || online), not the other way round
    assert result.penalty.kl.item() == pytest.approx(kl, rel=1e-4)
    assert result.penalty.loss_kl.item() == pytest.approx(3.0 * kl, rel=1e-4)
    (result.loss_policy + result.penalty.loss_kl).backward(retain_graph=True)
    assert alpha.grad is None
    assert target.grad is None
    assert weights.grad is None
    # d/d logits of cross-entropy is pi - q, of the KL pi_online - pi_target.
    pi, states = online.exp().detach(), STATES[:, None]
    torch.testing.assert_close(online.grad, states * ((pi - weights.detach()) + 3.0 * (pi - LOG.exp())))
    online.grad = None
    result.penalty.loss_alpha.backward()
    assert online.grad is None
    assert alpha.grad.item() == pytest.approx(0.01 - kl, rel=1e-4)


def test_the_mstep_alone_reaches_the_weights():
    weights = torch.tensor([[0.2, 0.7, 0.1]])
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        result = categorical_mstep(logits, logits.detach(), weights, torch.zeros(1), 0.1, torch.ones(1))
        result.loss_policy.backward()
        optimizer.step()
    torch.testing.assert_close(logits.softmax(-1).detach(), weights, atol=1e-4, rtol=0)
