"""The parkour tasks: what the walker sees is what it can stand on, and composer steps them alike."""

from __future__ import annotations

import subprocess
import sys

import mujoco
import numpy as np
import pytest

from sim.config import EnvironmentConfig
from sim.make import make_environment
from sim.tasks.parkour import _START_HEIGHT
from sim.tasks.terrain import BLOCK_HALF_HEIGHT, COURSES, draw_course, ground_height

KINDS = tuple(COURSES)


def make(kind: str, **settings):
    return make_environment(EnvironmentConfig(f"parkour:walker-{kind}", **settings))


@pytest.mark.parametrize("kind", KINDS)
def test_courses_stay_in_their_ranges_and_differ(kind):
    course = COURSES[kind]
    for seed in range(20):
        centers = draw_course(course, np.random.RandomState(seed))
        order = np.argsort(centers[:, 0])
        begin, end = centers[order, 0] - course.half_lengths[order], centers[order, 0] + course.half_lengths[order]
        gaps = np.append(begin[0] - 3.0, begin[1:] - end[:-1])
        assert np.all(gaps >= course.spacing[0] - 1e-9)
        assert np.all(gaps <= course.spacing[1] + 1e-9)
        tops = centers[:, 1] + BLOCK_HALF_HEIGHT
        assert np.all(tops >= course.height[0] - 1e-9)
        assert np.all(tops <= course.height[1] + 1e-9)
        assert end[-1] > 60  # 3 m/s for 20 s
        np.testing.assert_array_equal(centers, draw_course(course, np.random.RandomState(seed)))
    assert not np.array_equal(centers, draw_course(course, np.random.RandomState(0)))


def test_the_height_of_the_ground_at_known_places():
    walls = COURSES["walls"]
    centers = np.full((len(walls.lengths), 2), [1000.0, 0.0])
    centers[2] = [10.0, 0.4 - BLOCK_HALF_HEIGHT]  # 1.2 m long, 0.4 m high
    places = np.array([0.0, 9.39, 9.41, 10.0, 10.59, 10.61])
    np.testing.assert_allclose(ground_height(walls, centers, places), [0, 0, 0.4, 0.4, 0.4, 0], atol=1e-12)
    gaps = COURSES["gaps"]
    centers = np.full((len(gaps.lengths), 2), [1000.0, -BLOCK_HALF_HEIGHT])
    centers[0] = [5.0, -BLOCK_HALF_HEIGHT]  # 2 m long
    np.testing.assert_allclose(ground_height(gaps, centers, np.array([2.9, 3.5, 4.5, 7.0])), [0, -1, 0, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_heightmap_is_what_a_ray_hits(kind):
    environment = make(kind)
    model, data = environment.backend.model, environment.backend.data
    names = [term.name for term in environment.spec.observation]
    assert names[-1] == "heightmap"
    from sim.tasks.parkour import HEIGHTMAP

    geom = np.zeros(1, np.int32)
    obstacles = 0
    for seed in range(3):
        environment.reset(seed=seed)
        for position in np.random.default_rng(seed).uniform(0, 40, 8):
            data.qpos[0] = position
            mujoco.mj_forward(model, data)
            seen = environment.backend.observe()[-HEIGHTMAP.size :]
            torso = data.xpos[model.body("walker/torso").id, 2]
            for offset, height in zip(HEIGHTMAP, seen):
                start = np.array([position + offset, 0.3, 3.0])  # beside the walker
                distance = mujoco.mj_ray(model, data, start, np.array([0, 0, -1.0]), None, 1, -1, geom)
                expected = 3.0 - distance if distance >= 0 else COURSES[kind].floor
                assert height + torso == pytest.approx(expected, abs=1e-5)
                obstacles += abs(expected) > 1e-6
    assert obstacles > 5


@pytest.mark.parametrize("kind", KINDS)
def test_composer_steps_the_task_alike(kind):
    from dm_control import composer

    from sim.tasks.parkour import ParkourTask

    environment = make(kind)
    reference = composer.Environment(ParkourTask(COURSES[kind]), time_limit=20.0, random_state=4)
    observation, _ = environment.reset(seed=4)
    time_step = reference.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 6)).astype(np.float32)
    ended = False
    for action in (None, *actions):
        if action is not None:
            observation, reward, terminated, _, _ = environment.step(action)
            time_step = reference.step(environment.spec.to_command(action))
            assert reward == time_step.reward
            assert terminated == time_step.last() == (time_step.discount == 0.0)
            ended = ended or terminated
        flat = np.concatenate([np.ravel(value) for value in time_step.observation.values()])
        np.testing.assert_array_equal(observation, flat.astype(np.float32))
        if ended:
            break
    assert ended  # a random walker falls
    assert [term.name for term in environment.spec.observation] == list(time_step.observation)


def test_it_stands_on_blocks_and_falls_into_gaps():
    walls = make("walls")
    walls.reset(seed=0)
    data = walls.backend.data
    wall = int(np.argmax(data.mocap_pos[:, 2]))
    top = data.mocap_pos[wall, 2] + BLOCK_HALF_HEIGHT
    low = {}
    for name, place in (("wall", (data.mocap_pos[wall, 0], top)), ("floor", (1.0, 0.0))):
        walls.reset(seed=0)
        data.qpos[:] = 0
        data.qvel[:] = 0
        data.qpos[:2] = place
        walls.backend.refresh_start()
        feet = [walls.backend.model.body(f"walker/{side}_foot").id for side in ("left", "right")]
        for _ in range(12):
            walls.step(np.zeros(6))
        low[name] = float(data.xpos[feet, 2].min())
    walls.reset(seed=0)
    data.qvel[:] = 0
    falls = {}
    for name, place in (("wall", (data.mocap_pos[wall, 0], top)), ("floor", (1.0, 0.0))):
        for lying in (False, True):
            data.qpos[:] = 0
            data.qpos[:2] = place
            if lying:  # 65 degrees forward, the torso's lower end on the ground
                data.qpos[1:3] = place[1] + 0.2 - _START_HEIGHT, np.deg2rad(65.0)
            falls[name, lying] = walls.backend._task.get_termination(walls.backend._physics) is not None
    assert falls == {("wall", False): False, ("wall", True): True, ("floor", False): False, ("floor", True): True}
    assert low["wall"] == pytest.approx(top + 0.05, abs=0.03)
    assert low["floor"] == pytest.approx(0.05, abs=0.03)
    gaps = make("gaps")
    gaps.reset(seed=0)
    data = gaps.backend.data
    left = data.mocap_pos[:, 0] - COURSES["gaps"].half_lengths
    data.qpos[0] = left.max() - 0.01 - 0.05  # before the last platform, which comes after a wide gap
    gaps.backend.refresh_start()
    results = []
    while not gaps.ended:
        results.append(gaps.step(np.zeros(6)))
    assert results[-1].terminated
    assert not results[-1].truncated


def test_reward_is_the_forward_speed():
    environment = make("hurdles")
    environment.reset(seed=0)
    for speed, expected in ((1.5, 0.5), (-2.0, 0.0), (9.0, 1.0)):
        environment.backend.data.qvel[0] = speed
        task = environment.backend._task
        assert task.get_reward(environment.backend._physics) == pytest.approx(expected)


def test_no_part_of_it_needs_labmaze_or_a_renderer():
    code = (
        "import sys; sys.modules['labmaze'] = None\n"
        "from sim.tasks import make_backend\n"
        "make_backend('parkour:walker-walls').reset()\n"
        "assert 'OpenGL' not in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
