"""The reacher is MuJoCo's: equations, parameters, step, cost and starts."""

import math
from pathlib import Path

import gymnasium
import gymnasium.envs.mujoco
import mujoco
import mujoco_twin
import numpy as np
import pytest
import torch
from torch.autograd.functional import jvp

from robotics_envs.mechanics.capsule import capsule_gyration
from robotics_envs.simulators.reacher import Reacher

F64 = torch.float64
XML = (Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "reacher.xml").read_text()


def model(c):
    """Gymnasium's MJCF with other numbers in it, compiled by MuJoCo."""
    xml = XML.replace('gear="200.0"', f'gear="{c["gear"]!r}"')
    for old, new in (
        ('armature="1" damping="1"', f'armature="{c["armature"]!r}" damping="{c["damping"]!r}"'),
        ('fromto="0 0 0 0.1 0 0" name="link0"', f'fromto="0 0 0 {c["l_1"]!r} 0 0" mass="{c["m_1"]!r}" name="link0"'),
        ('fromto="0 0 0 0.1 0 0" name="link1"', f'fromto="0 0 0 {c["l_2"]!r} 0 0" mass="{c["m_2"]!r}" name="link1"'),
        ('name="body1" pos="0.1 0 0"', f'name="body1" pos="{c["l_1"]!r} 0 0"'),
        ('name="fingertip" pos="0.11 0 0"', f'name="fingertip" pos="{c["reach"]!r} 0 0"'),
        ('<geom contype="0" name="fingertip"', f'<geom mass="{c["m_tip"]!r}" contype="0" name="fingertip"'),
    ):  # fmt: skip
        assert xml.count(old) == 1, old
        xml = xml.replace(old, new)
    return mujoco.MjModel.from_xml_string(xml)


def constants(env):
    return {name: constant.value for name, constant in env.constants.items()}


def some_states(count, seed=0, bend=2.95, speed=10.0):
    """States ``[count, 6]``, the elbow up to ``bend``, targets in their disc, and actions ``[count, 2]``."""
    rng = np.random.default_rng(seed)
    q = rng.uniform(-1, 1, (count, 2)) * (math.pi, bend)
    radius, angle = 0.2 * np.sqrt(rng.uniform(size=count)), rng.uniform(-math.pi, math.pi, count)
    target = np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1)
    x = np.concatenate((q, speed * rng.standard_normal((count, 2)), target), 1)
    return x, rng.uniform(-1, 1, (count, 2))


def in_mujoco(x):
    """Positions and velocities of arm and target, each ``[count, 4]``."""
    return np.concatenate((x[:, :2], x[:, 4:]), 1), np.concatenate((x[:, 2:4], 0 * x[:, 4:]), 1)


def twins_accelerations(twin, x, u):
    result = mujoco_twin.accelerations(twin, *in_mujoco(x), u)
    assert np.abs(result[:, 2:]).max() == 0  # the target rests
    return result[:, :2]


def accelerations(env, x, u, p=None):
    x = torch.as_tensor(x)
    return env.dynamics(0.0, x, torch.as_tensor(u), p or env.params(x))[:, 2:4]


def relative(got, want):
    """The largest error of a row, in units of that row."""
    return (np.abs(got.numpy() - want).max(1) / np.abs(want).max(1)).max()


def energy(x, p):
    """Kinetic energy J ``[B]``: of centres of mass and turning links, and of the two rotors."""

    def places(x):
        first, second = x[:, 0], x[:, 0] + x[:, 1]
        along, on = (torch.stack((torch.cos(a), torch.sin(a)), -1) for a in (first, second))
        elbow = p["l_1"] * along
        return torch.stack((elbow / 2, elbow + p["l_2"] / 2 * on, elbow + p["reach"] * on), 1)

    moving = torch.cat((x[:, 2:4], torch.zeros(len(x), 4, dtype=F64)), -1)
    _, velocity = jvp(places, x, moving, create_graph=True)
    masses = torch.stack((p["m_1"], p["m_2"], p["m_tip"]))
    links = [p[f"m_{i}"] * capsule_gyration(0.01, p[f"l_{i}"]) for i in (1, 2)]
    first, second = x[:, 2], x[:, 2] + x[:, 3]
    turning = links[0] * first**2 + (links[1] + 2 / 5 * p["m_tip"] * 0.01**2) * second**2
    rotors = p["armature"] * (x[:, 2:4] ** 2).sum(-1)
    return ((masses * (velocity**2).sum(-1)).sum(-1) + turning + rotors) / 2


