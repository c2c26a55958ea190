"""Settings of continued learning: remembered by the run, and where its policies went."""

import shutil

import pytest

from deploy.registry import PolicyRegistry
from mpo_robot.cli.publication import Publications
from mpo_robot.errors import ConfigError
from mpo_robot.learn_config import LearnConfig, config_file, load_learn_config, remember
from mpo_robot.run_folder import RunFolder
from tests.support.onnx_files import small_spec, write_linear_policy


def test_settings_are_remembered_and_can_be_changed_one_by_one(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert load_learn_config(folder) == LearnConfig()
    chosen = load_learn_config(folder, ["real_capacity=500", "reward=my_robot:reward", "reward_for=all"])
    remember(folder, chosen)
    assert (
        load_learn_config(folder)
        == chosen
        == LearnConfig(real_capacity=500, reward="my_robot:reward", reward_for="all")
    )
    assert load_learn_config(folder, ["reward=null"]).reward is None
    assert config_file(folder) == tmp_path / "run" / "learn" / "config.yaml"
    with pytest.raises(ConfigError, match="did you mean real_capacity"):
        load_learn_config(folder, ["real_capaciti=3"])


@pytest.mark.parametrize("override", ["updates_per_real_step=-1", "reward=a:b:c", "reward_for=some", "max_updates=1"])
def test_impossible_settings_are_refused(tmp_path, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load_learn_config(RunFolder(tmp_path), [override])


def publish(publications, registry, learner_steps):
    path = write_linear_policy(registry.parent / f"{learner_steps}.onnx", small_spec(), bias=learner_steps / 100.0)
    publications.note(registry, learner_steps, PolicyRegistry(registry).publish(path))


def test_each_registry_has_its_own_newest_publication(tmp_path):
    publications = Publications(RunFolder(tmp_path / "run"))
    inside, outside = tmp_path / "run" / "policies", tmp_path / "elsewhere"
    assert not publications.holds(inside, 1)
    inside.parent.mkdir()
    publish(publications, inside, 10)
    assert publications.holds(inside, 10)
    assert publications.holds(inside, 9)  # rolled back since, perhaps: that must not bring it back
    assert not publications.holds(inside, 11)
    assert not publications.holds(outside, 10)
    publish(publications, outside, 12)
    assert publications.holds(inside, 10)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = Publications(RunFolder(tmp_path / "moved"))
    assert moved.holds(tmp_path / "moved" / "policies", 10)
    assert moved.holds(outside, 12)


def test_a_damaged_note_only_means_publishing_once_more(tmp_path):
    publications = Publications(RunFolder(tmp_path))
    publish(publications, tmp_path / "policies", 10)
    (tmp_path / "learn" / "published.json").write_text('{"policies": {')
    assert not publications.holds(tmp_path / "policies", 10)
    publish(publications, tmp_path / "policies", 10)
    assert publications.holds(tmp_path / "policies", 10)


def test_a_rolled_back_policy_counts_as_published_and_one_that_is_gone_does_not(tmp_path):
    publications, policies = Publications(RunFolder(tmp_path)), tmp_path / "policies"
    publish(publications, policies, 10)
    publish(publications, policies, 20)
    PolicyRegistry(policies).rollback()
    assert publications.holds(policies, 20)
    shutil.rmtree(policies)
    assert not publications.holds(policies, 20)
    PolicyRegistry(policies).publish(tmp_path / "10.onnx")  # another run's, say
    assert not publications.holds(policies, 20)
