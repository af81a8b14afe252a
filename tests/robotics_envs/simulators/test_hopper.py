"""The hopper obeys Lagrange, bounces without loss where nothing is lossy and never sticks to the ground."""

import math

import numpy as np
import pytest
import torch
from scipy.special import spence
from torch.autograd.functional import hessian, jacobian

from robotics_envs.simulators.hopper import (
    BODY_RADIUS,
    HEIGHTS,
    LENGTHS,
    MAX_SPEEDS,
    SLIP_SPEED,
    SMOOTHING,
    Hopper,
)

F64 = torch.float64
G, BODY, INERTIA, FOOT, REST, SPRING = 9.81, 10.0, 1.0, 1.0, 0.6, 2500.0
GROUND, MU = 20000.0, 0.8
LOSSLESS = {"leg_damping": 0.0, "ground_damping": 0.0, "friction": 0.0}


def state(**values):
    x = torch.zeros(1, 10, dtype=F64)
    x[0, 4] = REST
    for name, value in values.items():
        x[0, Hopper.state_names.index(name)] = value
    return x


def some_states(batch, seed=0):
    return Hopper.state_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def none(batch=1):
    return torch.zeros(batch, 2, dtype=F64)


def points(x):
    """Positions and velocities of body and foot, each [B, 2]: geometry alone."""
    angle, length, leg_rate, length_rate = x[:, 3], x[:, 4], x[:, 8], x[:, 9]
    out = torch.stack((torch.sin(angle), -torch.cos(angle)), -1)
    round_ = torch.stack((torch.cos(angle), torch.sin(angle)), -1)
    body = torch.stack((x[:, 0], x[:, 1] + length * torch.cos(angle)), -1)
    speed = x[:, 5:7]
    foot_speed = speed + length_rate[:, None] * out + (length * leg_rate)[:, None] * round_
    return body, body + length[:, None] * out, speed, foot_speed


def depth_energy(height):
    """The ground's elastic energy: the integral of its force over the height, a dilogarithm."""
    return -GROUND * SMOOTHING**2 * spence(1 + np.exp(-np.asarray(height) / SMOOTHING))


def energy(x):
    body, foot, speed, foot_speed = points(x)
    kinetic = 0.5 * (BODY * (speed**2).sum(-1) + FOOT * (foot_speed**2).sum(-1) + INERTIA * x[:, 7] ** 2)
    height = G * (BODY * body[:, 1] + FOOT * foot[:, 1])
    ground = torch.tensor(depth_energy(foot[:, 1]) + depth_energy(body[:, 1] - BODY_RADIUS))
    return kinetic + height + 0.5 * SPRING * (REST - x[:, 4]) ** 2 + ground


def test_lagranges_equations():
    """By autograd in (x, z, pitch, leg angle, leg length), with the work of leg, hip, ground and damper."""
    env, x = Hopper(), some_states(6)
    x[:3, 1] = torch.tensor([-0.004, -0.001, 0.001], dtype=F64)
    u = env.action_box.sample(6, torch.Generator().manual_seed(1), F64)
    rate = env.dynamics(0.0, x, u, env.params(x))

    def foot_of(q):
        return torch.stack((q[0] + q[4] * torch.sin(q[3]), q[1] - q[4] * torch.cos(q[3])))

    def kinetic(q, v):
        of_foot = jacobian(foot_of, q, create_graph=True) @ v
        return 0.5 * (BODY * (v[0] ** 2 + v[1] ** 2) + FOOT * (of_foot @ of_foot) + INERTIA * v[2] ** 2)

    def potential(q):
        return G * (BODY * q[1] + FOOT * foot_of(q)[1]) + 0.5 * SPRING * (REST - q[4]) ** 2

    for i in range(6):
        body, _, _, foot_speed = (part[i] for part in points(x))
        q = torch.stack((body[0], body[1], x[i, 2], x[i, 3], x[i, 4]))
        v = torch.stack((x[i, 5], x[i, 6], x[i, 7], x[i, 8], x[i, 9]))
        mass = hessian(lambda v, q=q: kinetic(q, v), v)
        coriolis = jacobian(lambda q, v=v: jacobian(lambda v: kinetic(q, v), v, create_graph=True), q) @ v
        conservative = jacobian(lambda q, v=v: kinetic(q, v) - potential(q), q)
        lift = GROUND * SMOOTHING * math.log1p(math.exp(-float(x[i, 1]) / SMOOTHING))
        lift *= 1 - math.tanh(0.5 * float(foot_speed[1]))
        ground = torch.tensor([-MU * lift * math.tanh(float(foot_speed[0]) / SLIP_SPEED), lift], dtype=F64)
        force, torque = 150.0 * u[i, 0] - 20.0 * v[4], 20.0 * u[i, 1]
        zero = torch.zeros((), dtype=F64)
        work = torch.stack((zero, zero, -torque, torque, force)) + jacobian(foot_of, q).T @ ground
        expected = torch.linalg.solve(mass, work + conservative - coriolis)
        mine = torch.stack((rate[i, 5], rate[i, 6], rate[i, 7], rate[i, 8], rate[i, 9]))
        assert torch.allclose(mine, expected, rtol=1e-9, atol=1e-7)
        assert torch.allclose(rate[i, :5], torch.stack((v[0], foot_speed[1], *v[2:])), rtol=0, atol=1e-12)


