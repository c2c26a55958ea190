"""Policy and critic networks, and parameters in one flat tensor."""

import math

import pytest
import torch

from mpo_robot import networks
from mpo_robot.networks import (
    Critic,
    CriticConfig,
    CriticEnsemble,
    GaussianPolicy,
    PolicyConfig,
    flat_gradient,
    flatten_parameters,
)

O, A, S, N = 4, 2, 6, 7  # noqa: E741


def critics(**options):
    torch.manual_seed(0)
    return CriticEnsemble(O, A, CriticConfig(**{"hidden_sizes": (16, 8), **options}))


def policy(**options):
    torch.manual_seed(0)
    return GaussianPolicy(O, A, PolicyConfig(hidden_sizes=(16, 8), **options))


@pytest.mark.parametrize("layer_norm", [True, False])
def test_the_untrained_policy_has_the_configured_stddev_and_a_mean_near_zero(layer_norm):
    for init_stddev in (0.05, 0.5, 2.0):
        mean, stddev = policy(layer_norm=layer_norm, init_stddev=init_stddev, min_stddev=1e-3)(torch.randn(50, O))
        assert torch.allclose(stddev, torch.full_like(stddev, init_stddev), rtol=0.05)
        assert mean.abs().max() < 0.05
        assert mean.shape == stddev.shape == (50, A)


def test_the_stddev_never_falls_below_its_floor():
    network = policy(init_stddev=0.5, min_stddev=0.1)
    with torch.no_grad():
        network.head.bias[A:] = -100.0
    assert network(torch.randn(5, O)).stddev.min() >= 0.1


@pytest.mark.parametrize("layer_norm", [True, False])
def test_a_critic_is_an_ordinary_network_over_state_and_action(layer_norm):
    torch.manual_seed(0)
    critic = Critic(O, A, CriticConfig(hidden_sizes=(16, 8), layer_norm=layer_norm))
    joint = torch.nn.Linear(O + A, 16)
    with torch.no_grad():
        joint.weight.copy_(torch.cat([critic.observation_in.weight, critic.action_in.weight], dim=1))
        joint.bias.copy_(critic.observation_in.bias)
    observation, action = torch.randn(S, O), torch.randn(S, A)
    expected = critic.tail(joint(torch.cat([observation, action], dim=1))).squeeze(-1)
    assert torch.allclose(critic(observation, action), expected, atol=1e-6)
    kinds = {type(layer) for layer in critic.tail}
    assert (torch.nn.LayerNorm in kinds) == layer_norm


def test_a_residual_critic_adds_what_each_block_makes_of_the_normalised_hidden_units():
    # By hand, in the form of the paper: x <- x + W2 ReLU(W1 LayerNorm(x)), then LayerNorm and the head.
    torch.manual_seed(0)
    critic = Critic(O, A, CriticConfig(hidden_sizes=(8, 8, 8), residual_expansion=3)).double()
    observation, action = torch.randn(S, O).double(), torch.randn(S, A).double()

    def normalize(units):
        centred = units - units.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    hidden = critic.observation_in(observation) + action @ critic.action_in.weight.T
    *blocks, _, head = critic.tail
    assert len(blocks) == 2
    for block in blocks:
        _, widen, _, narrow = block.branch
        assert widen.weight.shape == (24, 8)
        hidden = hidden + (normalize(hidden) @ widen.weight.T + widen.bias).clamp(min=0) @ narrow.weight.T + narrow.bias
    expected = normalize(hidden) @ head.weight[0] + head.bias
    torch.testing.assert_close(critic(observation, action), expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hidden_sizes": (16,)}, "two hidden_sizes or more, all equal; got \\(16,\\)"),
        ({"hidden_sizes": (16, 8)}, "all equal; got \\(16, 8\\)"),
        ({"layer_norm": False}, "residual blocks normalise"),
        ({"residual_expansion": 0}, "at least 1, or null for plain layers; got 0"),
    ],
)
def test_residual_blocks_that_cannot_be_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        CriticConfig(**{"hidden_sizes": (16, 16), "residual_expansion": 2, **options})


def test_the_split_first_layer_starts_like_a_joint_one():
    critic = Critic(O, A, CriticConfig(hidden_sizes=(4000,)))
    bound = 1.0 / math.sqrt(O + A)  # torch's default for O + A inputs
    for weight in (critic.observation_in.weight, critic.action_in.weight):
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3.0), rel=0.05)


