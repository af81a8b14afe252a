"""Both cart-pole tasks are dm_control's: MuJoCo's accelerations and trajectories, its rewards, starts and steps."""

import math
import os

os.environ.setdefault("MUJOCO_GL", "disabled")  # nothing is rendered; must be set before the import

import mujoco
import numpy as np
import pytest
import torch
from dm_control import suite
from dm_control.suite import common
from mujoco_twin import accelerations, close, dm_control_model, qacc, solve, trajectory

from robotics_envs.mechanics.capsule import capsule_gyration
from robotics_envs.simulators.cartpole_balance import CartpoleBalance
from robotics_envs.simulators.cartpole_swingup import TRACK, CartpoleSwingup

F64 = torch.float64
both = pytest.mark.parametrize(
    ("env", "task"),
    [(CartpoleSwingup(), "swingup"), (CartpoleBalance(), "balance")],
    ids=["swingup", "balance"],
)


def tensor(values):
    return torch.as_tensor(np.asarray(values), dtype=F64)


def states(batch, seed=0):
    """Anywhere in the swing-up's state box, on the track and somewhat beyond it."""
    generator = torch.Generator().manual_seed(seed)
    x = CartpoleSwingup.state_box.sample(batch, generator, F64)
    return x, CartpoleSwingup.action_box.sample(batch, generator, F64)


def test_accelerations_are_mujocos():
    env, (x, u) = CartpoleSwingup(), states(260)
    beyond = x[:, 0].abs() > TRACK
    assert beyond.sum() >= 20
    assert (~beyond).sum() >= 200
    theirs = accelerations(dm_control_model("cartpole"), x[:, :2].numpy(), x[:, 2:].numpy(), u.numpy())
    assert close(qacc(env, x, u), theirs, 1e-9)


