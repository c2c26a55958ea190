"""Every field of the training's configuration changes something: a new field without an effect fails here.

Pitfalls 4, 15, 16 (a flag tied to another flag, a bound that is never applied, an optimiser's setting that another
optimiser receives) are of this kind.
"""

import dataclasses

import pytest
import torch

from mpo_robot.baselines.config import DDPGConfig, EPGConfig, SACConfig
from mpo_robot.cli import train
from mpo_robot.cli.settings import RunConfig
from mpo_robot.mpo_config import LearnerConfig, MPOConfig
from mpo_robot.networks import CriticConfig, PolicyConfig
from mpo_robot.run_folder import RunFolder
from mpo_robot.training_config import TrainingConfig
from sim import vector
from sim.config import EnvironmentConfig
from tests.support.learning import CONFIG, change
from tests.support.point_environment import PointEnvironment

TRAINING = TrainingConfig(
    total_steps=40,
    warmup_steps=12,
    updates_per_step=0.5,
    replay_capacity=30,
    normalize_observations=True,
    evaluation_period=15,
    evaluation_episodes=1,
    log_period=10,
    checkpoint_period=25,
    threads=1,
)
BASE = RunConfig(
    EnvironmentConfig("dm_control:cartpole-swingup"), TRAINING, change(CONFIG, grad_clip_norm=0.05), seed=0
)
SECTIONS = {
    "training": TrainingConfig,
    "learner": LearnerConfig,
    "learner__policy": PolicyConfig,
    "learner__critic": CriticConfig,
    "learner__mpo": MPOConfig,
    "learner__sac": SACConfig,
    "learner__ddpg": DDPGConfig,
    "learner__epg": EPGConfig,
}
# Fields whose other value cannot be guessed from their type.
OTHER_VALUES = {
    "learner__critic__aggregate": {"learner__critic__aggregate": "mean"},
    "training__checkpoint_minutes": {"training__checkpoint_minutes": 1e-9},
    "training__noise_color": {"training__noise_color": 0.0},
    "training__white_noise_steps": {"training__white_noise_steps": 20},
    "learner__critic__residual_expansion": {"learner__critic__residual_expansion": 2},
    "learner__critic__head": {"learner__critic__head": "hl_gauss"},
    "learner__critic__value_bound": {"learner__critic__value_bound": 8.0},  # not below return_scale_bound
    "learner__mpo__variational": {"learner__mpo__variational": "parametric"},
    "learner__mpo__parametric_estimator": {"learner__mpo__parametric_estimator": "likelihood_ratio"},
    "learner__mpo__mstep": {"learner__mpo__mstep": "single"},
    "learner__mpo__kl_form": {"learner__mpo__kl_form": "price"},
    "learner__policy__covariance": {"learner__policy__covariance": "full"},
    "learner__mpo__temperature_update": {"learner__mpo__temperature_update": "exact"},
    "learner__learning_rate_decay_steps": {"learner__learning_rate_decay_steps": 10},
    "learner__policy_average_updates": {"learner__policy_average_updates": 2},
    "learner__algorithm": {"learner__algorithm": "epg"},
    "learner__sac__target_entropy": {"learner__sac__target_entropy": -1.0},
    "learner__epg__entropy_bonus": {"learner__epg__entropy_bonus": 0.1},
    "learner__returns": {"learner__returns": "td_lambda"},
    "learner__return_horizon": {"learner__return_horizon": 2},
    "learner__target_update_period": {"learner__target_update_period": 3, "learner__target_update_rate": None},
}
TESTED_ELSEWHERE = {
    "learner__compile",  # test_learner_variants.py: it takes a minute and must change nothing
    "learner__categorical",  # test_categorical_learner.py
    "learner__ppo",  # test_ppo.py
    "training__replay_bytes",  # test_byte_replay.py
    "training__environment_threads",  # test_collection.py: it must change nothing
}
# Settings under which a field acts at all, and without those that would not act then: they are refused.
NO_MPO = {"learner__mpo": MPOConfig()}
NO_ESTEP = {"learner__mpo__center_weights": MPOConfig().center_weights}
NEEDS = {
    "learner__algorithm": NO_MPO,
    "learner__mpo__variational": NO_ESTEP,
    "learner__mpo__mstep": {"learner__mpo__epsilon_stddev": MPOConfig().epsilon_stddev},
    "learner__mpo__kl_form": {"learner__mpo__epsilon_stddev": MPOConfig().epsilon_stddev},
    "learner__policy_average_updates": {"training__updates_per_step": 1.0},  # enough for an average of two
    "learner__critic__num_atoms": {"learner__critic__head": "hl_gauss"},
    "learner__critic__residual_expansion": {"learner__critic__hidden_sizes": (8, 8)},
    "learner__learning_rate_end": {"learner__learning_rate_decay_steps": 20},
    "learner__learning_rate_end_critic": {"learner__learning_rate_decay_steps": 20},
    "learner__mpo__parametric_estimator": {"learner__mpo__variational": "parametric", **NO_ESTEP},
    "learner__critic__value_bound": {"learner__critic__head": "hl_gauss"},
    "learner__sac__init_temperature": {"learner__algorithm": "sac", **NO_MPO},
    "learner__sac__target_entropy": {"learner__algorithm": "sac", **NO_MPO},
    "learner__ddpg__noise_stddev": {"learner__algorithm": "ddpg", **NO_MPO},
    "learner__ddpg__num_samples": {"learner__algorithm": "ddpg", **NO_MPO},
    "learner__epg__num_samples": {"learner__algorithm": "epg", **NO_MPO},
    "learner__epg__entropy_bonus": {"learner__algorithm": "epg", **NO_MPO},
}


