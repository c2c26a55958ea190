"""mpo_robot: off-policy MPO from simulator to robot and back. Importing this package loads no torch."""

__version__ = "0.1.0"