def test_so_they_are_for_other_constants():
    """Each parameter means what it means in the MJCF, the inverse weight of the stop included."""
    text = common.read_model("cartpole.xml").decode()
    for old, new in (
        ('mass=".1"', 'mass="0.4"'),
        ('mass="1"', 'mass="2.5"'),
        ('fromto="0 0 0 0 0 1"', 'fromto="0 0 0 0 0 0.7"'),
        ('size="0.045"', 'size="0.12"'),
        ('damping="5e-4"', 'damping="0.3"'),
        ('damping="2e-6"', 'damping="0.2"'),
        ('gear="10"', 'gear="25"'),
        ('integrator="RK4"', 'integrator="RK4" gravity="0 0 -3.7"'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    model = mujoco.MjModel.from_xml_string(text, common.ASSETS)
    env = CartpoleSwingup(
        g=3.7,
        cart_mass=2.5,
        pole_mass=0.4,
        pole_length=0.7,
        pole_radius=0.12,
        cart_damping=0.3,
        hinge_damping=0.2,
        gear=25.0,
    )
    x, u = states(100)
    theirs = accelerations(model, x[:, :2].numpy(), x[:, 2:].numpy(), u.numpy())
    assert close(qacc(env, x, u), theirs, 1e-9)


def test_trajectories_are_mujocos():
    """Two seconds, free and driven; one start runs into the end stop."""
    env, model, dt, steps = CartpoleSwingup(), dm_control_model("cartpole"), 5e-3, 400
    model.opt.tolerance = 1e-15  # its default, 1e-8, shows where the stop lets go of the cart
    starts = tensor(
        [[0.0, 3.0, 0, 0], [0.1, 0.5, -0.3, 2], [0, 3.1, 0, 0], [1.5, 2.0, 1.5, 0], [-1, 1, 0, -3]]
    )
    time = dt * torch.arange(steps, dtype=F64)
    drives = [0 * time, 0 * time, torch.sin(6 * time), torch.cos(3 * time), torch.sign(torch.sin(9 * time))]
    controls = torch.stack(drives, dim=1).unsqueeze(-1)
    ours = solve(env, starts, controls, dt)
    assert (ours[:, 3, 0] > TRACK).any()
    for i, start in enumerate(starts.numpy()):
        theirs = trajectory(model, start[:2], start[2:], controls[:, i].numpy(), dt)
        assert close(ours[:, i], theirs, 1e-9)


def energy(env, x, p):
    """From the speed of the pole's middle and its turning, with nothing of the equations of motion."""
    _, angle, velocity, rate = x.unbind(-1)
    half = 0.5 * p["pole_length"]
    right, up = velocity + half * rate * torch.cos(angle), -half * rate * torch.sin(angle)
    turning = p["pole_mass"] * capsule_gyration(p["pole_radius"], p["pole_length"]) * rate**2
    moving = p["cart_mass"] * velocity**2 + p["pole_mass"] * (right**2 + up**2) + turning
    return 0.5 * moving + p["pole_mass"] * p["g"] * half * torch.cos(angle)


def test_energy_and_momentum_are_conserved_to_the_solvers_order():
    env = CartpoleSwingup()
    start = tensor([[0.0, 2.0, 0.0, 3.0], [0.2, 0.3, -0.5, -4.0], [-0.3, 1.0, 0.4, 6.0]])
    p = {**env.params(start), "cart_damping": tensor(0.0), "hinge_damping": tensor(0.0)}

    def conserved(x):
        _, angle, velocity, rate = x.unbind(-1)
        ml = p["pole_mass"] * 0.5 * p["pole_length"]
        momentum = (p["cart_mass"] + p["pole_mass"]) * velocity + ml * rate * torch.cos(angle)
        return torch.stack((energy(env, x, p), momentum))

    def error(steps):
        path = solve(env, start, torch.zeros(steps, 3, 1, dtype=F64), 1.0 / steps, p)
        assert (path[..., 0].abs() < TRACK).all()
        return float((conserved(path[-1]) - conserved(start)).abs().max())

    coarse, fine = error(50), error(100)
    assert fine < 1e-5
    assert math.log2(coarse / fine) > 3.7


def test_damping_takes_energy_and_the_stop_gives_none():
    env = CartpoleSwingup()
    start = tensor([[1.7, 2.0, 3.0, 0.0], [-1.7, 1.0, -2.0, 2.0]])
    path = solve(env, start, torch.zeros(200, 2, 1, dtype=F64), 1e-2)
    assert (path[..., 0].abs() > TRACK).any(0).all()
    levels = energy(env, path, env.params(start))
    inside = (path[..., 0].abs() < TRACK).all(-1)
    assert (levels[inside] <= levels[0] + 1e-9).all()
    assert (levels[-1] < levels[0]).all()


@both
def test_equilibria_and_mirror_symmetry(env, task):
    still = tensor([[0.4, 0.0, 0.0, 0.0], [-0.7, math.pi, 0.0, 0.0]])
    assert qacc(env, still, torch.zeros(2, 1, dtype=F64)).abs().max() < 1e-12
    assert energy(env, still, env.params(still)).tolist() == pytest.approx([0.4905, -0.4905])
    x, u = states(50)
    assert torch.allclose(qacc(env, -x, -u), -qacc(env, x, u), rtol=1e-12)
    assert torch.allclose(env.cost(-x, -u, env.params(x)), env.cost(x, u, env.params(x)))


@both
def test_reward_and_observation_are_dm_controls(env, task):
    theirs, (x, u) = suite.load("cartpole", task), states(200)
    theirs.reset()
    costs, observed = env.cost(x, u, env.params(x)), env.observe(x)
    for state, action, cost, observation in zip(x.numpy(), u.numpy(), costs, observed, strict=True):
        with theirs.physics.reset_context():
            theirs.physics.set_state(state)
        theirs.physics.set_control(action)
        seen = theirs.task.get_observation(theirs.physics)
        assert -float(cost) == pytest.approx(theirs.task.get_reward(theirs.physics), abs=1e-12)
        assert close(observation, np.concatenate((seen["position"], seen["velocity"])), 1e-12)


@both
def test_starts_are_distributed_as_dm_controls(env, task):
    theirs, starts = suite.load("cartpole", task, task_kwargs={"random": 0}), []
    for _ in range(3000):
        theirs.task.initialize_episode(theirs.physics)
        starts.append(theirs.physics.get_state())
    ours = env.reset(20000, torch.Generator().manual_seed(0), F64)
    levels = tensor([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
    gap = torch.quantile(ours, levels, dim=0) - torch.quantile(tensor(starts), levels, dim=0)
    assert (gap.abs() < 0.12 * tensor(starts).std(0)).all()
    low, high = env.start_box.bounds(ours)
    assert ((ours >= low) & (ours <= high)).double().mean(0).min() > 0.99


@both
def test_a_driven_episode_is_dm_controls_step_by_step(env, task):
    theirs = suite.load("cartpole", task, task_kwargs={"random": 1})
    timestep, steps = theirs.reset(), 0
    x = tensor(theirs.physics.get_state()).unsqueeze(0)
    p = env.params(x)
    while not timestep.last():
        drive = 0.8 * math.sin(0.1 * steps)
        timestep, steps = theirs.step([drive]), steps + 1
        if steps <= 150:
            x, cost = env.step(x, tensor([[drive]]), p)
            assert close(x[0], theirs.physics.get_state(), 1e-9)
            assert close(env.observe(x)[0], np.concatenate(list(timestep.observation.values())), 1e-9)
            assert -float(cost) == pytest.approx(timestep.reward, abs=1e-9)
    assert steps == env.episode_steps
    assert steps * env.dt == pytest.approx(10.0)


@both
def test_the_drive_is_clipped(env, task):
    x, _ = states(8)
    p, u = env.params(x), torch.full((8, 1), 7.0, dtype=F64, requires_grad=True)
    following, cost = env.step(x, u, p)
    full, price = env.step(x, torch.ones(8, 1, dtype=F64), p)
    assert torch.equal(following, full)
    assert torch.equal(cost, price)
    assert not torch.autograd.grad(following.sum() + cost.sum(), u)[0].any()
