"""The matrix products of one learner update, alone: a lower bound of its time on this machine.

Every product of the forward and backward passes is listed with its size and run back to back on buffers that were
allocated before. Nothing else of the update is in it: no bias, activation, normalisation, loss, optimiser or copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch


class Sizes(NamedTuple):
    """What an update's products depend on."""

    sequences: int
    steps: int
    samples: int
    observation: int
    action: int
    policy_hidden: tuple[int, ...]
    critic_hidden: tuple[int, ...]
    critics: int

    @property
    def states(self) -> int:
        """States in which the policies act, bootstrap states included."""
        return self.sequences * (self.steps + 1)


class Product(NamedTuple):
    """[rows, inner] times [inner, columns]."""

    rows: int
    inner: int
    columns: int


def products(size: Sizes) -> list[Product]:
    """All matrix products that the update needs, in order."""
    states, transitions = size.states, size.sequences * size.steps
    traced = size.sequences * (size.steps - 1)  # Retrace uses Q(s_t, a_t) of all steps but the first
    policy = _layers(states, size.observation, *size.policy_hidden, 2 * size.action)
    result = list(policy)  # target policy
    for _ in range(size.critics):  # target critics: the state part of the first layer serves all samples
        result.append(Product(states, size.observation, size.critic_hidden[0]))
        for rows in (size.samples * states, traced):
            result += _layers(rows, size.action, *size.critic_hidden, 1) if rows else []
    result += policy + _backward(policy, inputs=1)
    for _ in range(size.critics):
        state_part = Product(transitions, size.observation, size.critic_hidden[0])
        layers = [state_part, *_layers(transitions, size.action, *size.critic_hidden, 1)]
        result += layers + _backward(layers, inputs=2)
    return result


def _layers(rows: int, *widths: int) -> list[Product]:
    return [Product(rows, inner, columns) for inner, columns in itertools.pairwise(widths)]


def _backward(layers: list[Product], inputs: int) -> list[Product]:
    """Weight gradients of all layers, and input gradients of all but the first `inputs`."""
    weights = [Product(layer.inner, layer.rows, layer.columns) for layer in layers]
    return weights + [Product(layer.rows, layer.columns, layer.inner) for layer in layers[inputs:]]


def floating_point_operations(items: list[Product]) -> int:
    """Multiplications and additions."""
    return sum(2 * item.rows * item.inner * item.columns for item in items)


def candidates(items: list[Product]) -> dict[str, Callable[[], None]]:
    """Ways to run the products: torch's default, its oneDNN route, each with the large ones whole or in chunks."""
    result: dict[str, Callable[[], None]] = {}
    for chunk in (None, 512, 1024, 2048):
        label = "whole" if chunk is None else f"chunks of {chunk} rows"
        result[f"mm, {label}"] = _runner(items, chunk, one_dnn=False)
        result[f"oneDNN linear, {label}"] = _runner(items, chunk, one_dnn=True)
    return result


def _runner(items: list[Product], chunk: int | None, one_dnn: bool) -> Callable[[], None]:
    calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for item in items:
        left, out = torch.randn(item.rows, item.inner), torch.empty(item.rows, item.columns)
        weight = torch.randn(item.columns, item.inner)
        rows = chunk or item.rows
        calls += [(a, weight, b) for a, b in zip(left.split(rows), out.split(rows))]
    linear = torch.ops.mkldnn._linear_pointwise

    def run_one_dnn() -> None:
        for left, weight, _ in calls:
            linear(left, weight, None, "none", [], "")  # this operator cannot write to a given buffer

    transposed = [(left, weight.t(), out) for left, weight, out in calls]

    def run_mm() -> None:
        for left, weight, out in transposed:
            torch.mm(left, weight, out=out)

    return run_one_dnn if one_dnn else run_mm