def test_a_vertical_bounce_loses_nothing_but_to_the_order_of_the_solver():
    """Dropped from 2 cm, down and up again."""
    env, x = Hopper(**LOSSLESS), state(foot_height=0.02)
    p, u = env.params(x), none()

    def error(steps):
        y, lowest = x, REST
        for _ in range(steps):
            y = env.solver.step(env.dynamics, 0.0, y, u, p, 0.44 / steps)
            lowest = min(lowest, float(y[0, 4]))
        assert lowest < 0.55
        assert float(y[0, 1]) > 0.005
        return abs(float(energy(y) - energy(x)))

    coarse, fine = error(350), error(700)
    assert fine < 1e-5 * float(energy(x))
    assert math.log2(coarse / fine) > 3.7


def test_in_flight_energy_momentum_and_the_parabola_stay():
    """A metre up, spinning, with an undamped leg: the solver's order; with torques the momenta still."""
    env, start = Hopper(**LOSSLESS), some_states(10)
    start[:, 1] = 1.0
    p = env.params(start)

    def kept(x):
        body, foot, speed, foot_speed = points(x)
        total = BODY + FOOT
        apart, relative = foot - body, foot_speed - speed
        reduced = BODY * FOOT / total
        spin = reduced * (apart[:, 0] * relative[:, 1] - apart[:, 1] * relative[:, 0]) + INERTIA * x[:, 7]
        centre, drift = (BODY * body + FOOT * foot) / total, (BODY * speed + FOOT * foot_speed) / total
        return centre, drift, spin

    def after(u, steps):
        x = start
        for _ in range(steps):
            x = env.solver.step(env.dynamics, 0.0, x, u, p, 0.2 / steps)
        return x

    error = [float((energy(after(none(10), n)) - energy(start)).abs().max()) for n in (40, 80)]
    assert error[1] < 1e-3
    assert math.log2(error[0] / error[1]) > 3.7

    driven = after(env.action_box.sample(10, torch.Generator().manual_seed(1), F64), 80)
    assert (energy(driven) - energy(start)).abs().max() > 1.0
    (centre, drift, spin), (centre_0, drift_0, spin_0) = kept(driven), kept(start)
    fall = torch.tensor([0.0, -G], dtype=F64)
    assert torch.allclose(drift, drift_0 + 0.2 * fall, rtol=0, atol=1e-5)
    assert torch.allclose(centre, centre_0 + 0.2 * drift_0 + 0.02 * fall, rtol=0, atol=1e-6)
    assert torch.allclose(spin, spin_0, rtol=0, atol=1e-5)


def test_standing_still_the_ground_carries_the_weight():
    """Upright on the leg that the body's weight shortens, at the depth whose force is that of both masses."""
    env = Hopper()
    weight = (BODY + FOOT) * G
    height = -SMOOTHING * math.log(math.expm1(weight / GROUND / SMOOTHING))
    length = REST - BODY * G / SPRING
    x, zero = state(foot_height=height, leg_length=length), torch.zeros(1, dtype=F64)
    normal, drag = env.contact(x[:, 1], zero, zero, env.params(x))
    assert float(normal) == pytest.approx(weight, rel=1e-12)
    assert float(drag) == 0.0
    assert env.dynamics(0.0, x, none(), env.params(x)).abs().max() < 1e-12
    # Let down from a little higher it goes back there.
    y = state(foot_height=height + 0.002, leg_length=length)
    for _ in range(20):
        y, _ = env.step(y, none(), {**env.params(x), "leg_damping": zero + 300.0})
    assert torch.allclose(y, x, rtol=0, atol=1e-3)


