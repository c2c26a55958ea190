"""Runs on record: what is older than a setting keeps what it did without, and files may change after the start."""

import pytest
import yaml

from mpo_robot.cli.settings import RunConfig, load_recorded_config, load_run_config
from mpo_robot.config import build, dump_yaml, to_dict
from mpo_robot.errors import ConfigError
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.older_runs import completed
from mpo_robot.run_folder import RunFolder

TASK = {"environment": {"task": "dm_control:cartpole-swingup"}}


def test_a_complete_record_is_what_it_says():
    config = build(RunConfig, TASK)
    assert build(RunConfig, completed(to_dict(config))) == config


def test_what_a_record_does_not_name_was_as_before_the_setting():
    learner = build(RunConfig, completed(TASK)).learner
    assert (learner.policy_update_period, learner.policy_average_updates) == (1, None)
    assert (learner.learning_rate_decay_steps, learner.mpo.center_weights) == (None, False)
    training = build(RunConfig, completed(TASK)).training
    assert (training.noise_color, training.white_noise_steps) == (0.0, 0)
    falling = build(LearnerConfig, completed({"learner": {"learning_rate_decay_steps": 10}})["learner"])
    assert falling.learning_rate_end_critic == 0.1


@pytest.mark.parametrize("damage", [{"learner": 3}, {"training": [1]}, {"learner": {"mpo": "x"}}])
def test_a_damaged_section_is_refused_not_replaced(damage):
    with pytest.raises(ConfigError, match="must be a section"):
        build(RunConfig, completed(TASK | damage))


def test_a_randomisation_file_is_read_once_and_kept_with_the_run(tmp_path):
    file, config = tmp_path / "random.yaml", tmp_path / "small.yaml"
    file.write_text("terms: [{parameter: body_mass, operation: scale, low: 0.9, high: 1.1}]\n")
    config.write_text(yaml.safe_dump({"environment": TASK["environment"] | {"randomization": str(file)}}))
    run = load_run_config(config)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.config_file.write_text(dump_yaml(run))
    file.unlink()
    assert load_recorded_config(folder) == run
    with pytest.raises(ConfigError, match=r"cannot read .*random\.yaml"):
        load_run_config(config)
