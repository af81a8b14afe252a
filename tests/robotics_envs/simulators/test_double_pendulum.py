"""The double pendulum is MuJoCo's: equations, parameters, step, cost, end and starts."""

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

from robotics_envs.mechanics.capsule import capsule_gyration, capsule_mass
from robotics_envs.simulators.double_pendulum import DoublePendulum

F64 = torch.float64
XML = (Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "inverted_double_pendulum.xml").read_text()


def model(c):
    """Gymnasium's MJCF with other numbers in it, compiled by MuJoCo."""
    xml = XML
    for old, new in (
        ('gravity="1e-5 0 -9.81"', f'gravity="{c["g_sideways"]!r} 0 {-c["g"]!r}"'),
        ('gear="500"', f'gear="{c["gear"]!r}"'),
        ('<geom name="cart"', f'<geom mass="{c["m_cart"]!r}" name="cart"'),
        ('fromto="0 0 0 0 0 0.6" name="cpole"', f'fromto="0 0 0 0 0 {c["l_1"]!r}" mass="{c["m_1"]!r}" name="cpole"'),
        ('fromto="0 0 0 0 0 0.6" name="cpole2"', f'fromto="0 0 0 0 0 {c["l_2"]!r}" mass="{c["m_2"]!r}" name="cpole2"'),
        ('name="pole2" pos="0 0 0.6"', f'name="pole2" pos="0 0 {c["l_1"]!r}"'),
        ('<joint damping="0.05"/>', f'<joint damping="{c["damping_hinge"]!r}"/>'),
        ('name="slider" pos', f'damping="{c["damping_cart"]!r}" name="slider" pos'),
    ):  # fmt: skip
        assert xml.count(old) == 1, old
        xml = xml.replace(old, new)
    return mujoco.MjModel.from_xml_string(xml)


def constants(env):
    return {name: constant.value for name, constant in env.constants.items()}


def some_states(count, seed=0, reach=0.98, speed=4.0):
    """States ``[count, 6]`` all around, on the rail up to ``reach``, and actions ``[count, 1]``."""
    rng = np.random.default_rng(seed)
    q = rng.uniform(-1, 1, (count, 3)) * (reach, math.pi, math.pi)
    return np.concatenate((q, speed * rng.standard_normal((count, 3))), 1), rng.uniform(-1, 1, (count, 1))


def accelerations(env, x, u, p=None):
    x = torch.as_tensor(x)
    return env.dynamics(0.0, x, torch.as_tensor(u), p or env.params(x))[:, 3:]


def relative(got, want):
    """The largest error of a row, in units of that row."""
    return (np.abs(got.numpy() - want).max(1) / np.abs(want).max(1)).max()


def centres(x, p):
    """Centres of mass of cart and poles in the plane, m, ``[B, 3, 2]``, and angles from the vertical."""
    position, first, second = x[:, 0], x[:, 1], x[:, 1] + x[:, 2]
    zero = torch.zeros_like(position)
    arms = [(p["l_1"] * torch.sin(first), p["l_1"] * torch.cos(first))]
    arms.append((p["l_2"] * torch.sin(second), p["l_2"] * torch.cos(second)))
    places = (
        (position, zero),
        (position + arms[0][0] / 2, arms[0][1] / 2),
        (position + arms[0][0] + arms[1][0] / 2, arms[0][1] + arms[1][1] / 2),
    )
    return torch.stack([torch.stack(place, -1) for place in places], 1), torch.stack((first, second), -1)


def energy(x, p):
    """Kinetic and potential energy J, ``[B]``, of bodies whose places and velocities are all it knows."""
    moving = torch.cat((x[:, 3:], torch.zeros_like(x[:, 3:])), -1)
    (at, _), (velocity, spin) = jvp(lambda x: centres(x, p), x, moving)
    masses = torch.stack((p["m_cart"], p["m_1"], p["m_2"]))
    inertia = torch.stack([p[f"m_{i}"] * capsule_gyration(0.045, p[f"l_{i}"]) for i in (1, 2)])
    field = torch.stack((-p["g_sideways"], p["g"]))
    return (masses * ((velocity**2).sum(-1) / 2 + at @ field)).sum(-1) + (inertia * spin**2).sum(-1) / 2


