"""Policy and critic networks, and parameters laid out in one flat tensor.

Axes: S states, N sampled actions, O observation size, A action size, H hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpo_robot.losses.distributional import MARGIN, cross_entropy, expected_value, hl_gauss_pmf, support
from mpo_robot.losses.full_covariance import FullGaussian, stddev
from mpo_robot.losses.gaussian import Gaussian

CHUNK_ROWS = 2048  # of hidden activations in the target pass; with 256 units they fill 2 MB


@dataclass(frozen=True)
class PolicyConfig:
    """Gaussian policy network.

    Attributes:
        hidden_sizes: Widths of the hidden layers.
        layer_norm: Normalise each hidden layer before its ReLU.
        init_stddev: Standard deviation of the untrained policy, in normalised action space.
        min_stddev: Floor of the standard deviation.
        tanh_mean: Squash the mean into (-1, 1). Without it the mean may run far outside the bounds, where all samples
            are clipped to one action and the E-step sees no difference between them.
        covariance: `diagonal`, or `full` by its Cholesky factor. An exported file holds the marginal standard
            deviations only: a stochastic server samples the dimensions independently, and logs the density of that.
    """

    hidden_sizes: tuple[int, ...] = (256, 256)
    layer_norm: bool = True
    init_stddev: float = 0.5
    min_stddev: float = 1e-3
    tanh_mean: bool = False
    covariance: str = "diagonal"

    def __post_init__(self) -> None:
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes must hold positive widths, got {self.hidden_sizes}")
        if not 0 < self.min_stddev < self.init_stddev:
            raise ValueError(f"need 0 < min_stddev < init_stddev, got {self.min_stddev} and {self.init_stddev}")
        if self.covariance not in ("diagonal", "full"):
            raise ValueError(f"covariance must be diagonal or full, got {self.covariance!r}")


@dataclass(frozen=True)
class CriticConfig:
    """Ensemble of state-action value networks.

    Attributes:
        hidden_sizes: Widths of the hidden layers.
        layer_norm: Normalise each hidden layer before its ReLU.
        residual_expansion: null for plain layers. Else each hidden layer after the first is a residual block (SimBa,
            arXiv 2410.09754), which widens its input by this factor, and a LayerNorm follows the last.
        num_critics: Size of the ensemble; 2 for twin critics.
        aggregate: How target values are combined: the minimum, or the mean.
        head: `scalar` regression, or classification over a fixed support: `hl_gauss` with a narrow histogram around
            the scalar target, or `c51` with the projected distribution of the target critic.
        num_atoms: Size of that support.
        value_bound: The support reaches from -value_bound to value_bound, in units of the scaled return. Values beyond
            it are learned as its ends. `LearnerConfig.return_scale_bound` bounds the rewards that were summed up, not
            the value: where episodes are cut off (truncated) early the value goes on behind their end, and may lie
            outside. (A constant reward, discount 0.99 and 50 steps: the value is 8.8.)
    """

    hidden_sizes: tuple[int, ...] = (256, 256)
    layer_norm: bool = True
    residual_expansion: int | None = None
    num_critics: int = 2
    aggregate: str = "min"
    head: str = "scalar"
    num_atoms: int = 101
    value_bound: float = 6.0

    def __post_init__(self) -> None:
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes must hold positive widths, got {self.hidden_sizes}")
        if self.residual_expansion is not None:
            self._check_residual(self.residual_expansion)
        if self.num_critics < 1:
            raise ValueError(f"num_critics must be at least 1, got {self.num_critics}")
        if self.aggregate not in ("min", "mean"):
            raise ValueError(f"aggregate must be min or mean, got {self.aggregate!r}")
        if self.head not in ("scalar", "hl_gauss", "c51"):
            raise ValueError(f"head must be scalar, hl_gauss or c51, got {self.head!r}")
        if self.num_atoms < 2 or not self.value_bound > 0:
            raise ValueError(f"need num_atoms >= 2 and value_bound > 0, got {self.num_atoms} and {self.value_bound}")

    def _check_residual(self, expansion: int) -> None:
        if expansion < 1:
            raise ValueError(f"residual_expansion must be at least 1, or null for plain layers; got {expansion}")
        if len(self.hidden_sizes) < 2 or len(set(self.hidden_sizes)) > 1:
            raise ValueError(f"residual blocks need two hidden_sizes or more, all equal; got {self.hidden_sizes}")
        if not self.layer_norm:
            raise ValueError("residual blocks normalise: set layer_norm to true, or residual_expansion to null")

    @property
    def largest_value(self) -> float:
        """Largest value that the support represents without bias: its end but for `MARGIN` atom spacings."""
        return self.value_bound * (1.0 - 2.0 * MARGIN / (self.num_atoms - 1))

    @property
    def outputs(self) -> int:
        """Numbers per value: 1, or one logit per atom."""
        return 1 if self.head == "scalar" else self.num_atoms


class ResidualBlock(nn.Module):
    """x + W2 ReLU(W1 LayerNorm(x)), [..., H] to [..., H]; W1 widens by `expansion`, W2 narrows back.

    Source: Lee et al. 2024, SimBa, arXiv 2410.09754, section 4.
    """

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * width
        self.branch = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, wide), nn.ReLU(inplace=True), nn.Linear(wide, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden units plus what the branch makes of them."""
        return hidden + self.branch(hidden)


