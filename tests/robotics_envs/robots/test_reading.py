"""What is refused, in words, all at once; what the options change; and the names of robots."""

# ruff: noqa: E501

import math
import re
from pathlib import Path

import pytest
import torch
from small_robots import ARM, FLOOR, JOINTS, LEGGED, MOTOR, model

from diffsim.config import absolute_name, load_config
from diffsim.runs.references import default_folder
from lazy_registry.registry import UnknownNameError
from robotics_envs.environments import make_env
from robotics_envs.robots import RobotFileError, from_mjcf, from_urdf, read

URDF = """<robot name="arm"><link name="base"><inertial><mass value="2"/><inertia ixx="0.01" iyy="0.02" izz="0.02" ixy="0" ixz="0" iyz="0"/></inertial></link>
<link name="upper"><inertial><origin xyz="0.2 0 0"/><mass value="1"/><inertia ixx="0.01" iyy="0.02" izz="0.02" ixy="0"
 ixz="0" iyz="0"/></inertial><collision><geometry><sphere radius="0.05"/></geometry></collision></link>
<joint name="shoulder" type="revolute"><parent link="base"/><child link="upper"/><axis xyz="0 1 0"/>
<limit lower="-1" upper="1.5" effort="7" velocity="3"/><dynamics damping="0.1" friction="0.2"/></joint></robot>"""

REFUSED = {
    "equality": (
        model(
            ARM,
            more='<tendon><fixed name="rope"><joint joint="m" coef="1"/></fixed></tendon>'
            '<equality><tendon name="taut" tendon1="rope"/></equality>',
        ),
        "equality constraints of tendons and flexible bodies (taut): remove them",
    ),
    "tendon": (
        model(
            ARM, more='<tendon><fixed name="rope" stiffness="3"><joint joint="m" coef="1"/></fixed></tendon>'
        ),
        "tendons that act (rope): remove",
    ),
    "activation": (
        model(ARM, '<intvelocity joint="m" name="slow" ctrlrange="-1 1" actrange="-1 1" kp="3"/>'),
        "a state",
    ),
    "muscle": (
        model(ARM, '<muscle joint="m" name="arm" ctrllimited="true" ctrlrange="0 1" lengthrange="0 1"/>'),
        "(arm)",
    ),
    "no range": (
        model(ARM, '<motor joint="m" name="free"/>'),
        "without a range of their controls (free): set ctrlrange",
    ),
    "site": (
        model(
            ARM.replace("</body>", '<site name="s"/></body>'),
            '<general site="s" name="jet" ctrlrange="-1 1" ctrllimited="true"/>',
        ),
        "(jet): let them act on joints",
    ),
    "fluid": (model(ARM, option='density="1.2"'), "a fluid: remove density"),
    "integrator": (model(ARM, option='integrator="implicit"'), "the integrator mjINT_IMPLICIT: set"),
    "boxes": (
        model(
            f'{ARM}<body><freejoint/><geom name="a" type="box" size=".1 .1 .1"/></body><geom name="b" type="box" size="1 1 1"/>'
        ),
        "contacts between b (box) and a (box)",
    ),
    "ball range": (
        model(
            f'{ARM}<body><joint name="neck" type="ball" range="0 40" limited="true"/><geom size=".1"/></body>'
        ),
        "(neck)",
    ),
    "free spring": (
        model(f'{ARM}<body><joint name="root" type="free" stiffness="2"/><geom size=".1"/></body>'),
        "(root): set stiffness to 0",
    ),
    "pair": (
        model(
            f'{FLOOR}{ARM}<body><freejoint/><geom name="g" size=".1"/></body>',
            more='<contact><pair geom1="floor" geom2="g"/></contact>',
        ),
        "1 explicit contact pairs",
    ),
    "mocap": (model(f'{ARM}<body mocap="true"><geom size=".1"/></body>'), "1 mocap bodies"),
    "flag": (
        model(ARM, option="").replace("<option />", '<option><flag override="enable"/></option>'),
        "the flag override enabled",
    ),
    "free body": (
        model(
            f'{ARM}<body><joint name="puck" type="free"/><geom size=".1"/></body>',
            option='integrator="implicitfast"',
        ),
        "implicitfast with free bodies that carry no joint (puck)",
    ),
}


