"""Categorical value distributions on a fixed support: HL-Gauss targets and the C51 projection.

Axes: K atoms; all leading axes are free.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

HL_GAUSS_WIDTH = 0.75  # standard deviation of the target, in atom spacings (Farebrother et al. 2024, section 4)
# Atom spacings that must lie between a value and the support's end, or the histogram around it is cut off there and its
# mean too small: by little, but a bootstrapped value sums such errors 1 / (1 - discount) times.
MARGIN = 4.0 * HL_GAUSS_WIDTH


def support(bound: float, num_atoms: int) -> Tensor:
    """Atoms [K], evenly spaced from -bound to bound.

    Raises:
        ValueError: fewer than two atoms, or a bound that is not positive.
    """
    if num_atoms < 2 or not bound > 0:
        raise ValueError(f"need at least 2 atoms and a positive bound, got {num_atoms} and {bound}")
    return torch.linspace(-bound, bound, num_atoms)


def expected_value(logits: Tensor, atoms: Tensor) -> Tensor:
    """Mean [...] of the distributions softmax(logits) [..., K] on `atoms` [K]."""
    return torch.softmax(logits, dim=-1) @ atoms


def hl_gauss_pmf(values: Tensor, atoms: Tensor) -> Tensor:
    """Histogram [..., K] of a narrow normal around each value [...], cut off at the ends of the support.

    Farebrother et al. 2024 ("Stop Regressing"), equation 4: the mass between the borders half-way to the next atoms.
    Values outside the support are moved to its nearest end. No gradient. The mean of the result is the value, to single
    precision, for values at least `MARGIN` atom spacings inside the support.

    Args:
        values: Scalar targets in the units of the support.
        atoms: [K] evenly spaced.
    """
    with torch.no_grad():
        spacing = atoms[1] - atoms[0]
        inside = torch.minimum(torch.maximum(values, atoms[0]), atoms[-1])
        borders = torch.cat([atoms - 0.5 * spacing, atoms[-1:] + 0.5 * spacing])  # [K + 1]
        scaled = (borders - inside.unsqueeze(-1)) / (HL_GAUSS_WIDTH * math.sqrt(2.0) * spacing)
        cdf = torch.erf(scaled)
        return (cdf[..., 1:] - cdf[..., :-1]) / (cdf[..., -1:] - cdf[..., :1])


def project_pmf(pmf: Tensor, reward: Tensor, discount: Tensor, atoms: Tensor) -> Tensor:
    """Distribution [..., K] of reward + discount * Z on `atoms`, for Z ~ pmf [..., K] on the same atoms.

    The C51 projection (Bellemare et al. 2017, algorithm 1): mass is shared between the two nearest atoms so that the
    mean is kept; what falls outside the support goes to its ends. Linear in `pmf`, so the pmfs of several sampled
    actions with a common reward and discount may be averaged first. No gradient.

    Args:
        pmf: Sums to 1 over K.
        reward: [...].
        discount: [...], 0 after a termination.
        atoms: [K] evenly spaced.
    """
    with torch.no_grad():
        moved = reward.unsqueeze(-1) + discount.unsqueeze(-1) * atoms
        position = (moved.clamp(atoms[0], atoms[-1]) - atoms[0]) / (atoms[1] - atoms[0])
        low = position.floor().clamp(0, len(atoms) - 2)
        upper_share = position - low
        index = low.long()
        result = torch.zeros_like(pmf)
        result.scatter_add_(-1, index, pmf * (1.0 - upper_share))
        return result.scatter_add_(-1, index + 1, pmf * upper_share)


class Bootstrap(NamedTuple):
    """Where an n-step return is bootstrapped: reward + discount * Z(state after `step`). Each [B, T]."""

    reward: Tensor
    discount: Tensor
    step: Tensor


def n_step_bootstrap(reward_t: Tensor, discount_t: Tensor, trace_valid: Tensor, n: int) -> Bootstrap:
    """Sums of up to `n` rewards, what the value behind them is discounted by, and after which step it stands.

    The distributional counterpart of `losses.returns.n_step`; fewer steps where the window ends or the next step does
    not continue this one (`trace_valid` 0). No gradient.

    Args:
        reward_t: [B, T].
        discount_t: [B, T], 0 where the step terminated the task.
        trace_valid: [B, T] bool or 0/1, whether step t continues step t - 1.
        n: At least 1.
    """
    with torch.no_grad():
        continues = trace_valid[:, 1:] > 0
        own = torch.arange(reward_t.shape[1]).expand(reward_t.shape)
        reward, discount, index = reward_t, discount_t, own
        for _ in range(n - 1):
            longer, further, last = reward_t.clone(), discount_t.clone(), own.clone()
            longer[:, :-1] += torch.where(continues, discount_t[:, :-1] * reward[:, 1:], 0.0)
            further[:, :-1] = torch.where(continues, discount_t[:, :-1] * discount[:, 1:], discount_t[:, :-1])
            last[:, :-1] = torch.where(continues, index[:, 1:], own[:, :-1])
            reward, discount, index = longer, further, last
        return Bootstrap(reward, discount, index)


def cross_entropy(logits: Tensor, pmf: Tensor) -> Tensor:
    """-sum_k pmf_k log softmax(logits)_k, [...] nats; gradient to `logits` only."""
    return -(pmf.detach() * torch.log_softmax(logits, dim=-1)).sum(dim=-1)