def heavy(**more):
    """An arm whose links outweigh its rotors, so that they do throw each other about."""
    c = {"armature": 1e-3, "m_1": 2.0, "m_2": 1.5, "m_tip": 0.7, "l_1": 0.15, "l_2": 0.12, "reach": 0.14}
    return Reacher(**{**c, **more})


def test_accelerations_are_mujocos():
    env, twin = Reacher(), mujoco_twin.gymnasium_model("reacher.xml")
    c = constants(env)
    assert twin.body_mass[1:4] == pytest.approx([c["m_1"], c["m_2"], c["m_tip"]], rel=1e-12)
    x, u = some_states(200)
    assert relative(accelerations(env, x, u), twins_accelerations(twin, x, u)) < 1e-9


def test_accelerations_beyond_the_elbows_range_are_mujocos():
    """On either side, bending and opening, pushed and pulled."""
    env, twin = Reacher(), mujoco_twin.gymnasium_model("reacher.xml")
    x, u = some_states(200, speed=1.0)
    x[:, 1] = np.sign(x[:, 1]) * (2.999 + np.random.default_rng(1).uniform(0, 0.05, 200))
    want = twins_accelerations(twin, x, u)
    assert relative(accelerations(env, x, u), want) < 1e-9
    # The limit does act, and does let go.
    twin.opt.disableflags = int(mujoco.mjtDisableBit.mjDSBL_LIMIT)
    free = np.abs(twins_accelerations(twin, x, u) - want)[:, 1] < 1e-9
    assert 20 < free.sum() < 180


def test_another_reacher_is_mujocos_too():
    """Heavy links instead of heavy rotors, within the elbow's range and beyond."""
    env = heavy(gear=30.0, damping=0.3)
    x, u = some_states(200, bend=3.1)
    assert relative(accelerations(env, x, u), twins_accelerations(model(constants(env)), x, u)) < 1e-9


@pytest.mark.parametrize("name", [parameter.name for parameter in Reacher.parameters])
def test_gradients_to_parameters_are_mujocos_slopes(name):
    """Central differences of models compiled anew, some of them beyond the elbow's range."""
    env = heavy(gear=3.0)
    x, u = some_states(40, bend=3.5)
    p = env.params(torch.as_tensor(x))
    _, slope = jvp(lambda v: accelerations(env, x, u, {**p, name: v}), p[name], torch.ones_like(p[name]))
    c = constants(env)
    h = 1e-4 * c[name]
    high, low = (twins_accelerations(model({**c, name: c[name] + s * h}), x, u) for s in (1, -1))
    want = (high - low) / (2 * h)
    assert np.abs(want).max() > 0
    assert np.abs(slope.numpy() - want).max() < 1e-5 * np.abs(want).max()


def test_trajectories_are_mujocos():
    """Two seconds free and driven; the elbow meets either end of its range."""
    env, dt, steps = Reacher(), 4e-3, 500
    start, _ = some_states(6, seed=2, speed=3.0)
    time = dt * np.arange(steps)
    controls = np.zeros((steps, 6, 2))
    controls[:, 1], controls[:, 2] = 0.1 * np.sin(3 * time)[:, None], (0.05, -0.05)
    controls[:, 3] = 0.05 * np.stack((np.cos(7 * time), np.sin(5 * time)), 1)
    controls[:, 4], controls[:, 5] = (0.0, 0.1), 0.02
    twin = mujoco_twin.gymnasium_model("reacher.xml")
    pairs = zip(*in_mujoco(start), strict=True)
    want = [mujoco_twin.trajectory(twin, q, v, controls[:, i], dt, 25) for i, (q, v) in enumerate(pairs)]
    x, p = torch.as_tensor(start), env.params(torch.as_tensor(start))
    got = [x]
    with torch.no_grad():
        for i, u in enumerate(torch.as_tensor(controls)):
            x = env.solver.step(env.dynamics, 0.0, x, u, p, dt)
            if (i + 1) % 25 == 0:
                got.append(x)
    bends = np.stack(want)[..., 1]
    assert bends.min() < -3.0
    assert bends.max() > 3.0
    order = [0, 1, 4, 5, 2, 3]  # MuJoCo has the target among the positions
    assert np.abs(torch.stack(got, 1).numpy() - np.stack(want)[..., order]).max() < 1e-4


