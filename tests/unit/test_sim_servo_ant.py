"""`servo:ant-walk`: a policy trained on it fits the robot on the motor bus, and the task rewards running upright."""

from pathlib import Path

import numpy as np
import pytest

from deploy.dynamixel import DynamixelConfig
from deploy.dynamixel.body import IMU_TERMS
from mpo_robot.config import build, read_yaml
from sim.config import EnvironmentConfig
from sim.make import make_environment
from sim.servo_ant import JOINTS, STAND, build_servo_ant

ROBOT = Path(__file__).parents[2] / "configs" / "robots" / "dynamixel_ant.yaml"


@pytest.fixture
def environment():
    environment = make_environment(EnvironmentConfig("servo:ant-walk"))
    yield environment
    environment.close()


def test_its_spec_is_that_of_the_robot_file(environment):
    config = build(DynamixelConfig, read_yaml(ROBOT)["robot"]["options"])
    environment.spec.require_same(config.spec(IMU_TERMS))
    assert [joint.home for joint in config.joints] == list(STAND)


def test_its_model_is_that_of_the_emulated_bus(environment):
    ours, emulated = environment.backend.model, build_servo_ant()
    names = ("actuator_gainprm", "actuator_biasprm", "actuator_forcerange", "jnt_range", "dof_armature", "body_mass")
    for name in names:
        assert getattr(ours, name) == pytest.approx(getattr(emulated, name), rel=1e-4), name
    assert ours.opt.timestep == emulated.opt.timestep
    assert [emulated.actuator(index).name for index in range(8)] == list(JOINTS)


def test_standing_still_keeps_upright_and_is_worth_nothing(environment):
    environment.reset(seed=0)
    for _ in range(100):
        result = environment.step(environment.spec.to_action(np.array(STAND)))
        assert not result.terminated
    assert result.observation[:8] == pytest.approx(STAND, abs=0.05)
    assert result.observation[16] == pytest.approx(1.0, abs=0.02)
    assert result.reward < 0.05


def test_speed_is_rewarded_and_lying_on_the_back_ends_the_episode(environment):
    environment.reset(seed=0)
    data = environment.backend.data
    data.qvel[0] = 0.5
    assert environment.backend._task.get_reward(environment.backend._physics) == pytest.approx(0.5, abs=0.01)
    data.qpos[3:7] = [0.0, 1.0, 0.0, 0.0]
    result = environment.step(np.zeros(8))
    assert result.terminated
    assert result.reward == 0.0
