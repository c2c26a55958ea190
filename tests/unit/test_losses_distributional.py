import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpo_robot.losses.distributional import (
    cross_entropy,
    expected_value,
    hl_gauss_pmf,
    n_step_bootstrap,
    project_pmf,
    support,
)
from mpo_robot.losses.returns import n_step, off_policy_returns
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.networks import CriticConfig

ATOMS = support(5.0, 101)


def reference_projection(pmf, reward, discount, atoms):
    """Atom by atom, in float64."""
    spacing, result = atoms[1] - atoms[0], np.zeros(len(atoms))
    for mass, atom in zip(pmf, atoms):
        position = (min(max(reward + discount * atom, atoms[0]), atoms[-1]) - atoms[0]) / spacing
        low = int(np.floor(position + 1e-9))
        share = position - low
        result[low] += mass * (1 - share)
        if low + 1 < len(atoms):
            result[low + 1] += mass * share
    return result


def test_the_support_by_hand():
    assert support(2.0, 5).tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="at least 2 atoms"):
        support(1.0, 1)
    with pytest.raises(ValueError, match="positive bound"):
        support(0.0, 5)


@given(st.lists(st.floats(-4.5, 4.5, width=32), min_size=1, max_size=8))
def test_an_hl_gauss_target_keeps_the_value(values):
    values = torch.tensor(values)
    pmf = hl_gauss_pmf(values, ATOMS)
    assert pmf.shape == (len(values), 101)
    assert (pmf >= 0).all()
    torch.testing.assert_close(pmf.sum(dim=-1), torch.ones(len(values)), atol=1e-5, rtol=0)
    torch.testing.assert_close(pmf @ ATOMS, values, atol=2e-3, rtol=0)  # 2 % of an atom's spacing


def test_an_hl_gauss_target_against_the_normal_distribution():
    from scipy.stats import norm

    pmf = hl_gauss_pmf(torch.tensor([1.234]), ATOMS)[0].numpy()
    borders = np.append(ATOMS.numpy() - 0.05, 5.05)
    expected = np.diff(norm.cdf(borders, loc=1.234, scale=0.075))
    np.testing.assert_allclose(pmf, expected, atol=1e-6)


def test_values_outside_the_support_go_to_its_ends():
    low, high, end = hl_gauss_pmf(torch.tensor([-50.0, 7.0, 5.0]), ATOMS)
    assert low.argmax() == 0
    assert torch.equal(high, end)
    assert torch.isfinite(low).all()


@pytest.mark.parametrize("num_atoms", [31, 101])
def test_a_perfectly_fitted_critic_finds_the_value_of_a_constant_reward(num_atoms):
    # The errors of a histogram that the support cuts off would add up 1 / (1 - discount) times, to percents.
    config = CriticConfig(head="hl_gauss", num_atoms=num_atoms)
    atoms = support(config.value_bound, num_atoms).double()
    for value in (config.largest_value, 0.98 * config.largest_value, -config.largest_value):
        reward, learned = 0.01 * value, torch.zeros(1).double()
        for _ in range(3000):
            learned = hl_gauss_pmf(reward + 0.99 * learned, atoms) @ atoms
        spacing = float(atoms[1] - atoms[0])
        assert learned.item() == pytest.approx(value, abs=0.01 * spacing)


def test_the_default_support_holds_the_largest_scaled_return_without_bias():
    assert LearnerConfig().return_scale_bound <= CriticConfig().largest_value


def test_an_expected_value_by_hand():
    logits = torch.log(torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]])) + 3.0
    torch.testing.assert_close(expected_value(logits, support(1.0, 3)), torch.tensor([0.0, 0.6]))


def test_cross_entropy_has_its_minimum_at_the_target_and_no_gradient_to_it():
    pmf = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    logits = torch.log(pmf.detach()).requires_grad_()
    loss = cross_entropy(logits, pmf)
    loss.backward()
    assert loss.item() == pytest.approx(-(0.2 * np.log(0.2) + 0.3 * np.log(0.3) + 0.5 * np.log(0.5)), rel=1e-5)
    assert logits.grad.abs().max() < 1e-6
    assert pmf.grad is None


def test_a_projection_by_hand():
    atoms = support(2.0, 5)
    pmf = torch.tensor([0.0, 0.0, 0.5, 0.5, 0.0])  # values 0 and 1
    moved = project_pmf(pmf, torch.tensor(0.25), torch.tensor(1.0), atoms)
    assert moved.tolist() == [0.0, 0.0, 0.375, 0.5, 0.125]
    ended = project_pmf(pmf, torch.tensor(-1.0), torch.tensor(0.0), atoms)
    assert ended.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    beyond = project_pmf(pmf, torch.tensor(9.0), torch.tensor(1.0), atoms)
    assert beyond.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


@given(st.integers(0, 10_000), st.floats(-3, 3), st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_a_projection_equals_the_reference(seed, reward, discount):
    pmf = torch.softmax(3 * torch.randn(11, generator=torch.Generator().manual_seed(seed)), dim=0)
    atoms = support(2.0, 11)
    result = project_pmf(pmf, torch.tensor(reward), torch.tensor(discount), atoms)
    expected = reference_projection(pmf.double().numpy(), reward, discount, np.linspace(-2.0, 2.0, 11))
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


def test_the_mean_of_projections_is_the_projection_of_the_mean():
    pmfs = torch.softmax(torch.randn(20, 7, 101, generator=torch.Generator().manual_seed(0)), dim=-1)
    reward, discount = torch.linspace(-1, 1, 7), torch.full((7,), 0.99)
    each = project_pmf(pmfs, reward.expand(20, 7), discount.expand(20, 7), ATOMS).mean(dim=0)
    torch.testing.assert_close(project_pmf(pmfs.mean(dim=0), reward, discount, ATOMS), each, atol=3e-6, rtol=0)


def test_n_step_bootstraps_by_hand():
    reward = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    discount = torch.tensor([[0.5, 0.5, 0.0, 0.5]])
    valid = torch.tensor([[1.0, 1.0, 1.0, 0.0]])  # step 3 begins another episode
    one = n_step_bootstrap(reward, discount, valid, 1)
    assert (one.reward.tolist(), one.discount.tolist(), one.step.tolist()) == (
        reward.tolist(), discount.tolist(), [[0, 1, 2, 3]]
    )  # fmt: skip
    three = n_step_bootstrap(reward, discount, valid, 3)
    assert three.reward.tolist() == [[1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4.0, 8.0]]
    assert three.discount.tolist() == [[0.0, 0.0, 0.0, 0.5]]
    assert three.step.tolist() == [[2, 2, 2, 3]]


@given(st.integers(0, 1000), st.integers(1, 6))
def test_n_step_bootstraps_equal_n_step_returns(seed, n):
    rng = torch.Generator().manual_seed(seed)
    reward, value = torch.randn(3, 5, generator=rng), torch.randn(3, 5, generator=rng)
    discount = 0.9 * (torch.rand(3, 5, generator=rng) > 0.2)
    valid = torch.rand(3, 5, generator=rng) > 0.3
    result = n_step_bootstrap(reward, discount, valid, n)
    mine = result.reward + result.discount * value.gather(1, result.step)
    torch.testing.assert_close(mine, off_policy_returns(reward, discount, value, *n_step(value, valid, n)))