def fields():
    """Names of all leaf fields, with their section before them."""
    for section, cls in SECTIONS.items():
        for field in dataclasses.fields(cls):
            name = f"{section}__{field.name}"
            if name not in SECTIONS and name not in TESTED_ELSEWHERE:
                yield name


def nested(config, name):
    for part in name.split("__"):
        config = getattr(config, part)
    return config


def other_value(name):
    """Changes that give a field another value."""
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    value = nested(BASE, name)
    if isinstance(value, bool):
        return {name: not value}
    if isinstance(value, int):
        return {name: value + 1}
    if isinstance(value, float):
        return {name: 0.5 * value}
    if isinstance(value, tuple):
        return {name: (*value[:-1], value[-1] + 1)}
    raise AssertionError(f"add another value of {name} to OTHER_VALUES")


class RecordingWriter:
    """In place of CSV files and TensorBoard."""

    rows: list

    def __init__(self, *_):
        type(self).rows = []

    def metrics(self, row):
        self.rows.append({k: v for k, v in row.items() if k not in ("wall_time_s", "steps_per_second")})

    evaluation = metrics

    def close(self):
        pass


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """A function from a configuration to everything its training leaves behind."""
    for module in (train, vector):
        monkeypatch.setattr(module, "make_environment", lambda config: PointEnvironment())
    monkeypatch.setattr("mpo_robot.progress.MetricsWriter", RecordingWriter)
    monkeypatch.setattr("mpo_robot.run_folder.run_record", lambda seed: {})

    def run(config):
        folder = RunFolder(tmp_path / str(len(list(tmp_path.iterdir()))))
        threads = torch.get_num_threads()
        try:
            trainer = train.make_trainer(config, folder)
            used_threads = torch.get_num_threads()
            trainer.run()
        finally:
            torch.set_num_threads(threads)
        return {
            "threads": used_threads,
            "rows": RecordingWriter.rows,
            "checkpoints": sorted(path.name for path in folder.checkpoints.iterdir()),
            "policy": trainer.learner.state_dict()["policy"].tolist(),
            "critic": trainer.learner.state_dict()["critic"].tolist(),
            "duals": trainer.learner.state_dict().get("duals", torch.zeros(0)).tolist(),
            "target": trainer.learner.state_dict()["target_critic"].tolist(),
        }

    return run


@pytest.mark.parametrize("name", list(fields()))
def test_the_field_has_an_effect(name, outcome):
    base = change(BASE, **NEEDS.get(name, {}))
    changed = change(base, **other_value(name))
    assert nested(changed, name) != nested(base, name)
    assert outcome(changed) != outcome(base)


def test_the_same_configuration_gives_the_same_outcome(outcome):
    # Without this the test above would prove nothing.
    assert outcome(BASE) == outcome(BASE)


@pytest.mark.parametrize(
    ("field", "network"),
    [("learning_rate_policy", "policy"), ("learning_rate_critic", "critic"), ("learning_rate_duals", "duals")],
)
def test_each_learning_rate_reaches_its_own_optimizer_only(field, network, outcome):
    # Pitfall 16: the duals' optimiser built from the policy's settings. One update, so that nothing feeds back.
    first = {"training__total_steps": 13, "training__updates_per_step": 0.5}
    base = outcome(change(BASE, **first))
    changed = outcome(change(BASE, **first, **{f"learner__{field}": 0.5 * getattr(BASE.learner, field)}))
    for name in ("policy", "critic", "duals"):
        assert (base[name] != changed[name]) == (name == network), name


def test_the_penalty_is_independent_of_the_kind_of_bound(outcome):
    # Pitfall 4: all four combinations of the two flags train, each in its own way.
    flags = ("learner__mpo__per_dim_constraining", "learner__mpo__action_penalization")
    outcomes = [
        outcome(change(BASE, **{flags[0]: per_dimension, flags[1]: penalized}))
        for per_dimension in (False, True)
        for penalized in (False, True)
    ]
    assert all(left != right for index, left in enumerate(outcomes) for right in outcomes[:index])
