"""A setting that changes nothing is refused in a new training, and no other is; so is a training that cannot learn."""

import dataclasses

import numpy as np
import pytest
import torch

from mpo_robot.cli.main import main
from mpo_robot.config import dump_yaml
from mpo_robot.learners import make_learner
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.settings_check import idle_settings, objections
from mpo_robot.training_config import TrainingConfig
from tests.support import discrete_point, point_environment
from tests.support.learning import change, make_batch
from tests.unit.test_config_fields import BASE, other_value

TRAINING = TrainingConfig()
# With that noise the ratios of actions of another policy do not all vanish.
LEARNER = change(BASE.learner, learning_rate_decay_steps=20, ddpg__noise_stddev=1.0)
OTHER_VALUES = {
    "mpo__num_samples": {"mpo__num_samples": 7},
    "mpo__epsilon_stddev": {"mpo__epsilon_stddev": 1e-9},
    "mpo__parametric_estimator": {"mpo__parametric_estimator": "likelihood_ratio"},
}
SITUATIONS = [
    ({}, False),
    ({"algorithm": "sac"}, False),
    ({"algorithm": "ddpg"}, False),
    ({"algorithm": "ddpg", "returns": "td_zero"}, False),
    ({"algorithm": "epg"}, False),
    ({"mpo__variational": "parametric"}, False),
    ({"mpo__temperature_update": "fixed"}, False),
    ({"mpo__temperature_update": "exact"}, False),
    ({"mpo__action_penalization": False}, False),
    ({"mpo__mstep": "single"}, False),
    ({"mpo__kl_form": "price"}, False),
    ({"returns": "n_step"}, False),
    ({"critic__head": "hl_gauss"}, False),
    ({"critic__num_critics": 1}, False),
    ({"learning_rate_decay_steps": None}, False),
    ({"learning_rate_end": 1.0}, False),
    ({"return_horizon": 1}, False),
    ({"mpo__kl_form": "price", "mpo__temperature_update": "fixed"}, False),
    ({"mpo__kl_form": "price", "mpo__temperature_update": "exact"}, False),
    ({}, True),
    ({"mpo__temperature_update": "fixed"}, True),
    ({"mpo__temperature_update": "exact"}, True),
    ({"mpo__kl_form": "price"}, True),
    ({"mpo__kl_form": "price", "mpo__temperature_update": "exact"}, True),
    ({"mpo__variational": "parametric"}, True),
]
# Acts outside the learner, changes no number (compile), or has no other value that fits these tasks.
NOT_HERE = {
    "algorithm", "batch_sequences", "categorical__torso", "compile", "return_scale_bound", "sequence_length",
}  # fmt: skip


def leaves(config, prefix=""):
    """Names of all settings of the learner but PPO's."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}__") if name != "ppo" else ()
        elif name not in NOT_HERE:
            yield name


def other(config, name):
    """The configuration with another value of a setting; None if no other one fits."""
    changes = OTHER_VALUES.get(name)
    if changes is None:
        changes = {key.partition("__")[2]: value for key, value in other_value(f"learner__{name}").items()}
    try:
        changed = change(config, **changes)
    except ValueError:
        return None
    return changed if changed != config else None


def outcome(config, discrete):
    """Networks after a few updates, and an action."""
    spec = discrete_point.SPEC if discrete else point_environment.SPEC
    batch = discrete_point.make_discrete_batch() if discrete else make_batch()
    learner = make_learner(spec, config, seed=0)
    for _ in range(3):
        learner.update(batch)
    networks = [flat.tolist() for name, flat in learner.flat.items() if name != "duals"]
    action, log_prob = learner.actor().sample(np.ones(3, np.float32), np.full(spec.action_size, 0.3, np.float32))
    return networks, action.tolist(), log_prob


def judged(base, discrete):
    """Each setting's name, the configuration with another value of it, and whether that value would be refused."""
    for name in leaves(base):
        changed = None if discrete and name == "critic__head" else other(base, name)  # discrete critics are scalar
        if changed is not None:
            yield name, changed, f"learner.{name.replace('__', '.')}" in idle_settings(TRAINING, changed, discrete)


@pytest.mark.parametrize(("settings", "discrete"), SITUATIONS)
def test_a_setting_that_is_refused_changes_nothing(settings, discrete):
    base = change(LEARNER, **settings)
    before = outcome(base, discrete)
    for name, changed, is_idle in judged(base, discrete):
        assert not is_idle or outcome(changed, discrete) == before, name


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "discrete"), SITUATIONS)
def test_a_setting_that_changes_nothing_is_refused(settings, discrete):
    base = change(LEARNER, **settings)
    before = outcome(base, discrete)
    for name, changed, is_idle in judged(base, discrete):
        assert is_idle or outcome(changed, discrete) != before, name


def objections_to(num_actions=None, training=None, **learner):
    return list(objections(TrainingConfig(**(training or {})), change(LearnerConfig(), **learner), num_actions))


@pytest.mark.parametrize("algorithm", ["mpo", "sac", "ddpg", "epg", "ppo"])
@pytest.mark.parametrize("num_actions", [None, 4])
def test_no_default_is_refused(algorithm, num_actions):
    assert objections_to(num_actions, algorithm=algorithm) == []