def frictionless(env):
    p = env.params(torch.zeros((), dtype=F64))
    return {**p, "damping_cart": 0 * p["damping_cart"], "damping_hinge": 0 * p["damping_hinge"]}


def test_capsules_by_quadrature():
    """Mass and inertia of discs stacked along the axis, each with its own r²/4 and the parallel axis theorem."""
    radius, length = 0.045, 0.6
    z = torch.linspace(-length / 2 - radius, length / 2 + radius, 400_001, dtype=F64)
    beyond = (z.abs() - length / 2).clamp_min(0.0)
    disc = 1000 * math.pi * (radius**2 - beyond**2)
    assert capsule_mass(radius, length) == pytest.approx(float(torch.trapezoid(disc, z)), rel=1e-9)
    inertia = torch.trapezoid(disc * ((radius**2 - beyond**2) / 4 + z**2), z)
    assert capsule_gyration(radius, length) * capsule_mass(radius, length) == pytest.approx(
        float(inertia), rel=1e-9
    )


def test_accelerations_are_mujocos():
    env, twin = DoublePendulum(), mujoco_twin.gymnasium_model("inverted_double_pendulum.xml")
    assert twin.body_mass[1:] == pytest.approx(
        [constants(env)[k] for k in ("m_cart", "m_1", "m_2")], rel=1e-12
    )
    x, u = some_states(200)
    want = mujoco_twin.accelerations(twin, x[:, :3], x[:, 3:], u)
    assert relative(accelerations(env, x, u), want) < 1e-9


def test_accelerations_beyond_the_rail_are_mujocos():
    """On either side, approaching and leaving, in the margin and beyond it, pushed and pulled."""
    env, twin = DoublePendulum(), mujoco_twin.gymnasium_model("inverted_double_pendulum.xml")
    x, u = some_states(200, speed=1.0)
    x[:, 0] = np.sign(x[:, 0]) * (0.989 + np.random.default_rng(1).uniform(0, 0.05, 200))
    want = mujoco_twin.accelerations(twin, x[:, :3], x[:, 3:], u)
    assert relative(accelerations(env, x, u), want) < 1e-9
    # The limit does act, and does let go.
    twin.opt.disableflags = int(mujoco.mjtDisableBit.mjDSBL_LIMIT)
    free = np.abs(mujoco_twin.accelerations(twin, x[:, :3], x[:, 3:], u) - want)[:, 0] < 1e-9
    assert 20 < free.sum() < 180


def test_another_double_pendulum_is_mujocos_too():
    """Other masses, lengths, gear, friction and gravity, on the rail and beyond its ends."""
    other = {
        "g": 3.7, "g_sideways": 0.5, "gear": 350.0, "m_cart": 4.0, "m_1": 2.0, "m_2": 1.0,
        "l_1": 0.4, "l_2": 0.75, "damping_cart": 3.0, "damping_hinge": 0.4,
    }  # fmt: skip
    x, u = some_states(200, reach=1.05, speed=2.0)
    want = mujoco_twin.accelerations(model(other), x[:, :3], x[:, 3:], u)
    assert relative(accelerations(DoublePendulum(**other), x, u), want) < 1e-9


@pytest.mark.parametrize("name", [parameter.name for parameter in DoublePendulum.parameters])
def test_gradients_to_parameters_are_mujocos_slopes(name):
    """Central differences of models compiled anew, some of them beyond the rail's ends."""
    env = DoublePendulum()
    x, u = some_states(40, speed=2.0, reach=1.2)
    p = env.params(torch.as_tensor(x))
    value = p[name].clone().requires_grad_()
    _, slope = jvp(lambda v: accelerations(env, x, u, {**p, name: v}), value.detach(), torch.ones_like(value))
    c, h = constants(env), 1e-3 if name == "g_sideways" else 1e-4 * float(p[name])
    high, low = (
        mujoco_twin.accelerations(model({**c, name: c[name] + s * h}), x[:, :3], x[:, 3:], u) for s in (1, -1)
    )
    want = (high - low) / (2 * h)
    assert np.abs(want).max() > 0
    assert relative(slope, want) < 1e-5