@pytest.mark.parametrize(("xml", "words"), REFUSED.values(), ids=list(REFUSED))
def test_refused_by_name_and_with_advice(xml, words):
    with pytest.raises(RobotFileError) as refusal:
        read(xml)
    assert words in str(refusal.value)
    assert ": " in str(refusal.value).splitlines()[1]


def test_all_offenders_are_named_at_once():
    xml = model(
        f'{FLOOR}{ARM}<body><joint name="neck" type="ball" range="0 40" limited="true"/><geom name="skull" type="box" size=".1 .1 .1"/>'
        '<body pos="1 0 0"><joint name="jaw" stiffness="2"/><geom type="box" name="chin" size=".1 .1 .1"/></body></body>'
        '<body pos="1 0 0"><joint name="tail"/><geom type="box" name="tip" size=".1 .1 .1"/></body>',
        '<motor joint="jaw" name="bite"/>',
        'viscosity="0.1" integrator="implicit"',
    )
    with pytest.raises(RobotFileError) as refusal:
        read(xml)
    for word in (
        "fluid",
        "mjINT_IMPLICIT",
        "neck",
        "bite",
        "skull (box) and tip (box)",
        "chin (box) and tip (box)",
    ):
        assert word in str(refusal.value)


def test_a_file_that_mujoco_cannot_read_is_refused_with_its_reason():
    with pytest.raises(RobotFileError, match=r"MuJoCo cannot read the text: .*colour"):
        read(model('<body><joint name="m"/><geom size=".1" colour="red"/></body>'))
    with pytest.raises(UnknownNameError, match=r"there is no file 'nowhere\.xml'"):
        read("nowhere.xml")


def test_options_take_away_what_is_refused():
    both = f'{FLOOR}{ARM}<body pos="0 0 1"><freejoint/><geom type="box" size=".1 .1 .1" condim="4"/>' + (
        '<body pos=".3 0 0"><joint/><geom size=".1"/><body pos=".3 0 0"><joint/><geom type="box" size=".1 .1 .1"/></body></body></body>'
    )
    with pytest.raises(RobotFileError, match='self_collisions="ignore"'):
        read(model(both, option='cone="elliptic"'))
    kept = from_mjcf(model(both, option='cone="elliptic"'), self_collisions="ignore", check=False).model
    assert {pair.first.kind for pair in kept.pairs} == {"plane"}
    assert (kept.cone, sorted(pair.dimensions for pair in kept.pairs)) == ("elliptic", [3, 3, 4])
    env = from_mjcf(
        model(both, option='cone="elliptic"'), self_collisions="ignore", cone="pyramidal", condim=3
    )
    assert env.model.cone == "pyramidal"
    assert all(pair.dimensions == 3 for pair in env.model.pairs)


LINK = (
    '<link name="{name}"><inertial><mass value="2"/><inertia ixx="0.01" iyy="0.02" izz="0.02" ixy="0" ixz="0" iyz="0"/>'
    "</inertial><collision><geometry>{shape}</geometry></collision></link>"
)
BOX_BASED = (
    '<robot name="arm">'
    + LINK.format(name="base", shape='<box size="0.2 0.2 0.2"/>')
    + LINK.format(name="upper", shape='<cylinder radius="0.05" length="0.4"/>')
    + '<joint name="j" type="revolute"><parent link="base"/><child link="upper"/><origin xyz="0 0 0.15"/>'
    '<axis xyz="0 1 0"/><limit lower="-1" upper="1" effort="5" velocity="3"/></joint></robot>'
)