def hidden_layers(
    in_size: int, sizes: tuple[int, ...], layer_norm: bool, residual_expansion: int | None = None
) -> list[nn.Module]:
    """A linear layer to the first width, and `layers_after_first`."""
    return [nn.Linear(in_size, sizes[0]), *layers_after_first(sizes, layer_norm, residual_expansion)]


def layers_after_first(sizes: tuple[int, ...], layer_norm: bool, residual_expansion: int | None) -> list[nn.Module]:
    """What follows the linear layer to the first width.

    LayerNorm if wanted and ReLU, then Linear, LayerNorm and ReLU for each further width; or a residual block for each
    and a LayerNorm (`CriticConfig.residual_expansion`).
    """
    first, *rest = sizes
    if residual_expansion is not None:
        return [*(ResidualBlock(first, residual_expansion) for _ in rest), nn.LayerNorm(first)]
    layers: list[nn.Module] = [nn.LayerNorm(first)] if layer_norm else []
    layers.append(nn.ReLU(inplace=True))  # no layer before it needs its output for the gradient
    if rest:
        layers += hidden_layers(first, tuple(rest), layer_norm)
    return layers


def inverse_softplus(value: float) -> float:
    """x with softplus(x) = value > 0."""
    return value + math.log(-math.expm1(-value))