def test_trajectories_are_mujocos():
    """Two seconds free and driven, from near upright and from anywhere; a driven cart meets an end of the rail."""
    env, dt, steps = DoublePendulum(), 4e-3, 500
    rng = np.random.default_rng(3)
    start = np.concatenate(
        (0.1 * rng.uniform(-1, 1, (3, 6)), some_states(3, seed=2, reach=0.5, speed=1.0)[0])
    )
    time = dt * np.arange(steps)
    controls = np.zeros((steps, 6, 1))
    controls[:, 1, 0], controls[:, 2, 0] = 0.2 * np.sin(3 * time), 0.3
    controls[:, 4, 0], controls[:, 5, 0] = 0.5 * np.cos(5 * time), -0.4
    twin = mujoco_twin.gymnasium_model("inverted_double_pendulum.xml")
    want = [mujoco_twin.trajectory(twin, s[:3], s[3:], controls[:, i], dt, 25) for i, s in enumerate(start)]
    x, p = torch.as_tensor(start), env.params(torch.as_tensor(start))
    got = [x]
    with torch.no_grad():
        for i, u in enumerate(torch.as_tensor(controls)):
            x = env.solver.step(env.dynamics, 0.0, x, u, p, dt)
            if (i + 1) % 25 == 0:
                got.append(x)
    assert max(np.abs(w[:, 0]).max() for w in want) > 1.0
    assert np.abs(torch.stack(got, 1).numpy() - np.stack(want)).max() < 1e-4


def test_a_step_is_gymnasiums():
    """State, reward, observation and end, reward and end from where the poles are in the state reached.

    Gymnasium itself reads the tip's place from RK4's last intermediate state; the difference is asserted too.
    """
    env, gym = DoublePendulum(), gymnasium.make(DoublePendulum.gym_id)
    twin, behind, ends = gym.unwrapped, 0.0, 0
    gym.reset(seed=0)
    wild, steady = some_states(25, reach=1.05), some_states(25, seed=1, speed=0.5)
    steady[0][:, 1:3] *= 0.1
    for state, action in zip(*map(np.concatenate, zip(wild, steady, strict=True)), strict=True):
        twin.set_state(state[:3], state[3:])
        observation, raw, _, _, _ = twin.step(action)
        mujoco.mj_forward(twin.model, twin.data)
        right, _, height = twin.data.site_xpos[0]
        reward, _ = twin._get_rew(right, height, height <= 1)
        x = torch.as_tensor(state)[None]
        following, cost = env.step(x, torch.as_tensor(action)[None], env.params(x))
        want = np.concatenate((twin.data.qpos, twin.data.qvel))
        assert following[0].numpy() == pytest.approx(want, rel=1e-6, abs=1e-6)
        assert -float(cost) == pytest.approx(reward, abs=1e-6)
        assert bool(env.done(following)) == (height <= 1)
        seen = env.observation_from_twin(observation)
        assert env.observe(following)[0].numpy() == pytest.approx(seen, abs=1e-6)
        behind, ends = max(behind, abs(raw - reward)), ends + int(height <= 1)
    assert 1e-6 < behind < 0.01
    assert 10 < ends < 40


def test_energy_is_kept_without_friction():
    """To the solver's order, whirling about on the rail."""
    env = DoublePendulum()
    start, p = torch.as_tensor(some_states(8, reach=0.1)[0]), frictionless(env)
    start[:, 3] = 0.0
    p["m_cart"] = 100 * p["m_cart"]  # so that the cart stays on the rail, where no limit takes energy

    def error(steps):
        x, u = start, torch.zeros(8, 1, dtype=F64)
        with torch.no_grad():
            for _ in range(steps):
                x = env.solver.step(env.dynamics, 0.0, x, u, p, 1.0 / steps)
        assert x[:, 0].abs().max() < 0.98
        return float((energy(x, p) - energy(start, p)).abs().max())

    coarse, fine = error(100), error(200)
    assert fine < 1e-3
    assert math.log2(coarse / fine) > 3.7


def test_friction_takes_exactly_its_power():
    env = DoublePendulum()
    x, p = torch.as_tensor(some_states(20)[0]), env.params(torch.zeros((), dtype=F64))
    rate = env.dynamics(0.0, x, torch.zeros(20, 1, dtype=F64), p)
    h = 1e-6
    power = (energy(x + h * rate, p) - energy(x - h * rate, p)) / (2 * h)
    assert torch.allclose(power, -0.05 * (x[:, 3:] ** 2).sum(-1), rtol=1e-5, atol=1e-5)