@pytest.mark.parametrize("floor", [False, True])
def test_a_fixed_base_is_part_of_the_robot(floor):
    with pytest.raises(RobotFileError, match='self_collisions="ignore"'):
        from_urdf(BOX_BASED)
    env = from_urdf(BOX_BASED, self_collisions="ignore", floor=floor)
    assert [(pair.first.kind, pair.second.kind) for pair in env.model.pairs] == [
        ("plane", "cylinder")
    ] * floor
    # The same in MJCF, where a post beside the robot stays part of the world.
    arm = (
        '<body pos="0 0 .5"><geom type="box" size=".1 .1 .1"/><body pos="0 0 .2"><joint name="m"/>'
        '<geom type="capsule" fromto="0 0 0 0 0 .3" size=".04"/></body></body>'
    )
    post = '<body name="post" pos="1 0 0"><geom type="sphere" size=".1"/></body>'
    env = from_mjcf(model(arm + post, '<motor joint="m" ctrlrange="-1 1"/>'), self_collisions="ignore")
    assert [(pair.first.kind, pair.second.kind) for pair in env.model.pairs] == [("sphere", "capsule")]


def test_a_control_range_for_actuators_without_one():
    env = from_mjcf(model(ARM, '<motor joint="m"/>'), control_range=(-2.0, 3.0))
    assert env.action_box.low == (-2.0,)
    assert env.action_box.high == (3.0,)


def test_meshes_that_are_missing_can_be_dropped(tmp_path):
    body = '<body><inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/><joint name="m"/><geom type="mesh" mesh="hull"/></body>'
    file = tmp_path / "robot.xml"
    file.write_text(
        model(body).replace("<worldbody>", '<asset><mesh name="hull" file="hull.stl"/></asset><worldbody>')
    )
    with pytest.raises(RobotFileError, match='meshes="drop" reads the file without'):
        read(file)
    assert make_env(f"mjcf:{file}?meshes=drop").model.pairs == ()


def test_a_urdf_gets_motors_up_to_its_effort_limits(tmp_path):
    file = tmp_path / "arm.urdf"
    file.write_text(URDF)
    env = from_urdf(file)
    assert env.state_names == ("shoulder", "shoulder_rate")
    assert env.action_box.high == (7.0,)
    (joint,) = env.model.joints
    assert joint.force_range == (-7.0, 7.0)
    assert (joint.limit.range, env.model.dofs[0].friction) == ((-1.0, 1.5), 0.2)
    with pytest.raises(RobotFileError, match="has no actuators"):
        make_env(f"urdf:{file}?motors=false")
    file.write_text(URDF.replace('effort="7"', 'effort="0"'))
    with pytest.raises(RobotFileError, match="no effort limit, so that no motor can be added: shoulder"):
        from_urdf(file)
    assert from_urdf(file, motors=4.0).action_box.high == (4.0,)
    floating = from_urdf(file, motors=4.0, floating=True, floor=True)
    assert len(floating.state_names) == 8 + 7


def test_names_lead_to_files_and_keep_their_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("robot.xml").write_text(JOINTS["limits"])
    env = make_env("mjcf:robot.xml")
    assert type(env).registry_name == f"mjcf:{tmp_path / 'robot.xml'}"
    config = load_config({"env": "mjcf:robot.xml?self_collisions=ignore"})
    assert config.env.name == f"mjcf:{tmp_path / 'robot.xml'}?self_collisions=ignore"
    assert default_folder(config) == Path("runs/robot")
    assert absolute_name("mjcf:a.xml", tmp_path / "b") == f"mjcf:{tmp_path / 'b' / 'a.xml'}"
    with pytest.raises(
        UnknownNameError, match="unknown option of a robot's file 'mesh'; did you mean 'meshes'"
    ):
        make_env("mjcf:robot.xml?mesh=drop")
    with pytest.raises(RobotFileError, match="meshes is refuse or drop, got 'no'"):
        make_env("mjcf:robot.xml?meshes=no")
    with pytest.raises(UnknownNameError, match="did you mean 'gym:Hopper-v5'"):
        make_env("gym:Hoper-v5")


