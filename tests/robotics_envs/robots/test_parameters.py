"""Physical parameters as inputs: beside MuJoCo's models edited and compiled again, their gradients, and their names."""

import re

import mujoco
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_robots import EQUALITY, FLOOR, JOINTS, TOUCHING, generated, model

from diffsim.cli import main
from diffsim.config import load_config
from diffsim.rollouts.rollout import Rollout
from lazy_registry.registry import UnknownNameError
from robotics_envs.environments import make_env
from robotics_envs.robots import from_mjcf, verify
from robotics_envs.robots.comparison import converged, random_states
from robotics_envs.robots.parameters import available, inverse_weights

ROBOT = model(
    f"{FLOOR}"
    '<body name="trunk" pos="0 0 .35"><freejoint/><geom name="hull" type="capsule" size=".1 .2" friction=".6"/>'
    '<geom name="head" size=".08" pos="0 .1 .2" friction="1.2" priority="1"/>'
    '<body name="shin" pos=".15 0 0"><joint name="knee" axis="0 1 0" damping=".2" armature=".02" stiffness="3" '
    'frictionloss=".1" range="-40 50"/><geom name="foot" type="capsule" fromto="0 0 0 .3 0 -.1" size=".04"/>'
    "</body></body>",
    '<motor name="drive" joint="knee" gear="2" ctrlrange="-1 1"/>',
    'timestep="0.004"',
)
PLANAR = model(
    f"{FLOOR}"
    '<body name="trunk" pos="0 0 .3"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>'
    '<geom name="hull" size=".1"/><body name="shin"><joint name="knee" axis="0 1 0" damping=".2" armature=".02"/>'
    '<geom name="foot" pos=".15 0 -.25" size=".04"/></body></body>',
    '<motor name="drive" joint="knee" gear="2" ctrlrange="-1 1"/>',
    'timestep="0.005"',
)
VALUES = {
    "trunk.mass": 9.0,
    "shin.mass": 1.1,
    "knee.damping": 0.5,
    "knee.armature": 0.07,
    "knee.stiffness": 8.0,
    "knee.frictionloss": 0.25,
    "floor.friction": 1.5,
    "hull.friction": 1.8,
    "head.friction": 0.4,
    "drive.gear": 3.0,
    "gravity": 3.7,
}


def edited(values):
    """MuJoCo's compiled model of ``ROBOT`` with these values, written into its file."""
    spec = mujoco.MjSpec.from_string(ROBOT)
    before = spec.compile()
    for name, value in values.items():
        owner, _, what = name.rpartition(".")
        if what == "gravity":
            spec.option.gravity = [0, 0, -value]
        elif what == "mass":
            body = spec.body(owner)
            scale = value / float(before.body(owner).mass[0])
            for geom in body.geoms:
                geom.density *= scale
        elif what == "friction":
            geom = next(g for g in spec.geoms if g.name == owner)
            geom.friction = [value, *geom.friction[1:]]
        elif what == "gear":
            spec.actuator(owner).gear = [value, 0, 0, 0, 0, 0]
        else:
            joint = next(j for j in spec.joints if j.name == owner)
            now = getattr(joint, what)
            setattr(joint, what, value if np.ndim(now) == 0 else [value, *now[1:]])
    made = spec.compile()
    made.opt.solver, made.opt.tolerance = mujoco.mjtSolver.mjSOL_NEWTON, 0.0
    made.opt.iterations = made.opt.ls_iterations = 100
    made.opt.ls_tolerance = 1e-10
    return made


@pytest.mark.parametrize("names", [*([name] for name in VALUES), list(VALUES)], ids=[*VALUES, "all"])
def test_a_value_does_what_it_does_in_the_file(names):
    values = {name: VALUES[name] for name in names}
    env = from_mjcf(ROBOT, check=False, parameters=names)
    judge = edited(values)
    q, v, u, touching = random_states(judge, 40, np.random.default_rng(1))
    assert touching.sum() > 5
    assert (~touching | (names[0] != "")).any()
    x, u = torch.tensor(np.concatenate((q, v), 1)), torch.tensor(u)
    data, expected = mujoco.MjData(judge), []
    for position, velocity, control in zip(q, v, u.numpy(), strict=True):
        data.qpos[:], data.qvel[:], data.ctrl[:], data.qacc_warmstart[:] = position, velocity, control, 0.0
        mujoco.mj_forward(judge, data)
        expected.append(data.qacc.copy())
    expected = torch.tensor(np.array(expected))
    p = {name: x.new_tensor(value) for name, value in values.items()}
    with torch.no_grad():
        got, before = (env.rates(env.packed(x, u, given))[:, q.shape[1] :] for given in (p, env.params(x)))
    size = expected.abs().amax(1)
    assert ((got - expected).abs().amax(1) / size).max() < 1e-9
    assert ((before - expected).abs().amax(1) / size).max() > 1e-4  # the value matters


