"""Robots in pictures: geoms where MuJoCo has them, a camera that shows and follows them."""

# ruff: noqa: E501

import mujoco
import numpy as np
import pytest
import torch
from small_robots import FLOOR, JOINTS, TOUCHING, generated, model

from robotics_envs.environments import GYM_TASKS, make_env
from robotics_envs.robots import from_mjcf, from_urdf, read
from robotics_envs.robots.compiling import compiled
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.pictures import Pictures
from robotics_envs.robots.tasks.models import gymnasium_model
from robotics_envs.solids import Solid, surface

TETRAHEDRON = '<mesh name="part" vertex="0 0 0 .3 0 0 0 .2 0 0 0 .1"/>'


def poses_agree(robot, seed=0, states=20):
    """The largest difference to ``geom_xpos`` and ``geom_xmat`` over random positions."""
    theirs = compiled(robot.source, robot.options)
    data, rng = mujoco.MjData(theirs), np.random.default_rng(seed)
    ours, worst = Pictures(robot), 0.0
    for _ in range(states):
        mujoco.mj_resetData(theirs, data)
        mujoco.mj_integratePos(theirs, data.qpos, rng.normal(size=theirs.nv) * 2.0, 1.0)
        mujoco.mj_kinematics(theirs, data)
        places, turns = ours.poses(data.qpos)
        for k, geom in enumerate(robot.geoms):
            g = next(i for i in range(theirs.ngeom) if (theirs.geom(i).name or f"geom{i}") == geom.name)
            worst = max(worst, np.abs(places[k] - data.geom_xpos[g]).max())
            worst = max(worst, np.abs(turns[k].ravel() - data.geom_xmat[g]).max())
    return worst


@pytest.mark.parametrize("xml", [*TOUCHING.values(), *JOINTS.values()], ids=[*TOUCHING, *JOINTS])
def test_geoms_are_where_mujoco_has_them(xml):
    assert poses_agree(read(xml)) < 1e-10


@pytest.mark.parametrize("seed", range(12))
def test_geoms_of_generated_robots_are_where_mujoco_has_them(seed):
    assert poses_agree(read(generated(seed)), seed) < 1e-10


@pytest.mark.parametrize(
    "file", ["hopper", "half_cheetah", "walker2d_v5", "ant", "reacher", "inverted_pendulum"]
)
def test_geoms_of_gymnasiums_robots_are_where_mujoco_has_them(file):
    assert poses_agree(gymnasium_model(f"{file}.xml")) < 1e-10


def test_a_mesh_is_a_box_around_it():
    text = model(
        '<body pos="0 0 1" euler="10 20 30"><joint name="m"/><geom type="mesh" mesh="part" contype="0" conaffinity="0"/></body>',
        more=f"<asset>{TETRAHEDRON}</asset>",
    )
    robot = read(text)
    (box,) = robot.mesh_boxes
    theirs = compiled(text, robot.options)
    data = mujoco.MjData(theirs)
    mujoco.mj_forward(theirs, data)
    start, count = int(theirs.mesh_vertadr[0]), int(theirs.mesh_vertnum[0])
    corners = theirs.mesh_vert[start : start + count] @ data.geom_xmat[0].reshape(3, 3).T + data.geom_xpos[0]
    places, turns = Pictures(robot).poses(data.qpos)
    inside = (corners - places[0]) @ turns[0]
    np.testing.assert_allclose(np.abs(inside).max(0), box.size, atol=1e-6)
    np.testing.assert_allclose(inside.min(0), -np.array(box.size), atol=1e-6)


def test_links_without_geoms_are_seen_as_rods():
    text = model(
        '<body name="a" pos="0 0 1"><joint name="m" axis="0 1 0"/><inertial mass="1" pos="0 0 0" diaginertia="1 1 1"/>'
        '<body name="b" pos=".3 0 .4"><joint axis="0 1 0"/><inertial mass="1" pos="0 0 0" diaginertia="1 1 1"/>'
        '<geom size=".1"/></body></body>'
    )
    seen = Pictures(read(text))
    rod = seen.geoms[-1]
    assert rod.kind == "capsule"
    places, turns = seen.poses(np.zeros(2))
    ends = [places[-1] + side * rod.size[1] * turns[-1][:, 2] for side in (-1, 1)]
    np.testing.assert_allclose(ends, [[0, 0, 1], [0.3, 0, 1.4]], atol=1e-12)


@pytest.mark.parametrize("name", GYM_TASKS)
def test_every_task_shows_a_solid_for_each_geom_of_its_model(name):
    env = make_env(name)
    x = env.reset(1, torch.Generator().manual_seed(0), torch.float64)[0].numpy()
    shown = [*env.scenery(), *env.draw(x, np.zeros(len(env.action_box)))]
    assert all(isinstance(shape, Solid) for shape in shown)
    assert len(shown) == len(env.model.geoms)
    assert all(shape.colour in ("ground", "faint") for shape in env.scenery())


class Ant(RobotEnv):
    model = gymnasium_model("ant.xml")
    name = "ant"