def test_episodes_start_near_a_keyframe(tmp_path, monkeypatch):
    env = from_mjcf(LEGGED, self_collisions="ignore", keyframe="low", check=False)
    pose = torch.tensor([0, 0, 0.27, 1, 0, 0, 0, 0.9, -1.8, 0.9, -1.8], dtype=torch.float64)
    x = env.reset(50, torch.Generator().manual_seed(0), torch.float64)[:, :11]
    assert (x - pose).abs().max() < 0.0201
    resting = torch.cat((pose, torch.zeros(10))).double().unsqueeze(0)
    assert env.cost(resting, torch.zeros(1, 2, dtype=torch.float64), env.params(resting)) == 0.0
    # The pose of the file is what joints measure from, whatever the keyframe.
    assert all(joint.reference == 0.0 for joint in env.model.joints)
    monkeypatch.chdir(tmp_path)
    Path("robot.xml").write_text(LEGGED)
    assert (
        make_env("mjcf:robot.xml?self_collisions=ignore&keyframe=low").model.reference[7:] == (0.9, -1.8) * 2
    )
    with pytest.raises(UnknownNameError, match=r"unknown keyframe of robot.xml 'lo'; did you mean 'low'"):
        make_env("mjcf:robot.xml?self_collisions=ignore&keyframe=lo")


def test_training_starts_above_the_ground():
    def heights(xml, **options):
        box = from_mjcf(xml, self_collisions="ignore", check=False, **options).state_box
        return box.low[2], box.high[2]

    assert heights(LEGGED) == pytest.approx((0.2, 0.8))
    assert heights(LEGGED, keyframe="low") == pytest.approx((0.135, 0.54))
    raised = LEGGED.replace('type="plane"', 'type="plane" pos="0 0 .1"')
    assert heights(raised) == pytest.approx((0.25, 0.7))
    # Neither in the air nor over a slope.
    slope = LEGGED.replace('type="plane"', 'type="plane" euler="0 10 0"')
    for other in (LEGGED.replace(FLOOR, ""), slope):
        assert heights(other) == pytest.approx((-0.6, 1.4))


def test_geoms_without_a_name_are_named_by_their_bodies():
    with pytest.raises(RobotFileError, match=r"geom 3 of body 3 \(cylinder\) and geom 1 of trunk \(box\)"):
        from_mjcf(LEGGED)


def test_what_a_robot_says_about_itself():
    env = from_mjcf(
        model(
            f'{FLOOR}<body name="b" pos="0 0 .5"><freejoint name="root"/><geom size=".1"/>'
            '<body pos=".3 0 0"><joint name="m" range="-10 40"/><geom size=".05"/></body></body>',
            MOTOR,
        )
    )
    assert env.state_names[:8] == (
        "root_x",
        "root_y",
        "root_z",
        "root_qw",
        "root_qx",
        "root_qy",
        "root_qz",
        "m",
    )
    assert env.state_names[8:] == ("root_vx", "root_vy", "root_vz", "root_wx", "root_wy", "root_wz", "m_rate")
    assert env.state_box.low[7] == pytest.approx(math.radians(-10))
    assert env.dt == pytest.approx(0.02)
    x = env.reset(5, torch.Generator().manual_seed(0), torch.float64)
    assert torch.allclose(x[:, 3:7].square().sum(1), torch.ones(5, dtype=torch.float64))
    assert float(env.cost(x.new_tensor([[*env.model.reference, *(0.0,) * 7]]), x.new_zeros(1, 1), {})) == 0.0


HINGE = (
    '<mujoco model="m"><worldbody><body name="A" pos="0 0 .5"><joint {joint} axis="0 1 0"/><geom size=".1"/></body>'
    "</worldbody>{more}</mujoco>"
)
DRIVEN = HINGE.format(joint='name="a"', more='<actuator><motor joint="a" ctrlrange="-1 1"/></actuator>')


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("timestep", -1, "a positive number of seconds"),
        ("timestep", 0, "a positive number of seconds"),
        ("timestep", math.nan, "a positive number of seconds"),
        ("timestep", "x", "a positive number of seconds"),
        ("meshes", "Drop", "'refuse' or 'drop'"),
        ("self_collisions", True, "'keep' or 'ignore'"),
        ("cone", "elliptic", "'keep' or 'pyramidal'"),
        ("condim", 4, "'keep' or 3"),
        ("motors", "yes", "True, False or a positive number"),
        ("motors", -5, "True, False or a positive number"),
        ("floor", 1, "True or False"),
        ("control_range", 1, "two numbers"),
        ("control_range", (1, -1), "two numbers"),
        ("control_range", ("a", "b"), "two numbers"),
        ("control_range", (-math.inf, 1), "two numbers"),
        ("keyframe", 3, "the name of a keyframe"),
    ],
)
def test_values_that_an_option_cannot_have_are_refused(name, value, words):
    with pytest.raises(RobotFileError, match=re.escape(f"{name} = {value!r}: it is {words}")):
        from_mjcf(DRIVEN, check=False, **{name: value})