def test_the_ground_pushes_only_and_friction_stays_in_its_cone():
    env = Hopper()
    generator = torch.Generator().manual_seed(0)
    height = 0.1 * torch.rand(5000, generator=generator, dtype=F64) - 0.05
    vx, vz = 8 * torch.randn(2, 5000, generator=generator, dtype=F64)
    normal, drag = env.contact(height, vx, vz, env.params(height))
    assert (normal >= 0).all()
    assert (drag.abs() <= MU * normal).all()
    assert (drag * vx <= 0).all()
    assert normal[height > 0.04].max() < 1e-4
    # Landing costs energy: the same depth pushes less on the way out.
    deep, fast = torch.full((1,), -0.01, dtype=F64), torch.ones(1, dtype=F64)
    (into, _), (out, _) = (env.contact(deep, 0 * fast, v, env.params(deep)) for v in (-fast, fast))
    assert into > 2 * out
    # For slow impacts it is Hunt and Crossley's.
    slow, _ = env.contact(deep, 0 * fast, -0.01 * fast, env.params(deep))
    assert float(slow) == pytest.approx(GROUND * 0.01 * (1 + 0.5 * 0.01), rel=2e-3)


def test_the_slope_of_the_force_is_continuous_across_touch_down():
    env = Hopper()
    height = torch.linspace(-0.03, 0.2, 20001, dtype=F64).requires_grad_()
    one = torch.ones_like(height)
    normal, _ = env.contact(height, one, -one, env.params(height))
    (slope,) = torch.autograd.grad(normal.sum(), height)
    assert torch.isfinite(slope).all()
    assert (slope <= 0).all()
    assert slope.diff().abs().max() < 0.01 * slope.abs().max()

    x = some_states(5)
    x[:, 1] = torch.tensor([-0.004, -0.001, 0.0, 0.001, 0.004], dtype=F64)
    p = env.params(x)
    u = env.action_box.sample(5, torch.Generator().manual_seed(1), F64)
    call = lambda x, u: env.dynamics(0.0, x, u, p)
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), u.requires_grad_()), fast_mode=True)


def test_a_friction_cone_too_small_lets_the_foot_slide():
    """A leaning leg on ice slips; on the given ground it hardly does within the same time."""
    x = state(leg_angle=0.3, foot_height=-0.005, leg_length=0.56)
    slid = []
    for mu in (0.0, MU):
        env, y = Hopper(friction=mu), x
        for _ in range(5):
            y, _ = env.step(y, none(), env.params(y))
        body_foot = points(y)[1]
        slid.append(abs(float(body_foot[0, 0] - points(x)[1][0, 0])))
    assert slid[0] > 0.1
    assert slid[1] < 0.02


def test_mirrored_it_hops_the_other_way():
    env, x = Hopper(), some_states(20)
    u = env.action_box.sample(20, torch.Generator().manual_seed(1), F64)
    sign = torch.tensor([-1, 1, -1, -1, 1, -1, 1, -1, -1, 1], dtype=F64)
    there, _ = env.step(x, u, env.params(x))
    back, _ = env.step(sign * x, u * torch.tensor([1.0, -1.0], dtype=F64), env.params(x))
    assert torch.allclose(back, sign * there, rtol=0, atol=1e-9)


def test_what_falls_lies_on_its_body():
    env, x = Hopper(), state(leg_angle=1.3, foot_height=0.01)
    for _ in range(30):
        x, _ = env.step(x, none(), env.params(x))
    hip = float(points(x)[0][0, 1])
    assert hip == pytest.approx(BODY_RADIUS, abs=0.03)


def test_the_stops():
    env = Hopper()
    x = some_states(50)
    x[:, 4], x[:, 1] = 3.0, -1.0
    x[:, 5:] *= 20
    y, _ = env.step(x, none(50), env.params(x))
    assert y[:, 1].min() >= HEIGHTS[0]
    assert y[:, 1].max() <= HEIGHTS[1]
    assert y[:, 4].min() >= LENGTHS[0]
    assert y[:, 4].max() <= LENGTHS[1]
    assert (y[:, 5:].abs() <= torch.tensor(MAX_SPEEDS, dtype=F64)).all()


def test_resets_are_in_the_air_and_nearly_upright():
    x = Hopper().reset(2000, torch.Generator().manual_seed(0), F64)
    assert x[:, 1].min() >= 0.1
    assert x[:, 2:4].abs().max() <= 0.1
    assert float(x[:, 5].mean()) == pytest.approx(0.5, abs=0.05)