def test_a_step_is_gymnasiums():
    """State, reward and observation, the latter two with the fingertip where it is in the state reached.

    Gymnasium itself reads its place from RK4's last intermediate state; the difference is asserted too.
    """
    env, gym = Reacher(), gymnasium.make(Reacher.gym_id)
    twin, behind = gym.unwrapped, 0.0
    gym.reset(seed=0)
    x, u = some_states(50, bend=3.05)
    following, cost = env.step(torch.as_tensor(x), torch.as_tensor(u), env.params(torch.as_tensor(x)))
    assert not env.done(following).any()
    seen = env.observe(following).numpy()
    for i, (q, v) in enumerate(zip(*in_mujoco(x), strict=True)):
        twin.set_state(q, v)
        late, raw, terminated, _, _ = twin.step(u[i])
        mujoco.mj_forward(twin.model, twin.data)
        reward, _ = twin._get_rew(u[i])
        want = np.concatenate((twin.data.qpos[:2], twin.data.qvel[:2], twin.data.qpos[2:]))
        assert not terminated
        assert following[i].numpy() == pytest.approx(want, rel=1e-6, abs=1e-6)
        assert -float(cost[i]) == pytest.approx(reward, abs=1e-6)
        assert seen[i] == pytest.approx(twin._get_obs(), abs=1e-6)
        assert seen[i][:8] == pytest.approx(late[:8], abs=1e-6)
        behind = max(behind, abs(raw - reward), np.abs(seen[i] - late).max())
    assert 1e-7 < behind < 0.01


def test_energy_is_kept_without_friction():
    """To the solver's order, with links heavy enough to matter."""
    env = heavy()
    p = env.params(torch.zeros((), dtype=F64))
    p["damping"] = 0 * p["damping"]
    start = torch.as_tensor(some_states(8, seed=3, bend=1.0, speed=1.0)[0])
    start[:, 3] = -0.3 * start[:, 2]

    def error(steps):
        x, u, bent = start, torch.zeros(8, 2, dtype=F64), 0.0
        with torch.no_grad():
            for _ in range(steps):
                x = env.solver.step(env.dynamics, 0.0, x, u, p, 1.0 / steps)
                bent = max(bent, float(x[:, 1].abs().max()))
        assert bent < 3.0  # no end of the range takes energy
        assert (x[:, 2] - start[:, 2]).abs().max() > 0.2
        return float((energy(x, p) - energy(start, p)).detach().abs().max())

    coarse, fine = error(50), error(100)
    assert fine < 1e-6
    assert math.log2(coarse / fine) > 3.7


def test_what_moves_the_energy_and_the_momentum():
    """Torques and friction by their power; the momentum about the shoulder by the shoulder's torque alone."""
    env = heavy(gear=5.0, damping=0.2)
    x, u = map(torch.as_tensor, some_states(20))
    p = env.params(x)
    rate, h = env.dynamics(0.0, x, u, p), 1e-6
    torques = 5.0 * u - 0.2 * x[:, 2:4]

    def momentum(x):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(x, p).sum(), x)
        return gradient[:, 2]

    def slope(quantity):
        return (quantity(x + h * rate) - quantity(x - h * rate)).detach() / (2 * h)

    power = (torques * x[:, 2:4]).sum(-1)
    assert torch.allclose(slope(lambda x: energy(x, p)), power, rtol=1e-6, atol=1e-5)
    assert torch.allclose(slope(momentum), torques[:, 0], rtol=1e-6, atol=1e-5)


