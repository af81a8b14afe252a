"""The acrobot is dm_control's: MuJoCo's accelerations and trajectories, its reward, starts and steps."""

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
from torch.autograd.functional import hessian, jacobian

from robotics_envs.simulators.acrobot import Acrobot

F64 = torch.float64


def tensor(values):
    return torch.as_tensor(np.asarray(values), dtype=F64)


def states(batch):
    env, generator = Acrobot(), torch.Generator().manual_seed(0)
    x = env.state_box.sample(batch, generator, F64)
    return env, x, env.action_box.sample(batch, generator, F64)


def test_accelerations_are_mujocos():
    env, x, u = states(200)
    theirs = accelerations(dm_control_model("acrobot"), x[:, :2].numpy(), x[:, 2:].numpy(), u.numpy())
    assert close(qacc(env, x, u), theirs, 1e-9)


def test_so_they_are_for_other_constants():
    """Each parameter means what it means in the MJCF."""
    text = common.read_model("acrobot.xml").decode()
    link = '" fromto="0 0 0 0 0 1" size="'
    for old, new in (
        ('name="upper_arm' + link + '0.05"', 'mass="1.3" name="upper_arm" fromto="0 0 0 0 0 0.8" size="0.1"'),
        (
            'name="lower_arm' + link + '0.049"',
            'mass="0.6" name="lower_arm" fromto="0 0 0 0 0 1.2" size="0.07"',
        ),
        ('name="lower_arm" pos="0 0 1"', 'name="lower_arm" pos="0 0 0.8"'),
        ('name="shoulder" type="hinge"', 'name="shoulder" type="hinge" damping="0.4"'),
        ('name="elbow" type="hinge"', 'name="elbow" type="hinge" damping="0.2"'),
        ('gear="2"', 'gear="5"'),
        ('integrator="RK4"', 'integrator="RK4" gravity="0 0 -3.7"'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    env = Acrobot(
        g=3.7,
        upper_mass=1.3,
        upper_length=0.8,
        upper_radius=0.1,
        lower_mass=0.6,
        lower_length=1.2,
        lower_radius=0.07,
        shoulder_damping=0.4,
        elbow_damping=0.2,
        gear=5.0,
    )
    model, (_, x, u) = mujoco.MjModel.from_xml_string(text, common.ASSETS), states(100)
    theirs = accelerations(model, x[:, :2].numpy(), x[:, 2:].numpy(), u.numpy())
    assert close(qacc(env, x, u), theirs, 1e-9)


def middles(p, angles):
    """Right and up of the middles of both links, ``[2, 2]``, from the shoulder; angles ``[2]``."""
    upper, lower = (torch.stack((torch.sin(a), torch.cos(a))) for a in (angles[0], angles.sum()))
    elbow = p["upper_length"] * upper
    return torch.stack((0.5 * elbow, elbow + 0.5 * p["lower_length"] * lower))


def energies(p, x):
    """Kinetic and potential energy of one state ``[4]``; the speeds are derivatives of the places."""
    angles, rates = x.split(2)
    velocities = jacobian(lambda a: middles(p, a), angles, create_graph=True) @ rates
    masses = torch.stack((p["upper_mass"], p["lower_mass"]))
    about_centres = tensor(dm_control_model("acrobot").body_inertia[1:, 0])
    spins = torch.stack((rates[0], rates.sum()))
    kinetic = 0.5 * (masses * (velocities**2).sum(-1) + about_centres * spins**2).sum()
    return kinetic, p["g"] * (masses * middles(p, angles)[:, 1]).sum()


def test_the_equations_are_lagranges():
    """``M q'' = dL/dq - (d²L/dq'dq) q' + generalised forces``, with every derivative by autograd."""
    env, x, u = states(5)
    p = env.params(x)

    def lagrangian(x):
        kinetic, potential = energies(p, x)
        return kinetic - potential

    for state, drive, acceleration in zip(x, u, qacc(env, x, u), strict=True):
        second, first = hessian(lagrangian, state), jacobian(lagrangian, state)
        forces = -0.05 * state[2:] + torch.cat((torch.zeros_like(drive), 2.0 * drive))
        right = first[:2] - second[2:, :2] @ state[2:] + forces
        assert torch.allclose(second[2:, 2:] @ acceleration, right, rtol=1e-9, atol=1e-9)


def test_energy_is_conserved_to_the_solvers_order_and_damping_takes_it():
    env = Acrobot()
    start = tensor([[1.0, 0.5, 2.0, -1.0], [3.0, -1.0, 0.0, 4.0], [0.1, 0.1, 0.0, 0.0]])
    p = env.params(start)
    free = {**p, "shoulder_damping": tensor(0.0), "elbow_damping": tensor(0.0)}

    def level(x):
        return torch.stack([sum(energies(p, state)) for state in x]).detach()

    def end(steps, p):
        return level(solve(env, start, torch.zeros(steps, 3, 1, dtype=F64), 1.0 / steps, p)[-1])

    coarse, fine = ((end(steps, free) - level(start)).abs().max() for steps in (50, 100))
    assert fine < 1e-3
    assert math.log2(coarse / fine) > 3.7
    assert (end(50, p) < level(start) - 0.01).all()


def test_trajectories_are_mujocos():
    """Two seconds, free and driven."""
    env, model, dt, steps = Acrobot(), dm_control_model("acrobot"), 5e-3, 400
    starts = tensor(
        [[3.0, 0.0, 0, 0], [1.0, 0.5, 1, 2], [3.1, 0.2, 0, 0], [0.3, -2.0, 0, 0], [2.0, 1, -3, 4]]
    )
    time = dt * torch.arange(steps, dtype=F64)
    drives = [0 * time, 0 * time, torch.sin(6 * time), torch.cos(3 * time), torch.sign(torch.sin(9 * time))]
    controls = torch.stack(drives, dim=1).unsqueeze(-1)
    ours = solve(env, starts, controls, dt)
    for i, start in enumerate(starts.numpy()):
        theirs = trajectory(model, start[:2], start[2:], controls[:, i].numpy(), dt)
        assert close(ours[:, i], theirs, 1e-9)


def test_equilibria_and_mirror_symmetry():
    env, x, u = states(50)
    still = tensor([[a, b, 0.0, 0.0] for a in (0.0, math.pi) for b in (0.0, math.pi)])
    assert qacc(env, still, torch.zeros(4, 1, dtype=F64)).abs().max() < 1e-12
    assert torch.allclose(qacc(env, -x, -u), -qacc(env, x, u), rtol=1e-12)
    p = env.params(x)
    assert torch.allclose(env.cost(-x, -u, p), env.cost(x, u, p))
    assert env.cost(still, u[:4], p)[0] == -1
    assert (env.cost(still, u[:4], p)[1:] > -0.01).all()


def test_reward_and_observation_are_dm_controls():
    (env, x, u), theirs = states(200), suite.load("acrobot", "swingup")
    x[:60, :2] *= 0.1  # some within the target
    theirs.reset()
    costs, observed = env.cost(x, u, env.params(x)), env.observe(x)
    assert 5 < (costs == -1).sum() < 60
    for state, action, cost, observation in zip(x.numpy(), u.numpy(), costs, observed, strict=True):
        with theirs.physics.reset_context():
            theirs.physics.set_state(state)
        theirs.physics.set_control(action)
        seen = theirs.task.get_observation(theirs.physics)
        assert -float(cost) == pytest.approx(theirs.task.get_reward(theirs.physics), abs=1e-12)
        assert close(observation, np.concatenate((seen["orientations"], seen["velocity"])), 1e-12)


def test_starts_are_distributed_as_dm_controls():
    theirs, starts = suite.load("acrobot", "swingup", task_kwargs={"random": 0}), []
    for _ in range(3000):
        theirs.task.initialize_episode(theirs.physics)
        starts.append(theirs.physics.get_state())
    ours = Acrobot().reset(20000, torch.Generator().manual_seed(0), F64)
    levels = tensor([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
    gap = torch.quantile(ours, levels, dim=0) - torch.quantile(tensor(starts), levels, dim=0)
    assert (gap[:, :2].abs() < 0.12 * tensor(starts).std(0)[:2]).all()
    assert not ours[:, 2:].any()
    assert not np.array(starts)[:, 2:].any()


def test_a_driven_episode_is_dm_controls_step_by_step():
    env, theirs = Acrobot(), suite.load("acrobot", "swingup", task_kwargs={"random": 1})
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


def test_the_drive_is_clipped_and_the_target_is_flat():
    env, x, _ = states(8)
    p, u = env.params(x), torch.full((8, 1), 7.0, dtype=F64, requires_grad=True)
    following, cost = env.step(x, u, p)
    full, price = env.step(x, torch.ones(8, 1, dtype=F64), p)
    assert torch.equal(following, full)
    assert torch.equal(cost, price)
    assert not torch.autograd.grad(following.sum() + cost.sum(), u)[0].any()
    near = tensor([[0.0, 0.0, 0, 0], [0.05, -0.05, 0, 0], [0.15, 0.0, 0, 0]]).requires_grad_()
    slope = torch.autograd.grad(env.cost(near, u[:3], p).sum(), near)[0]
    assert not slope[:2].any()
    assert slope[2, 0] > 0