@pytest.mark.parametrize("xml", [TOUCHING["two trees"], JOINTS["ball joints"], generated(9)])
def test_inverse_weights_are_those_that_mujoco_derives(xml):
    env = from_mjcf(xml, check=False)
    judge = converged(env.model)
    of_dofs, of_bodies = inverse_weights(env.model)
    np.testing.assert_allclose(of_dofs, judge.dof_invweight0, rtol=1e-10)
    np.testing.assert_allclose(of_bodies, judge.body_invweight0, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "xml",
    [
        JOINTS["actuators"],
        JOINTS["disabled"],
        EQUALITY["weld trees"],
        EQUALITY["joints"],
        *map(generated, (0, 5)),
    ],
)
def test_all_parameters_of_a_robot_at_once_agree_with_mujoco(xml):
    names = list(available(from_mjcf(xml, check=False).model))
    env = from_mjcf(xml, check=False, parameters=names)
    with torch.no_grad():
        verify(type(env)(**{n: 1.3 * (c.value + 0.01) for n, c in env.constants.items()}), 12, tolerance=1e-9)


def test_gradients_by_parameters_are_exact_where_nothing_changes_sides():
    env = from_mjcf(ROBOT, check=False, parameters=VALUES)
    q, v, u, _ = random_states(converged(env.model), 24, np.random.default_rng(2))
    x, u = torch.tensor(np.concatenate((q, v), 1)), torch.tensor(u)
    p = {name: c.expand(len(x)).clone().requires_grad_() for name, c in env.params(x).items()}
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)

    def values(p):
        return (env.dynamics(0.0, x, u, p) * weights).sum(1)

    gradients = torch.autograd.grad(values(p).sum(), list(p.values()))
    for name, gradient in zip(p, gradients, strict=True):
        with torch.no_grad():
            step = 3e-5 * p[name][0].abs()
            up, middle, down = (values({**p, name: p[name] + side * step}) for side in (1, 0, -1))
        central, halves = (up - down) / (2 * step), (up - middle) / step
        smooth = (halves - central).abs() < 1e-3 * (1 + central.abs())
        assert smooth.double().mean() > 0.8, name
        error = (gradient - central).abs() / (central.abs() + central.abs().median() + 1e-3 * up.abs())
        assert error[smooth].max() < 1e-6, name


def test_one_value_a_rollout_in_kernels_and_without():
    names = ["trunk.mass", "floor.friction", "knee.damping", "knee.armature", "gravity", "drive.gear"]
    env = from_mjcf(PLANAR, check=False, parameters=names)
    policy = torch.nn.Linear(len(env.observation_names), 1, dtype=torch.float64)
    x0 = env.reset(5, torch.Generator().manual_seed(0), torch.float64)
    x0[:, 1] -= 0.1
    shares = torch.linspace(0.6, 1.5, 5, dtype=torch.float64)
    results = {}
    for backend in ("native", "eager"):
        p = {name: (c * shares).requires_grad_() for name, c in env.params(x0).items()}
        out = Rollout(env, policy, backend=backend)(x0, 4, p)
        out.costs.sum().backward()
        results[backend] = [out.costs, *(q.grad for q in p.values())]
    for a, b in zip(*results.values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)
    alone = Rollout(env, policy)(x0[2:3], 4, {name: c * shares[2] for name, c in env.params(x0).items()})
    assert torch.allclose(alone.costs[:, 0], results["native"][0][:, 2].detach(), rtol=1e-9)


def test_a_mass_is_identified_from_a_trajectory():
    env = from_mjcf(PLANAR, check=False, parameters=["shin.mass", "floor.friction"])
    rollout = Rollout(env, None)
    rng = torch.Generator().manual_seed(0)
    x0 = env.reset(16, rng, torch.float64)
    controls = 2 * torch.rand(6, 16, 1, generator=rng, dtype=torch.float64) - 1
    usual = env.params(x0)
    with torch.no_grad():
        seen = rollout(x0, 6, {**usual, "shin.mass": x0.new_tensor(0.4)}, controls=controls).states
    mass = usual["shin.mass"].clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [mass], lr=1.0, max_iter=40, line_search_fn="strong_wolfe", tolerance_grad=1e-12
    )

    def loss():
        optimizer.zero_grad()
        states = rollout(x0, 6, {**usual, "shin.mass": mass}, controls=controls).states
        value = (states - seen).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert mass.item() == pytest.approx(0.4, rel=1e-5)