@pytest.mark.parametrize(
    ("num_actions", "learner", "key", "hint"),
    [
        (2, {"mpo__epsilon": 0.2}, "learner.mpo.epsilon", "set learner.categorical.epsilon"),
        (2, {"mpo__num_samples": 20}, "learner.mpo.num_samples", "all summed over"),
        (None, {"mpo__variational": "parametric", "mpo__epsilon": 0.2}, "learner.mpo.epsilon", "has no E-step"),
        (2, {"compile": True}, "learner.compile", "unless learner.algorithm is mpo and the actions are continuous"),
        (None, {"categorical__epsilon": 0.2}, "learner.categorical.epsilon", "set learner.mpo"),
        (None, {"algorithm": "sac", "compile": True}, "learner.compile", "unless learner.algorithm is mpo"),
        (None, {"algorithm": "sac", "mpo__temperature_update": "exact"}, "learner.mpo.temp", "algorithm is mpo"),
        (None, {"algorithm": "ppo", "returns": "td_zero"}, "learner.returns", "whose settings are learner.ppo"),
        (None, {"return_horizon": 8}, "learner.return_horizon", "from learner.sequence_length on"),
        (None, {"ppo__epochs": 3}, "learner.ppo.epochs", "unless learner.algorithm is ppo"),
        (None, {"sequence_length": 1, "retrace_lambda": 0.5}, "learner.retrace_lambda", "after one step"),
        (None, {"critic__num_critics": 1, "critic__aggregate": "mean"}, "learner.critic.aggregate", "num_critics 1"),
    ],
)
def test_the_objection_names_the_setting_and_a_way_out(num_actions, learner, key, hint):
    (text,) = objections_to(num_actions, **learner)
    assert text.startswith(key)
    assert hint in text


def test_threads_for_one_environment_are_refused():
    (text,) = objections_to(training={"environment_threads": 2})
    assert text.startswith("training.environment_threads has no effect with one environment: set training.environments")
    assert objections_to(training={"environment_threads": 2, "environments": 4}) == []


def test_ppo_has_no_replay_and_no_warm_up():
    training = {"warmup_steps": 300, "total_steps": 200, "replay_capacity": 2, "noise_color": 0.5,
                "noise_scale_min": 0.25}  # fmt: skip
    found = objections_to(training=training, algorithm="ppo", policy__init_stddev=1.0, ppo__epochs=3)
    assert [text.split()[0] for text in found] == [
        "training.warmup_steps", "training.noise_color", "training.noise_scale_min", "training.replay_capacity",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("training", "text"),
    [
        ({"warmup_steps": 1000, "total_steps": 1000}, "training.warmup_steps 1000 must be below training.total_steps"),
        ({"replay_capacity": 8}, "training.replay_capacity 8 must be above learner.sequence_length 8"),
        ({"total_steps": 7, "warmup_steps": 1}, "training.total_steps 7 must be at least learner.sequence_length 8"),
        (
            {"total_steps": 2998, "updates_per_step": 0.001},
            "updates_per_step 0.001 makes no whole update in the 998 st",
        ),
    ],
)
def test_a_training_that_could_learn_nothing_is_refused(training, text):
    (found,) = objections_to(training=training)
    assert text in found


@pytest.mark.parametrize(
    ("num_actions", "learner", "key"),
    [
        (None, {"mpo__num_samples": 4, "mpo__epsilon": 1.39}, "learner.mpo.epsilon 1.39"),
        (None, {"mpo__num_samples": 4, "mpo__epsilon_penalty": 3.0}, "learner.mpo.epsilon_penalty 3.0"),
        (3, {"categorical__epsilon": 1.1}, "learner.categorical.epsilon 1.1"),
    ],
)
@pytest.mark.parametrize("update", ["learned", "exact"])
def test_a_bound_that_no_weights_can_reach_is_refused(num_actions, learner, key, update):
    (found,) = objections_to(num_actions, mpo__temperature_update=update, **learner)
    assert found.startswith(f"{key} bounds nothing")


def test_the_largest_divergence_from_equal_weights_is_the_log_of_their_number():
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert float((torch.special.xlogy(weights, weights * 4)).sum()) == pytest.approx(np.log(4))
    assert objections_to(mpo__num_samples=4, mpo__epsilon=1.386) == []
    assert objections_to(4, categorical__epsilon=1.386) == []


def test_a_categorical_critic_whose_support_ends_too_early_is_refused():
    # 101 atoms within +-6 are 0.12 apart, and three of these spacings are needed beyond the bound.
    for head in ("hl_gauss", "c51"):
        returns = {} if head == "hl_gauss" else {"returns": "td_zero"}
        assert objections_to(critic__head=head, return_scale_bound=5.6, **returns) == []
        (found,) = objections_to(critic__head=head, return_scale_bound=5.7, **returns)
        assert found.startswith("learner.return_scale_bound 5.7 is above 5.64")
    assert "num_atoms" in objections_to(critic__head="hl_gauss", critic__num_atoms=11)[0]  # 1.2 apart


SETTINGS = {
    "environment": {"task": "gymnasium:CartPole-v1"},
    "training": {"total_steps": 60, "warmup_steps": 20, "evaluation_episodes": 1, "replay_capacity": 200},
    "learner": {"policy": {"hidden_sizes": [8]}, "critic": {"hidden_sizes": [8]}, "batch_sequences": 4},
}


def test_a_new_training_is_refused_and_one_on_record_goes_on_with_a_warning(tmp_path, capsys):
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(dump_yaml(SETTINGS))
    command = ["train", "--quiet", "--config", str(config), "--run", str(run)]
    assert main([*command, "learner.mpo.epsilon=0.2"]) == 2
    text = "learner.mpo.epsilon has no effect on discrete actions: set learner.categorical.epsilon"
    assert text in capsys.readouterr().err
    assert not run.exists()
    assert main([*command[:4], "--seeds", "0,1", "learner.mpo.epsilon=0.2"]) == 2
    assert text in capsys.readouterr().err
    assert main(command) == 0
    assert "warning" not in capsys.readouterr().err
    assert main(["train", "--quiet", "--resume", str(run), "training.total_steps=70", "learner.mpo.epsilon=0.2"]) == 0
    assert f"warning: {text}" in capsys.readouterr().err
