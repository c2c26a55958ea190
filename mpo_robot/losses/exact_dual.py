"""The E-step's temperature as the exact minimiser of its convex dual, solved in torch for a whole batch.

Axes: K objectives, N sampled (or all discrete) actions, S states.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MIN_TEMPERATURE = 1e-8
DEFAULT_ITERATIONS = 12
ENOUGH = 1e-9  # relative error of the KL


@torch.no_grad()
def exact_temperature(
    q_values: Tensor,
    epsilon: float | Tensor,
    state_weights: Tensor,
    log_prior: Tensor | None = None,
    iterations: int = DEFAULT_ITERATIONS,
    min_temperature: float = MIN_TEMPERATURE,
) -> Tensor:
    """Temperature eta > 0 that minimises g(eta) = eta epsilon + eta mean_s log E_pi exp(Q(s, a) / eta).

    Abdolmaleki et al. 2018, equation 9. g is convex and g'(eta) = epsilon - mean_s KL(q_eta || pi), so eta is where the
    weights q_eta spend exactly `epsilon`. Newton's method on log KL over log eta, which far from the solution is a
    straight line of slope -2, inside a bracket that is halved whenever the next Newton step would leave it or the last
    one did not halve the error. Computed in float64: KLs of 1e-6 are below float32's resolution. At most `iterations`
    steps, usually 3 to 5; on another device than the CPU always all of them, without synchronising.

    The result scales with Q: values that differ by rounding only get a temperature as small. Where the KL cannot reach
    `epsilon` at any temperature (all values equal, or epsilon >= log N, or -log pi(best action)), the infimum lies at
    eta -> 0 and the result is `min_temperature`; a solution below that is `min_temperature` too.

    Args:
        q_values: [N, S], or [K, N, S] for K objectives at once.
        epsilon: Bound in nats, positive; [K] tensor for one each.
        state_weights: [S] non-negative, sum 1.
        log_prior: [N, S] (or [K, N, S]) log pi(a_n|s) when the actions are all discrete actions. None for samples from
            pi, where each has 1/N. -inf is allowed.
        iterations: The default leaves a relative error of the KL below 1e-6 on all but extreme values: states whose
            values differ by many orders of magnitude, or a bound within 1e-4 of the largest possible KL, may need 20.
        min_temperature: Smallest result.

    Returns:
        [1], or [K]; dtype of `q_values`, no gradient. Usable as `temperature` of the E-step functions, where it gives
        the hard-constraint form without a learned temperature. NaN where a value is not finite.

    Raises:
        ValueError: shapes do not fit, or a bound that is not positive.
    """
    values = q_values.unsqueeze(0) if q_values.ndim == 2 else q_values
    if values.ndim != 3 or state_weights.shape != values.shape[2:]:
        raise ValueError(f"need q_values [(K,) N, S], state_weights [S], got {q_values.shape}, {state_weights.shape}")
    if log_prior is not None and log_prior.shape not in (values.shape, values.shape[1:]):
        raise ValueError(f"log_prior must have the shape of q_values {q_values.shape}, got {log_prior.shape}")
    if isinstance(epsilon, float | int) and not epsilon > 0.0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    values, weights = values.double(), state_weights.double()
    bound = torch.as_tensor(epsilon, dtype=torch.float64, device=values.device).expand(values.shape[0])
    prior = None if log_prior is None else log_prior.double().exp()
    best = values.amax(dim=1) if prior is None else values.where(prior > 0.0, -math.inf).amax(dim=1)
    gap = (values - best.unsqueeze(1)).clamp(max=0.0)  # [K, N, S]
    # KL <= range^2 / (8 eta^2) for values in an interval (Hoeffding), which bounds eta from above.
    high = (0.5 * ((gap.amin(dim=1).square() @ weights) / (8.0 * bound)).log()).clamp(min=math.log(min_temperature))
    low = torch.full_like(high, math.log(min_temperature))
    problem = _Problem(torch.stack([torch.ones_like(gap), gap, gap.square()], dim=1), prior, weights)
    at_floor = problem.kl(low)[0] <= bound
    root = torch.where(at_floor, low, _solve(problem, bound, low, high, at_floor, iterations))
    root = root + 0.0 * gap.sum(dim=(1, 2))  # a value that is not finite gives NaN, not a temperature
    return root.exp().to(q_values.dtype)


class _Problem(NamedTuple):
    """What stays the same between iterations: powers 0, 1, 2 of the gaps to the best action, and the weights."""

    powers: Tensor  # [K, 3, N, S]
    prior: Tensor | None  # [N, S] or [K, N, S]
    weights: Tensor  # [S]

    def kl(self, log_temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Mean KL(q || pi) at [K] temperatures, and its derivative -mean_s Var_q(Q / eta) by log temperature; [K].

        No logarithms of sums of exponentials are needed: the best action contributes exp(0).
        """
        inverse = (-log_temperature).exp()[:, None]
        unnormalized = (self.powers[:, 1] * inverse.unsqueeze(1)).exp()  # [K, N, S]
        if self.prior is not None:
            unnormalized = unnormalized * self.prior
        total, first, second = (self.powers * unnormalized.unsqueeze(1)).sum(dim=2).unbind(dim=1)  # [K, S] each
        normalizer = total if self.prior is not None else total / self.powers.shape[2]
        mean = inverse * first / total
        variance = inverse.square() * second / total - mean.square()
        return (mean - normalizer.log()) @ self.weights, -variance @ self.weights


def _solve(problem: _Problem, bound: Tensor, low: Tensor, high: Tensor, solved: Tensor, iterations: int) -> Tensor:
    """[K] log temperatures with KL = bound, where the KL is at least the bound at `low` and at most at `high`.

    Of no meaning where `solved`.
    """
    point, best, smallest = high, high, torch.full_like(high, math.inf)
    previous, on_cpu = smallest, high.device.type == "cpu"
    for _ in range(iterations):
        kl, derivative = problem.kl(point)
        error = (kl.clamp(min=1e-300) / bound).log()
        # Kept aside: once the error is down at rounding it no longer halves, and the search moves away again.
        better = error.abs() < smallest
        best, smallest = torch.where(better, point, best), torch.where(better, error.abs(), smallest)
        # On another device the test would wait for it; there the iterations left over cost less.
        if on_cpu and bool((solved | (smallest < ENOUGH)).all()):
            break
        low, high = torch.where(error < 0.0, low, point), torch.where(error < 0.0, point, high)
        newton = point - error * kl / derivative
        trusted = (newton >= low) & (newton <= high) & (error.abs() <= 0.5 * previous)
        point, previous = torch.where(trusted, newton, 0.5 * (low + high)), error.abs()
    return best
