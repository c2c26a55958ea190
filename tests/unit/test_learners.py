"""From a configuration to a learner: what `auto` stands for, and what is refused before anything is trained."""

from dataclasses import replace

import pytest
import torch

from mpo_robot.collection import make_noise
from mpo_robot.errors import ConfigError
from mpo_robot.learners import make_learner, require_fitting
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.training_config import TrainingConfig
from tests.support.learning import CONFIG, change
from tests.support.onnx_files import small_spec


def rates(planned_updates, *, steps, **changes):
    config = change(CONFIG, learning_rate_end=0.2, learning_rate_end_critic=0.6, **changes)
    learner = make_learner(small_spec(), config, 0, planned_updates)
    learner.learner_steps = steps
    return [learner._rate(name) / learner._rates[name] for name in ("policy", "critic")]


def test_the_rates_fall_over_the_whole_training():
    assert LearnerConfig().learning_rate_decay_steps == "auto"
    assert TrainingConfig(total_steps=1000, updates_per_step=0.5).planned_updates == 500
    assert TrainingConfig(total_steps=2, updates_per_step=0.1).planned_updates == 1
    for steps, expected in ((0, [1.0, 1.0]), (250, [0.6, 0.8]), (500, [0.2, 0.6]), (900, [0.2, 0.6])):
        assert rates(500, steps=steps, learning_rate_decay_steps="auto") == pytest.approx(expected)
    assert rates(500, steps=250, learning_rate_decay_steps=1000) == pytest.approx([0.8, 0.9])
    assert rates(500, steps=250, learning_rate_decay_steps=None) == [1.0, 1.0]


def test_outside_a_training_the_rates_are_constant():
    assert rates(None, steps=100, learning_rate_decay_steps="auto") == [1.0, 1.0]


@pytest.mark.parametrize(
    ("control_dt", "discount", "color"),  # Hopper, cheetah-run and HalfCheetah have 8, 20 and 50 ms
    [(0.001, 0.995, 1.0), (0.0075, 0.995, 1.0), (0.008, 1 - 8 / 1500, 1.0), (0.015, 0.99, 1.0), (0.02, 0.99, 1.0),
     (0.025, 0.99, 1.0), (0.04, 0.99, 0.625), (0.05, 0.99, 0.5), (0.5, 0.99, 0.5)],
)  # fmt: skip
def test_horizon_and_noise_are_spans_of_time(control_dt, discount, color):
    spec = replace(small_spec(), control_dt=control_dt)
    assert make_learner(spec, change(CONFIG, discount="auto"), 0).config.discount == pytest.approx(discount, abs=1e-15)
    assert make_learner(spec, change(CONFIG, discount=0.7), 0).config.discount == 0.7
    assert make_noise(spec, TrainingConfig()).colored.color == pytest.approx(color)
    assert make_noise(spec, TrainingConfig(noise_color=0.3)).colored.color == 0.3


def test_no_learner_guesses_a_discount():
    assert LearnerConfig().discount == "auto"
    with pytest.raises(ValueError, match="needs the control period"):
        LearnerConfig().discount_at()


@pytest.mark.parametrize(
    "changes",
    [
        {"policy__hidden_sizes": (10**7, 10**7)},
        {"critic__head": "hl_gauss", "critic__num_atoms": 10**12 + 1},
        {"mpo__init_temperature": 1e300},
        {"mpo__init_alpha_stddev": 1e39},
    ],
)
def test_what_no_machine_or_float_can_hold_is_refused(changes):
    with pytest.raises(ConfigError, match=r"no learner of these settings can be made here: .*hidden_sizes"):
        require_fitting(small_spec(), change(LearnerConfig(), **changes), environments=1)


def test_a_large_stddev_begins_as_what_it_is():
    policy = make_learner(small_spec(), change(CONFIG, policy__init_stddev=1000.0), 0).online_policy
    assert policy(torch.zeros(1, small_spec().observation_size)).stddev[0, 0].item() == pytest.approx(1000.0, rel=1e-5)


def test_ppo_without_its_package_is_refused_with_the_way_to_it(monkeypatch):
    monkeypatch.setattr("mpo_robot.learners.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mpo-robot\[train,baselines\]'"):
        require_fitting(small_spec(), change(CONFIG, algorithm="ppo"), environments=1)