def test_no_gravity_acts_in_the_plane_and_the_arm_turns_as_a_whole():
    env = Reacher()
    x, u = map(torch.as_tensor, some_states(50, bend=3.1))
    turned = x.clone()
    turned[:, 0] += 1.0
    assert torch.allclose(accelerations(env, turned, u), accelerations(env, x, u), rtol=1e-12, atol=1e-12)
    x[:, 1], x[:, 2:4] = x[:, 1].clamp(-2.9, 2.9), 0.0
    assert accelerations(env, x, 0 * u).abs().max() == 0.0


def test_left_is_the_mirror_of_right():
    env = Reacher()
    x, u = map(torch.as_tensor, some_states(50, bend=3.1))
    assert torch.allclose(accelerations(env, -x, -u), -accelerations(env, x, u), rtol=1e-12, atol=1e-12)


def test_the_target_rests_and_the_cost_is_the_distance():
    env = Reacher()
    x = torch.zeros(3, 6, dtype=F64)
    x[:, 4] = torch.tensor([0.21, 0.11, 0.21], dtype=F64)  # straight, the fingertip is at 0.21 m
    x[2, 0] = math.pi / 2
    u = torch.tensor([[0.0, 0.0], [0.1, -0.2], [0.0, 0.0]], dtype=F64)
    cost = env.cost(x, u, env.params(x))
    expected = torch.tensor([0.0, 0.1 + 0.05, 0.21 * math.sqrt(2)], dtype=F64)
    assert torch.allclose(cost, expected, rtol=0, atol=1e-9)
    assert torch.equal(env.step(x, u, env.params(x))[0][:, 4:], x[:, 4:])


def test_the_gradient_at_the_target_is_finite():
    env = Reacher()
    x = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.21, 0.0]], dtype=F64, requires_grad=True)
    p = env.params(x)
    (at,) = torch.autograd.grad(env.cost(x, torch.zeros(1, 2, dtype=F64), p).sum(), x)
    assert at.abs().max() <= 1.0
    beside = x.detach() + torch.tensor([[0.0, 0.0, 0.0, 0.0, 3e-4, 4e-4]], dtype=F64)
    beside.requires_grad_()
    (slope,) = torch.autograd.grad(env.cost(beside, torch.zeros(1, 2, dtype=F64), p).sum(), beside)
    assert slope[0, 4:].tolist() == pytest.approx([0.6, 0.8])


def test_torques_beyond_the_gear_are_the_gear():
    env = Reacher()
    x = torch.as_tensor(some_states(5)[0])
    p = env.params(x)
    hard, full = (env.step(x, torch.full((5, 2), a, dtype=F64), p) for a in (-7.0, -1.0))
    assert all(torch.equal(a, b) for a, b in zip(hard, full, strict=True))


def test_starts_are_gymnasiums():
    """Angles, rates, and the target's radius and direction, by their quantiles and by Gymnasium's resets."""
    env, gym = Reacher(), gymnasium.make(Reacher.gym_id).unwrapped
    share = torch.linspace(0.05, 0.95, 19, dtype=F64)
    x = env.reset(20_000, torch.Generator().manual_seed(0), F64)
    target = x[:, 4:]
    radius, direction = target.norm(dim=-1), torch.atan2(target[:, 1], target[:, 0])
    assert radius.max() <= 0.2
    assert (torch.quantile(x[:, :2], share, dim=0) - (0.2 * share - 0.1)[:, None]).abs().max() < 3e-3
    assert (torch.quantile(x[:, 2:4], share, dim=0) - (0.01 * share - 0.005)[:, None]).abs().max() < 2e-4
    assert (torch.quantile(radius, share) - 0.2 * torch.sqrt(share)).abs().max() < 3e-3
    assert (torch.quantile(direction, share) - math.pi * (2 * share - 1)).abs().max() < 0.1
    assert torch.corrcoef(torch.cat((x, radius[:, None]), 1).T).fill_diagonal_(0.0).abs().max() < 0.03
    gym.reset(seed=0)
    theirs = []
    for _ in range(1000):
        gym.reset()
        theirs.append(np.concatenate((gym.data.qpos[:2], gym.data.qvel[:2], gym.data.qpos[2:])))
    ours = torch.quantile(x, share, dim=0).numpy()
    spread = np.abs(ours).max(0)
    assert np.abs((np.quantile(theirs, share, axis=0) - ours) / spread).max() < 0.15
