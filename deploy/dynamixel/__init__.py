"""Driver for robots whose joints are Dynamixel servos (Protocol 2.0, X series) on one serial bus.

In a robot file: `module: "deploy.dynamixel:make_robot"`, with the fields of `DynamixelConfig` as `options`. The
vendor's library (extra `dynamixel`) is loaded when the bus is opened. See docs/tutorials/motor_bus.md.
"""

from deploy.dynamixel.bus import BusError
from deploy.dynamixel.config import BodyConfig, DynamixelConfig, JointConfig
from deploy.dynamixel.robot import DynamixelRobot, make_robot

__all__ = ["BodyConfig", "BusError", "DynamixelConfig", "DynamixelRobot", "JointConfig", "make_robot"]
