"""Parkour: a planar walker runs over gaps, hurdles or walls that it sees as a heightmap. Built on dm_control.composer.

`ParkourTask` is a `composer.Task`, usable with `composer.Environment`; `make_parkour` puts it behind this project's
contract. An episode moves the blocks of its course, which are mocap bodies: the compiled model stays the same, and the
course is part of the physics state. Nothing here needs labmaze, which parts of dm_control's locomotion library do.

Axes: x along the course, z up. The walker moves in the x-z plane.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.dm_control_backend import DmControlBackend, headless_import
from sim.tasks.terrain import BLOCK_HALF_HEIGHT, COURSES, Course, draw_course, ground_height

with headless_import():
    from dm_control import composer, mjcf
    from dm_control.composer.observation import observable
    from dm_control.rl import control

Array = npt.NDArray[np.float64]

CONTROL_DT, PHYSICS_DT, TIME_LIMIT_S = 0.025, 0.0025, 20.0
TARGET_SPEED = 3.0  # m/s, for reward 1
HEIGHTMAP = np.linspace(-0.4, 4.0, 23)  # m ahead of the torso
_MIN_HEIGHT, _MIN_UPRIGHT = 0.7, 0.4  # below these the walker has fallen
_MIN_CLEARANCE = 0.35  # m, of the torso's center above a block below it; lying on a wall it is high, and yet has fallen
_HALF_WIDTH = 0.8  # m, of the course
_THIGH, _SHIN, _FOOT, _TORSO = 0.45, 0.5, 0.2, 0.6  # m
_START_HEIGHT = _TORSO / 2 + _THIGH + _SHIN + 0.05  # of the torso's center, standing straight
_ROOT = ("root_x", "root_z", "root_pitch")
# Range in degrees and gear in N m of the joints of a leg; positive angles turn a part forward.
_LEG = (("hip", (-30, 100), 100), ("knee", (-150, 0), 60), ("ankle", (-45, 45), 25))


class PlanarWalker(composer.Entity):
    """A torso on two legs, held in the x-z plane by its root joints; six torque motors."""

    def _build(self) -> None:
        root: Any = mjcf.RootElement(model="walker")
        root.default.joint.set_attributes(damping=0.1, armature=0.01, limited="true", solimplimit=[0, 0.99, 0.01])
        root.default.geom.set_attributes(type="capsule", contype=1, conaffinity=0, friction=[0.8, 0.1, 0.1])
        root.default.geom.rgba = [0.75, 0.55, 0.3, 1]
        root.default.motor.set_attributes(ctrllimited="true", ctrlrange=[-1, 1])
        torso = root.worldbody.add("body", name="torso", pos=[0, 0, _START_HEIGHT])
        for name, kind, axis in zip(_ROOT, ("slide", "slide", "hinge"), ([1, 0, 0], [0, 0, 1], [0, 1, 0])):
            torso.add("joint", name=name, type=kind, axis=axis, limited="false", damping=0, armature=0)
        torso.add("geom", name="torso", size=[0.07], fromto=[0, 0, -_TORSO / 2, 0, 0, _TORSO / 2])
        torso.add("camera", name="side", pos=[1.0, -6.0, 0.6], xyaxes=[1, 0, 0, 0, 0.1, 1], mode="trackcom")
        for side, offset in (("right", -0.06), ("left", 0.06)):
            self._add_leg(root, torso, side, offset)
        self._root = root

    @staticmethod
    def _add_leg(root: Any, torso: Any, side: str, offset: float) -> None:
        thigh = torso.add("body", name=f"{side}_thigh", pos=[0, offset, -_TORSO / 2])
        thigh.add("geom", name=f"{side}_thigh", size=[0.05], fromto=[0, 0, 0, 0, 0, -_THIGH])
        shin = thigh.add("body", name=f"{side}_shin", pos=[0, 0, -_THIGH])
        shin.add("geom", name=f"{side}_shin", size=[0.04], fromto=[0, 0, 0, 0, 0, -_SHIN])
        foot = shin.add("body", name=f"{side}_foot", pos=[0, 0, -_SHIN])
        foot.add("geom", name=f"{side}_foot", size=[0.05], fromto=[-0.04, 0, 0, _FOOT - 0.04, 0, 0])
        for body, (joint, limits, gear) in zip((thigh, shin, foot), _LEG):
            # About -y: a positive angle swings what hangs below toward +x.
            body.add("joint", name=f"{side}_{joint}", type="hinge", axis=[0, -1, 0], range=np.deg2rad(limits))
            root.actuator.add("motor", name=f"{side}_{joint}", joint=f"{side}_{joint}", gear=[gear])
        root.compiler.angle = "radian"

    @property
    def mjcf_model(self) -> Any:
        """The entity's model."""
        return self._root