def test_only_the_named_ones_are_inputs():
    env = from_mjcf(ROBOT, check=False, parameters="trunk.mass")
    assert [q.name for q in env.parameters] == ["trunk.mass"]
    assert from_mjcf(ROBOT, check=False).parameters == ()
    assert type(env)(**{"trunk.mass": 7}).constants["trunk.mass"].value == 7


def test_wrong_names_lead_to_near_ones():
    for wrong, right in {
        "torso.mass": "'trunk.mass'",
        "trunk.weight": "'trunk.mass'",
        "knee.friction": "'knee.frictionloss'",
        "Knee.Damping": "'knee.damping'",
        "gravitation": "'gravity'",
    }.items():
        with pytest.raises(
            UnknownNameError, match=f"unknown parameter of robot '{wrong}'; did you mean"
        ) as refusal:
            from_mjcf(ROBOT, parameters=[wrong])
        assert right in str(refusal.value).partition("known:")[0]
    with pytest.raises(ValueError, match=r"trunk\.mass = -1.* outside its range"):
        type(from_mjcf(ROBOT, check=False, parameters=["trunk.mass"]))(**{"trunk.mass": -1})


def test_a_value_makes_a_parameter_of_a_number_of_the_file(tmp_path):
    file = tmp_path / "robot.xml"
    file.write_text(ROBOT)
    config = load_config(
        {"env": {"name": f"mjcf:{file}", "trunk": {"mass": 5.0}, "floor": {"friction": 0.5}}}
    )
    env = make_env(config.env.name, **config.env.options)
    named = make_env(
        f"mjcf:{file}?parameters=trunk.mass,floor.friction", **{"trunk.mass": 5.0, "floor.friction": 0.5}
    )
    plain = make_env(f"mjcf:{file}")
    assert plain.parameters == ()
    x = plain.reset(4, torch.Generator().manual_seed(0), torch.float64)
    u = plain.action_box.sample(4, torch.Generator().manual_seed(1), torch.float64)
    rates = [e.rates(e.packed(x, u, e.params(x))) for e in (env, named, plain)]
    assert torch.equal(rates[0], rates[1])
    assert not torch.allclose(rates[0], rates[2])
    task = make_env("gym:Hopper-v5", **{"torso.mass": 4.0, "onset": 0.01})
    assert task.constants["torso.mass"].value == 4.0
    assert task.training_note
    assert make_env("gym:Hopper-v5", onset=0, gravity=3.0).model.options.parameters == ("gravity",)
    with pytest.raises(
        UnknownNameError, match=r"unknown parameter of \w+ 'trunk.weight'; did you mean 'trunk.mass'"
    ):
        make_env(f"mjcf:{file}", **{"trunk.weight": 4.0})


@pytest.mark.slow
def test_a_mass_is_set_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "robot.xml").write_text(ROBOT)
    command = ["train", "mjcf:robot.xml", "--updates", "1", "--out", "run", "--set", "env.trunk.mass=4"]
    trained = CliRunner().invoke(main, command)
    assert trained.exit_code == 0, trained.output
    judged = CliRunner().invoke(main, ["evaluate", "run"])
    assert judged.exit_code == 0, judged.output
    shown = CliRunner().invoke(main, ["show", "run"]).output
    assert re.search(r"mass\W+4", shown), shown


def test_parameters_in_names_of_robots_and_tasks(tmp_path):
    file = tmp_path / "robot.xml"
    file.write_text(ROBOT)
    env = make_env(f"mjcf:{file}?parameters=trunk.mass,floor.friction", **{"trunk.mass": 6.0})
    assert {name: c.value for name, c in env.constants.items()} == {"trunk.mass": 6.0, "floor.friction": 0.8}
    config = load_config({"env": {"name": f"mjcf:{file}?parameters=trunk.mass", "trunk": {"mass": 5.0}}})
    assert make_env(config.env.name, **config.env.options).constants["trunk.mass"].value == 5.0
    task = make_env("gym:Hopper-v5?parameters=torso.mass,gravity")
    plain = make_env("gym:Hopper-v5")
    assert set(task.constants) == {"torso.mass", "gravity"}
    for name in ("start_box", "state_box", "episode_steps", "observation_names", "gym_id", "dt"):
        assert getattr(task, name) == getattr(plain, name)
    assert plain.parameters == ()
    x = plain.reset(4, torch.Generator().manual_seed(0), torch.float64)
    u = torch.zeros(4, 3, dtype=torch.float64)
    with torch.no_grad():
        rates = [env.rates(env.packed(x, u, env.params(x))) for env in (task, plain)]
    assert torch.allclose(*rates, rtol=1e-10, atol=1e-12)
    with pytest.raises(UnknownNameError, match="unknown option of a robot's file 'meshes'"):
        make_env("gym:Hopper-v5?meshes=drop")
