"""Duals: values as configured, positive, able to recover, independent of each other's flags."""

import pytest
import torch

from mpo_robot.duals import FLOOR, MIN_RAW_ALPHA, MIN_RAW_TEMPERATURE, Duals
from mpo_robot.mpo_config import MPOConfig


def test_initial_values_are_values_not_raw_parameters():
    # Pitfall 2: "log" parameters behind softplus, where 1000 means 1000 and 0.1 does not mean 0.1.
    duals = Duals(3, MPOConfig(init_temperature=0.1, init_alpha_mean=7.0, init_alpha_stddev=1000.0))
    assert duals.temperature.tolist() == pytest.approx([0.1], rel=1e-4)
    assert duals.penalty_temperature.tolist() == pytest.approx([0.1], rel=1e-4)
    assert duals.alpha_mean.tolist() == pytest.approx([7.0] * 3, rel=1e-4)
    assert duals.alpha_stddev.tolist() == pytest.approx([1000.0] * 3, rel=1e-4)


def test_a_single_bound_has_a_single_multiplier():
    duals = Duals(3, MPOConfig(per_dim_constraining=False))
    assert duals.alpha_mean.shape == duals.alpha_stddev.shape == (1,)


@pytest.mark.parametrize("name", ["temperature", "penalty_temperature", "alpha_mean", "alpha_stddev"])
def test_a_dual_driven_to_the_floor_stays_positive_and_recovers(name):
    # Pitfall 3: a projection by clipping has no gradient below zero, so that the dual would be stuck.
    duals = Duals(2, MPOConfig())
    raw = getattr(duals, f"raw_{name}")
    with torch.no_grad():
        raw.fill_(-1e6)
    duals.clamp_()
    assert (raw == (MIN_RAW_ALPHA if "alpha" in name else MIN_RAW_TEMPERATURE)).all()
    value = getattr(duals, name)
    assert (value >= FLOOR).all()
    assert (value < 1e-3).all()
    optimizer = torch.optim.Adam(duals.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        (-getattr(duals, name).sum()).backward()
        optimizer.step()
        duals.clamp_()
    assert (getattr(duals, name) > 1.0).all()


@pytest.mark.parametrize(("kind", "violation"), [("alpha_mean", 1e-2), ("alpha_stddev", 2e-5)])
def test_a_multiplier_at_its_floor_answers_a_small_violation(kind, violation):
    # Bounds on the KL are small numbers, and so are violations of them: Adam must not take the gradient for nothing.
    duals = Duals(2, MPOConfig())
    with torch.no_grad():
        getattr(duals, f"raw_{kind}").fill_(-1e6)
    duals.clamp_()
    optimizer = torch.optim.Adam(duals.parameters(), lr=1e-2)
    for _ in range(1000):
        optimizer.zero_grad()
        (-violation * getattr(duals, kind).sum()).backward()
        optimizer.step()
        duals.clamp_()
    assert (getattr(duals, kind) > 0.1).all()


@pytest.mark.parametrize(("per_dim", "penalty"), [(a, b) for a in (True, False) for b in (True, False)])
def test_every_combination_of_flags_has_all_duals_before_and_after_a_step(per_dim, penalty):
    # Pitfall 4: one flag decided over the other's temperature.
    duals = Duals(2, MPOConfig(per_dim_constraining=per_dim, action_penalization=penalty))
    before = {name: parameter.shape for name, parameter in duals.named_parameters()}
    duals.clamp_()
    assert {name: parameter.shape for name, parameter in duals.named_parameters()} == before
    assert set(before) == {"raw_temperature", "raw_penalty_temperature", "raw_alpha_mean", "raw_alpha_stddev"}