def test_the_view_holds_the_robot_and_follows_it():
    for env in (Ant(), make_env("gym:Hopper-v5"), make_env("gym:HalfCheetah-v5")):
        x = np.array([*env.model.reference, *[0.0] * env.model.velocities])
        for way in (0.0, 40.0):
            x[0] = env.model.reference[0] + way
            view = env.view_at(x)
            assert view.focus[0] - env.view.focus[0] == pytest.approx(way)
            for solid in env.draw(x, np.zeros(len(env.action_box))):
                corners = surface(solid.form, solid.size).vertices @ solid.rotation.T + solid.position
                flat = view.project(corners)
                assert (flat > view.low).all()
                assert (flat < view.high).all()


def test_the_camera_goes_up_only_where_the_robot_would_leave_the_picture():
    env = Ant()
    x = np.array([*env.model.reference, *[0.0] * env.model.velocities])
    x[2] += 0.2
    assert env.view_at(x).focus == pytest.approx(env.view.focus)
    x[2] += 30.0
    assert env.view_at(x).focus[2] - env.view.focus[2] > 29.0


def test_a_robot_in_its_place_is_not_followed_and_its_reach_is_in_view():
    env = make_env("gym:InvertedPendulum-v5")
    x = np.array([0.9, 0.1, 0.0, 0.0])
    assert env.view_at(x) == env.view
    two = from_mjcf(
        model('<body pos="0 0 1"><joint name="m" axis="0 1 0" range="-180 180"/><geom type="capsule" fromto="0 0 0 0 0 1" size=".05"/></body>'),
        check=False,
    )  # fmt: skip
    for angle in np.linspace(-3, 3, 9):
        (rod,) = (s for s in two.draw(np.array([angle, 0.0]), np.zeros(1)))
        tip = two.view_at(np.array([angle, 0.0])).project([rod.position + 0.5 * rod.rotation[:, 2]])[0]
        assert (tip > two.view.low).all()
        assert (tip < two.view.high).all()


def test_a_loose_object_is_not_what_the_camera_follows():
    env = from_mjcf(
        model(
            f'{FLOOR}<body name="cube" pos="1 0 .1"><freejoint/><geom type="box" size=".1 .1 .1"/></body>'
            '<body pos="0 0 1"><joint name="m" axis="0 1 0"/><geom size=".1" pos=".3 0 0" contype="0" conaffinity="0"/></body>'
        ),
        check=False,
    )
    x = np.array([*env.model.reference, *[0.0] * env.model.velocities])
    moved = x.copy()
    moved[:3] += 5.0
    assert env.view_at(moved) == env.view_at(x) == env.view


def test_branches_have_colours_of_their_own_and_links_of_a_chain_take_turns():
    legs = {
        body.name: colour for body, colour in zip(Ant.model.bodies, Pictures(Ant.model).colours, strict=True)
    }
    assert legs["torso"] == "body"
    assert {legs[name] for name in ("front_left_leg", "front_right_leg")} == {"limb", "other_limb"}
    hopper = make_env("gym:Hopper-v5").model
    assert Pictures(hopper).colours[1:] == ("body", "limb", "body", "limb")


def test_a_view_of_ones_own_is_kept():
    from robotics_envs.drawing import View

    class Near(Ant):
        view = View((-0.5, -0.5), (0.5, 0.5))

    assert Near().view.high == (0.5, 0.5)
    assert Ant().view.high != (0.5, 0.5)


def test_the_view_is_that_of_the_classs_own_model():
    class Large(Ant):
        model = gymnasium_model("humanoid.xml", self_collisions="ignore")

    assert Ant.view.focus[2] == pytest.approx(Ant().view.focus[2])
    assert Large.view.focus[2] > Ant.view.focus[2] + 0.1


def test_a_urdf_arm_can_be_seen(tmp_path):
    links = "".join(
        f'<link name="l{k}"><inertial><mass value="1"/><inertia ixx=".1" iyy=".1" izz=".1" ixy="0" ixz="0" iyz="0"/></inertial>'
        f'<collision><origin xyz="0 0 .2"/><geometry><cylinder radius=".05" length=".4"/></geometry></collision></link>'
        for k in (1, 2)
    )
    joints = "".join(
        f'<joint name="j{k}" type="revolute"><parent link="l{k - 1}"/><child link="l{k}"/><origin xyz="0 0 .4"/>'
        '<axis xyz="0 1 0"/><limit lower="-2" upper="2" effort="5" velocity="1"/></joint>'
        for k in (1, 2)
    )
    path = tmp_path / "arm.urdf"
    path.write_text(f'<robot name="arm"><link name="l0"/>{links}{joints}</robot>')
    env = from_urdf(path, check=False, self_collisions="ignore")
    shown = env.draw(np.array([0.0, np.pi / 2, 0.0, 0.0]), np.zeros(2))
    assert [shape.form for shape in shown] == ["cylinder", "cylinder"]
    np.testing.assert_allclose(shown[1].position, [0.2, 0, 0.8], atol=1e-12)