def test_options_that_change_nothing_and_unknown_ones_are_refused(tmp_path):
    for name, value in {"floating": True, "control_range": (-1, 1)}.items():
        with pytest.raises(RobotFileError, match=f"{name}.* changes nothing"):
            from_mjcf(DRIVEN, check=False, **{name: value})
    with pytest.raises(UnknownNameError, match="timestep"):
        from_mjcf(DRIVEN, check=False, timesteps=0.1)
    (tmp_path / "a.xml").write_text(DRIVEN)
    for given, words in {
        "condim=4": "condim is keep or 3, got '4'",
        "timestep=0.01&timestep=0.02": "timestep is given more than once",
    }.items():
        with pytest.raises(RobotFileError, match=words):
            make_env(f"mjcf:{tmp_path}/a.xml?{given}")
    with pytest.raises(UnknownNameError, match="is a folder"):
        from_mjcf(tmp_path)


@pytest.mark.parametrize(
    ("xml", "options", "words"),
    [
        (HINGE.format(joint="", more=""), {"motors": 5}, "name those of these bodies: A"),
        (
            DRIVEN.replace("<worldbody>", '<option><flag actuation="disable"/></option><worldbody>'),
            {},
            "remove it",
        ),
        ('<mujoco><worldbody><geom size=".1"/></worldbody></mujoco>', {"motors": True}, "has no joints"),
    ],
    ids=["no name", "no actuation", "no joints"],
)
def test_files_in_which_nothing_can_be_driven_say_why(xml, options, words):
    with pytest.raises(RobotFileError, match=words):
        from_mjcf(xml, check=False, **options)


def test_an_include_that_is_missing_is_no_mesh(tmp_path):
    (tmp_path / "a.xml").write_text('<mujoco><include file="nope.xml"/></mujoco>')
    with pytest.raises(RobotFileError, match=r"nope\.xml") as caught:
        from_mjcf(tmp_path / "a.xml")
    assert "meshes" not in str(caught.value)


def test_a_joint_that_mimics_another_gets_no_motor(tmp_path):
    link = (
        '<inertial><mass value="1"/><inertia ixx=".1" iyy=".1" izz=".1" ixy="0" ixz="0" iyz="0"/></inertial>'
    )
    joint = '<joint name="{name}" type="revolute"><parent link="base"/><child link="{name}_link"/><axis xyz="0 1 0"/>'
    limit = '<limit lower="-1" upper="1" effort="5" velocity="1"/>'
    file = tmp_path / "hand.urdf"
    file.write_text(
        f'<robot name="hand"><link name="base">{link}</link><link name="a_link">{link}</link>'
        f'<link name="b_link">{link}</link>{joint.format(name="a")}{limit}</joint>{joint.format(name="b")}{limit}'
        '<mimic joint="a" multiplier="2"/></joint></robot>'
    )
    env = from_urdf(file, check=False)
    assert [actuator.name for actuator in env.model.actuators] == ["a"]
    # One that is switched off couples nothing.
    more = '<equality><joint joint1="a" joint2="b" active="{}"/></equality>'
    second = '<body><joint name="b" axis="0 1 0"/><geom size=".1"/></body>'
    for active, driven in (("true", ["b"]), ("false", ["a", "b"])):
        xml = HINGE.format(joint='name="a"', more=more.format(active)).replace(
            "</worldbody>", f"{second}</worldbody>"
        )
        env = from_mjcf(xml, check=False, motors=5, self_collisions="ignore")
        assert [actuator.name for actuator in env.model.actuators] == driven