class CourseArena(composer.Arena):
    """A floor, or a starting platform over a pit, and the blocks of a course as mocap bodies."""

    def _build(self, course: Course) -> None:
        super()._build("course")
        root: Any = self.mjcf_model
        world = root.worldbody
        root.asset.add("texture", name="sky", type="skybox", builtin="gradient", width=64, height=384,
                       rgb1=[0.6, 0.75, 0.9], rgb2=[0.2, 0.3, 0.5])  # fmt: skip
        root.visual.headlight.set_attributes(ambient=[0.5] * 3, diffuse=[0.6] * 3, specular=[0.1] * 3)
        solid = {"conaffinity": 1, "contype": 0, "friction": [0.8, 0.1, 0.1], "mass": 0}
        gray, red = [0.45, 0.5, 0.45, 1], [0.65, 0.3, 0.25, 1]
        if course.start_end is None:
            world.add("geom", name="floor", type="plane", pos=[48, 0, 0], size=[60, _HALF_WIDTH, 1], rgba=gray,
                      **{**solid, "mass": None})  # fmt: skip
        else:
            half = (course.start_end + 10) / 2
            world.add("geom", name="start", type="box", pos=[course.start_end - half, 0, -BLOCK_HALF_HEIGHT],
                      size=[half, _HALF_WIDTH, BLOCK_HALF_HEIGHT], rgba=gray, **solid)  # fmt: skip
        for index, half in enumerate(course.half_lengths):
            body = world.add("body", name=f"block_{index}", mocap=True, pos=[5.0 * index, 0, -10])
            body.add("geom", name=f"block_{index}", type="box", size=[half, _HALF_WIDTH, BLOCK_HALF_HEIGHT],
                     rgba=gray if course.floor < 0 else red, **solid)  # fmt: skip


class ParkourTask(composer.Task):
    """Run forward over a course. Falling ends the episode."""

    def __init__(self, course: Course):
        self.course = course
        self._arena = CourseArena(course)
        self._walker = PlanarWalker()
        self._arena.attach(self._walker)
        self.set_timesteps(CONTROL_DT, PHYSICS_DT)
        self._observables = OrderedDict(
            (name, observable.Generic(functools.partial(_call_with_physics, read)))
            for name, read in self.parts().items()
        )
        for item in self._observables.values():
            item.enabled = True

    @property
    def root_entity(self) -> Any:
        """The arena."""
        return self._arena

    @property
    def task_observables(self) -> OrderedDict[str, Any]:
        """Everything the policy sees."""
        return self._observables

    def parts(self) -> dict[str, Any]:
        """Name of each part of the observation to the function of the physics that reads it."""
        return {
            "joint_position": lambda physics: physics.data.qpos[3:],
            "torso_pitch": self._pitch,
            "torso_velocity": lambda physics: physics.data.qvel[:3],
            "joint_velocity": lambda physics: physics.data.qvel[3:],
            "heightmap": self.heightmap,
        }

    @staticmethod
    def _pitch(physics: Any) -> Array:
        angle = physics.data.qpos[2]
        return np.array([np.sin(angle), np.cos(angle)])

    def heightmap(self, physics: Any) -> Array:
        """Ground under points behind, below and ahead of the torso, relative to the torso's height, [X], m."""
        position = physics.data.qpos
        return self._ground(physics, position[0] + HEIGHTMAP) - position[1] - _START_HEIGHT

    def _ground(self, physics: Any, points: Array) -> Array:
        return ground_height(self.course, physics.data.mocap_pos[:, ::2], points)

    def initialize_episode(self, physics: Any, random_state: np.random.RandomState) -> None:
        """Draw the course and a start pose near standing."""
        physics.data.mocap_pos[:, ::2] = draw_course(self.course, random_state)
        low, high = physics.model.jnt_range[3:].T
        pose = random_state.uniform(-0.1, 0.1, len(low))
        physics.data.qpos[:] = np.concatenate([[0.0, 0.02, 0.0], np.clip(pose, low, high)])
        physics.data.qvel[:] = 0.05 * random_state.standard_normal(physics.model.nv)

    def get_reward(self, physics: Any) -> float:
        """Forward speed over `TARGET_SPEED`, at most 1; nothing for going backward, so that no fall is worth it."""
        return min(1.0, max(0.0, float(physics.data.qvel[0]) / TARGET_SPEED))

    def should_terminate_episode(self, physics: Any) -> bool:
        """The torso is too low, on the ground or on a block, or too far from upright."""
        position, height, pitch = physics.data.qpos[:3]
        torso = height + _START_HEIGHT
        clearance = torso - self._ground(physics, np.array([position]))[0]
        return bool(torso < _MIN_HEIGHT or clearance < _MIN_CLEARANCE or np.cos(pitch) < _MIN_UPRIGHT)

    def get_discount(self, physics: Any) -> float:
        """A fall is final."""
        return 0.0 if self.should_terminate_episode(physics) else 1.0


def _call_with_physics(read: Any, physics: Any) -> Array:
    return np.array(read(physics))


class SuiteTask:
    """A composer task with the members of a suite task, for `DmControlBackend`."""

    def __init__(self, task: ParkourTask):
        self._task = task
        self._parts = task.parts()
        self.random = np.random.RandomState(0)

    def initialize_episode(self, physics: Any) -> None:
        """Start state."""
        self._task.initialize_episode(physics, self.random)

    def before_step(self, action: Any, physics: Any) -> None:
        """Place a command."""
        self._task.before_step(physics, action, self.random)

    def after_step(self, physics: Any) -> None:
        """After a control period."""
        self._task.after_step(physics, self.random)

    def get_observation(self, physics: Any) -> dict[str, Array]:
        """All parts, in order."""
        return {name: read(physics) for name, read in self._parts.items()}

    def get_reward(self, physics: Any) -> float:
        """Reward of the period that ended."""
        return self._task.get_reward(physics)

    def get_termination(self, physics: Any) -> float | None:
        """Discount at the end of the episode, None while it goes on."""
        return self._task.get_discount(physics) if self._task.should_terminate_episode(physics) else None


def make_parkour(kind: str) -> DmControlBackend:
    """A backend for `parkour:walker-KIND`, KIND one of `COURSES`."""
    task = ParkourTask(COURSES[kind])
    physics = mjcf.Physics.from_mjcf_model(task.root_entity.mjcf_model)
    return DmControlBackend(control.Environment(physics, SuiteTask(task), TIME_LIMIT_S, CONTROL_DT))