def test_only_force_friction_and_sideways_gravity_change_the_momentum_along_the_rail():
    env = DoublePendulum(g_sideways=0.3)
    x, u = map(torch.as_tensor, some_states(20))
    p = env.params(x)
    masses = torch.stack((p["m_cart"], p["m_1"], p["m_2"]))

    def momentum(x):
        moving = torch.cat((x[:, 3:], torch.zeros_like(x[:, 3:])), -1)
        _, velocity = jvp(lambda x: centres(x, p)[0][..., 0], x, moving)
        return (masses * velocity).sum(-1)

    rate, h = env.dynamics(0.0, x, u, p), 1e-6
    force = (momentum(x + h * rate) - momentum(x - h * rate)) / (2 * h)
    expected = 500 * u[:, 0] - 0.05 * x[:, 3] + 0.3 * masses.sum()
    assert torch.allclose(force, expected, rtol=1e-6, atol=1e-5)


def test_equilibria():
    """Upright and hanging there is none; a touch makes upright fall and hanging come back."""
    env = DoublePendulum(g_sideways=1e-300)
    x = torch.zeros(4, 6, dtype=F64)
    x[2:, 1] = math.pi
    x[1::2, 1] += 1e-3
    angular = accelerations(env, x, torch.zeros(4, 1, dtype=F64))
    assert angular[::2].abs().max() < 1e-13
    assert angular[1, 1] > 0 > angular[3, 1]


def test_left_is_the_mirror_of_right():
    env = DoublePendulum(g_sideways=1e-300)
    x, u = map(torch.as_tensor, some_states(50, reach=1.05))
    assert torch.allclose(accelerations(env, -x, -u), -accelerations(env, x, u), rtol=1e-12, atol=1e-9)


def test_upright_at_the_centre_pays_936_hundredths():
    env = DoublePendulum()
    x = torch.zeros(2, 6, dtype=F64)
    x[1, 1] = math.acos(0.9 / 1.2)
    cost = env.cost(x, torch.zeros(2, 1, dtype=F64), env.params(x))
    assert float(cost[0]) == pytest.approx(-9.36)
    right = 1.2 * math.sin(float(x[1, 1]))
    assert float(cost[1]) == pytest.approx(0.01 * right**2 + 1.1**2)
    assert env.done(x).tolist() == [False, True]


def test_what_the_clips_do():
    """Velocities are seen within ±10, and their gradient ends there; a force beyond the gear is the gear."""
    env = DoublePendulum()
    x = torch.tensor([[0.0, 0.1, 0.2, 12.0, -3.0, -40.0]], dtype=F64, requires_grad=True)
    seen = env.observe(x)[0, 5:]
    assert seen.tolist() == [10.0, -3.0, -10.0]
    (gradient,) = torch.autograd.grad(seen.sum(), x)
    assert gradient[0].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    p = env.params(x)
    hard, full = (env.step(x, torch.full((1, 1), a, dtype=F64), p)[0] for a in (3.0, 1.0))
    assert torch.equal(hard, full)


def test_starts_are_gymnasiums():
    """Uniform positions and normal velocities, by their quantiles, and by those of Gymnasium's resets."""
    env, gym = DoublePendulum(), gymnasium.make(DoublePendulum.gym_id).unwrapped
    share = torch.linspace(0.05, 0.95, 19, dtype=F64)
    x = env.reset(20_000, torch.Generator().manual_seed(0), F64)
    uniform, normal = 0.2 * share - 0.1, 0.1 * math.sqrt(2) * torch.erfinv(2 * share - 1)
    expected = torch.stack([uniform] * 3 + [normal] * 3, -1)
    assert (torch.quantile(x, share, dim=0) - expected).abs().max() < 5e-3
    assert x[:, :3].abs().max() <= 0.1
    assert torch.corrcoef(x.T).fill_diagonal_(0.0).abs().max() < 0.03
    gym.reset(seed=0)
    theirs = []
    for _ in range(1000):
        gym.reset()
        theirs.append(np.concatenate((gym.data.qpos, gym.data.qvel)))
    assert np.abs(np.quantile(theirs, share, axis=0) - expected.numpy()).max() < 0.02