class GaussianPolicy(nn.Module):
    """Gaussian over normalised, unbounded actions; clipping happens at the environment and in the critic.

    The head gives means, raw diagonals of the scale, and for a full covariance the rest of the Cholesky factor.
    """

    def __init__(self, observation_size: int, action_size: int, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.action_size = action_size
        self.torso = nn.Sequential(*hidden_layers(observation_size, config.hidden_sizes, config.layer_norm))
        below = action_size * (action_size - 1) // 2 if config.covariance == "full" else 0
        self.head = nn.Linear(config.hidden_sizes[-1], 2 * action_size + below)
        with torch.no_grad():
            self.head.weight.mul_(0.01)
            self.head.bias.zero_()
            # softplus(bias) + min_stddev = init_stddev
            scale = inverse_softplus(config.init_stddev - config.min_stddev)
            self.head.bias[action_size : 2 * action_size] = scale

    def forward(self, observation: Tensor) -> Gaussian | FullGaussian:
        """Mean [S, A] and standard deviation [S, A] (or Cholesky factor [S, A, A]) of observations [S, O]."""
        size = self.action_size
        output = self.head(self.torso(observation))
        mean = output[:, :size].tanh() if self.config.tanh_mean else output[:, :size]
        scale = functional.softplus(output[:, size : 2 * size]) + self.config.min_stddev
        if self.config.covariance == "diagonal":
            return Gaussian(mean, scale)
        scale_tril = torch.diag_embed(scale)
        if size > 1:  # the ONNX exporter cannot handle empty indices
            rows, columns = torch.tril_indices(size, size, offset=-1)
            scale_tril[:, rows, columns] = output[:, 2 * size :]
        return FullGaussian(mean, scale_tril)

    def mean_and_stddev(self, observation: Tensor) -> Gaussian:
        """Mean and marginal standard deviation, each [S, A]."""
        policy = self(observation)
        return policy if isinstance(policy, Gaussian) else Gaussian(policy.mean, stddev(policy.scale_tril))


class Critic(nn.Module):
    """Q(s, a). The first layer is split in a state and an action part, so that N actions share one state part."""

    def __init__(self, observation_size: int, action_size: int, config: CriticConfig) -> None:
        super().__init__()
        first = config.hidden_sizes[0]
        self.observation_in = nn.Linear(observation_size, first)
        self.action_in = nn.Linear(action_size, first, bias=False)
        with torch.no_grad():  # as one layer over [O + A] inputs would be initialised
            bound = 1.0 / math.sqrt(observation_size + action_size)
            for parameter in (self.observation_in.weight, self.observation_in.bias, self.action_in.weight):
                parameter.uniform_(-bound, bound)
        tail = layers_after_first(config.hidden_sizes, config.layer_norm, config.residual_expansion)
        self.tail = nn.Sequential(*tail, nn.Linear(config.hidden_sizes[-1], config.outputs))
        self.atoms: Tensor | None = None
        if config.head != "scalar":
            self.atoms = support(config.value_bound, config.num_atoms)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Values [S] of normalised observations [S, O] and clipped actions [S, A]."""
        return self.value(self.outputs(observation, action))

    def outputs(self, observation: Tensor, action: Tensor) -> Tensor:
        """What the network gives, before it becomes a value: [S, 1 or K]."""
        return self.tail(torch.addmm(self.observation_in(observation), action, self.action_in.weight.t()))

    def value(self, output: Tensor) -> Tensor:
        """Value [...] of outputs [..., 1 or K]."""
        return output.squeeze(-1) if self.atoms is None else expected_value(output, self.atoms)

    def error(self, observation: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """Loss [S]: half the squared error to values [S], or the cross-entropy to distributions [S, K]."""
        output = self.outputs(observation, action)
        return 0.5 * (output.squeeze(-1) - target).square() if self.atoms is None else cross_entropy(output, target)

    def many_actions(self, observation: Tensor, actions: Tensor) -> Tensor:
        """Values [N, S] of N actions [N, S, A] at each observation [S, O]."""
        return torch.cat([self.value(output) for output in self._blocks(observation, actions)])

    def distribution(self, observation: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """`many_actions`, and the mean over the N actions of their distributions, [S, K]; for a categorical head."""
        assert self.atoms is not None
        values, total = [], torch.zeros(())
        for output in self._blocks(observation, actions):
            pmf = torch.softmax(output, dim=-1)
            values.append(pmf @ self.atoms)
            total = total + pmf.sum(dim=0)
        return torch.cat(values), total / len(actions)

    def _blocks(self, observation: Tensor, actions: Tensor) -> list[Tensor]:
        """`outputs` of N actions [N, S, A], a few actions at a time: [n, S, 1 or K] each.

        So the activations stay in the processor's cache. Without gradient.
        """
        state_part = self.observation_in(observation)  # [S, H]
        parts = []
        for block in actions.split(max(1, CHUNK_ROWS // len(observation))):
            hidden = self.action_in(block)  # [n, S, H]
            hidden += state_part
            for layer in self.tail:
                if isinstance(layer, nn.Linear):  # a product with a bias would copy that to all rows first
                    hidden = functional.linear(hidden, layer.weight)
                    hidden += layer.bias
                else:
                    hidden = layer(hidden)
            parts.append(hidden)
        return parts


class CriticEnsemble(nn.Module):
    """`num_critics` independent critics."""

    def __init__(self, observation_size: int, action_size: int, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(Critic(observation_size, action_size, config) for _ in range(config.num_critics))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """All members' values, [num_critics, S]."""
        return torch.stack([member(observation, action) for member in self._critics()])

    def error(self, observation: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """Loss [S], summed over the members, against target values [S]; for `c51` against distributions [S, K]."""
        if self.config.head == "hl_gauss":
            atoms = self._critics()[0].atoms
            assert atoms is not None
            target = hl_gauss_pmf(target, atoms)
        return torch.stack([member.error(observation, action, target) for member in self._critics()]).sum(dim=0)

    def _critics(self) -> list[Critic]:
        return [cast(Critic, member) for member in self.members]

    @torch.no_grad()
    def target_values(self, observation: Tensor, actions: Tensor) -> Tensor:
        """Combined values [N, S] of actions [N, S, A], without gradient."""
        return self.combine(torch.stack([member.many_actions(observation, actions) for member in self._critics()]))

    @torch.no_grad()
    def target_distribution(self, observation: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`target_values`, each state's value distribution [S, K] averaged over the N actions, and the atoms [K].

        `min` takes the member with the smaller mean in each state, `mean` the mixture of the members.
        """
        atoms = self._critics()[0].atoms
        assert atoms is not None
        members = [member.distribution(observation, actions) for member in self._critics()]
        values, pmfs = (torch.stack(parts) for parts in zip(*members))  # [C, N, S], [C, S, K]
        if self.config.aggregate == "mean":
            return self.combine(values), pmfs.mean(dim=0), atoms
        lowest = (pmfs @ atoms).argmin(dim=0)  # [S]
        return self.combine(values), pmfs[lowest, torch.arange(len(lowest))], atoms

    def combine(self, values: Tensor) -> Tensor:
        """Minimum or mean over the first axis."""
        return values.amin(dim=0) if self.config.aggregate == "min" else values.mean(dim=0)


def flatten_parameters(module: nn.Module) -> Tensor:
    """Move a module's parameters into one flat tensor, of which they become views, and return it.

    One optimiser call, one lerp or copy then serves all of them. Gradients accumulate into views of `flat.grad`.
    """
    parameters = list(module.parameters())
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    flat.grad = torch.zeros_like(flat)
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.data = flat[start:end].view(parameter.shape)
        parameter.grad = flat.grad[start:end].view(parameter.shape)
        start = end
    return flat


def flat_gradient(flat: Tensor) -> Tensor:
    """Gradient tensor of a flat parameter tensor made by `flatten_parameters`."""
    assert flat.grad is not None
    return flat.grad