@pytest.mark.parametrize("chunk_rows", [1, 2 * S, 5 * S, 10_000])
@pytest.mark.parametrize("kind", [{}, {"hidden_sizes": (8, 8), "residual_expansion": 2}])
def test_many_actions_equal_one_at_a_time_whatever_the_chunks(chunk_rows, kind, monkeypatch):
    monkeypatch.setattr(networks, "CHUNK_ROWS", chunk_rows)
    ensemble = critics(aggregate="min", **kind)
    observation, actions = torch.randn(S, O), torch.randn(N, S, A)
    with torch.no_grad():
        each = torch.stack([ensemble(observation, actions[n]).amin(dim=0) for n in range(N)])
    values = ensemble.target_values(observation, actions)
    assert values.shape == (N, S)
    assert torch.allclose(values, each, atol=1e-6)
    assert not values.requires_grad


@pytest.mark.parametrize("aggregate", ["min", "mean"])
def test_values_and_distributions_come_from_one_pass_over_the_actions(aggregate, monkeypatch):
    monkeypatch.setattr(networks, "CHUNK_ROWS", 2 * S)
    ensemble = critics(aggregate=aggregate, head="c51", num_atoms=11)
    observation, actions = torch.randn(S, O), torch.randn(N, S, A)
    with torch.no_grad():
        pmfs = torch.stack(
            [torch.stack([m.outputs(observation, a).softmax(-1) for a in actions]).mean(0) for m in ensemble.members]
        )
    rows = []
    ensemble.members[0].tail[0].register_forward_pre_hook(
        lambda module, inputs: rows.append(inputs[0].shape[:-1].numel())
    )
    values, pmf, atoms = ensemble.target_distribution(observation, actions)
    assert sum(rows) == N * S
    torch.testing.assert_close(values, ensemble.target_values(observation, actions))
    chosen = pmfs[(pmfs @ atoms).argmin(0), torch.arange(S)] if aggregate == "min" else pmfs.mean(0)
    torch.testing.assert_close(pmf, chosen)


def test_the_inputs_are_left_alone():
    # Layers work in place where they can.
    ensemble, network = critics(), policy()
    observation, actions = torch.randn(S, O), torch.randn(N, S, A)
    before = observation.clone(), actions.clone()
    ensemble.target_values(observation, actions)
    ensemble(observation, actions[0]).sum().backward()
    network(observation).mean.sum().backward()
    assert torch.equal(observation, before[0])
    assert torch.equal(actions, before[1])


@pytest.mark.parametrize("kind", [{"hidden_sizes": (6, 5)}, {"hidden_sizes": (5, 5), "residual_expansion": 2}])
def test_gradients_through_the_in_place_layers_are_right(kind):
    torch.manual_seed(0)
    critic = Critic(O, A, CriticConfig(**kind)).double()
    observation, action = torch.randn(3, O).double(), torch.randn(3, A).double()
    parameters = list(critic.parameters())

    def value(*values):
        named = {name: value for (name, _), value in zip(critic.named_parameters(), values)}
        return torch.func.functional_call(critic, named, (observation, action))

    assert torch.autograd.gradcheck(value, tuple(p.detach().requires_grad_() for p in parameters))


def test_members_differ_and_are_combined_by_minimum_or_mean():
    values = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert critics(aggregate="min").combine(values).tolist() == [1.0, 2.0]
    assert critics(aggregate="mean").combine(values).tolist() == [2.0, 3.5]
    ensemble = critics(num_critics=3)
    output = ensemble(torch.randn(S, O), torch.randn(S, A))
    assert output.shape == (3, S)
    assert not torch.allclose(output[0], output[1])


def test_flat_parameters_are_shared_both_ways():
    network = policy()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    flat = flatten_parameters(network)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
    flat.mul_(2.0)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, 2.0 * before[name])
    network(torch.randn(S, O)).mean.sum().backward()
    gradient = flat_gradient(flat)
    assert torch.equal(gradient, torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert gradient.abs().max() > 0
    network(torch.randn(S, O)).mean.sum().backward()  # gradients add up in place, they are not replaced
    assert torch.equal(flat_gradient(flat), torch.cat([p.grad.flatten() for p in network.parameters()]))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: PolicyConfig(hidden_sizes=()), "hidden_sizes"),
        (lambda: PolicyConfig(hidden_sizes=(8, 0)), "hidden_sizes"),
        (lambda: PolicyConfig(init_stddev=0.1, min_stddev=0.1), "min_stddev < init_stddev"),
        (lambda: CriticConfig(hidden_sizes=()), "hidden_sizes"),
        (lambda: CriticConfig(num_critics=0), "num_critics"),
        (lambda: CriticConfig(aggregate="max"), "min or mean"),
    ],
)
def test_impossible_settings_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
