"""The planar quadrotor obeys the mechanics of a rigid body, and is the quadrotor when that stays in a plane."""

import math

import pytest
import torch

from robotics_envs.simulators.quadrotor import MAX_RATE, Quadrotor
from robotics_envs.simulators.quadrotor_planar import QuadrotorPlanar

F64 = torch.float64
MASS, INERTIA, G = 0.027, 16.655602e-6, 9.81
LEVER, PAIR = math.sqrt(0.5) * 0.046, 2 * 0.1597  # m, N


def some_states(batch, seed=0):
    return QuadrotorPlanar().state_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def some_actions(batch, seed=1):
    return torch.rand(batch, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_free_fall():
    """A second without thrust: a parabola and a steady turn, which RK4 integrates exactly."""
    env = QuadrotorPlanar()
    start = x = env.reset(20, torch.Generator().manual_seed(0), F64)
    for _ in range(50):
        x, _ = env.step(x, torch.zeros(20, 2, dtype=F64), env.params(x))
    rates = torch.tensor([0.0, -G, 0.0], dtype=F64)
    assert torch.allclose(x[:, 3:], start[:, 3:] + rates, rtol=0, atol=1e-11)
    assert torch.allclose(x[:, :3], start[:, :3] + start[:, 3:] + 0.5 * rates, rtol=0, atol=1e-11)


def test_hover_is_an_equilibrium_at_exactly_the_weight():
    env, x = QuadrotorPlanar(), torch.zeros(1, 6, dtype=F64)
    hover = MASS * G / (2 * PAIR)
    for factor in (1.0, 1.01, 0.99):
        u = torch.full((1, 2), factor * hover, dtype=F64)
        rate = env.dynamics(0.0, x, u, env.params(x))
        expected = torch.tensor([0, 0, 0, 0, G * (factor - 1), 0], dtype=F64)
        assert torch.allclose(rate[0], expected, rtol=0, atol=1e-12)
    u = torch.full((1, 2), hover, dtype=F64)
    assert float(env.cost(x, u, env.params(x))) == pytest.approx(0.0, abs=1e-15)
    for i in range(6):  # and nothing near it is cheaper
        for sign in (-1, 1):
            y = x.clone()
            y[0, i] = 0.1 * sign
            assert float(env.cost(y, u, env.params(x))) > 1e-5


def test_a_turning_vehicle_follows_the_closed_form_to_the_order_of_the_solver():
    """At equal thrust F and rate w, velocity gains F/(m w) (cos a - cos(a + w t), sin(a + w t) - sin a)."""
    env = QuadrotorPlanar()
    start, u, time = some_states(20), torch.full((20, 2), 0.6, dtype=F64), 0.8
    start[:, 5] = torch.linspace(2.0, 9.0, 20, dtype=F64)
    push, tilt, w = 2 * 0.6 * PAIR / MASS, start[:, 2], start[:, 5]
    end = tilt + w * time
    vx = start[:, 3] + push / w * (torch.cos(tilt) - torch.cos(end))
    vz = start[:, 4] + push / w * (torch.sin(end) - torch.sin(tilt)) - G * time
    right = start[:, 0] + (start[:, 3] + push / w * torch.cos(tilt)) * time
    right = right - push / w**2 * (torch.sin(end) - torch.sin(tilt))

    def error(steps):
        x = start
        for _ in range(steps):
            x = env.solver.step(env.dynamics, 0.0, x, u, env.params(x), time / steps)
        return float((x[:, [0, 3, 4]] - torch.stack((right, vx, vz), -1)).abs().max())

    coarse, fine = error(20), error(40)
    assert fine < 1e-4
    assert math.log2(coarse / fine) > 3.7


def test_power_is_force_times_velocity_plus_torque_times_rate():
    """The energy m v²/2 + I w²/2 + m g z, differentiated by autograd along the motion."""
    env, x, u = QuadrotorPlanar(), some_states(50).requires_grad_(), some_actions(50)
    energy = 0.5 * MASS * (x[:, 3] ** 2 + x[:, 4] ** 2) + 0.5 * INERTIA * x[:, 5] ** 2 + MASS * G * x[:, 1]
    (slope,) = torch.autograd.grad(energy.sum(), x)
    with torch.no_grad():
        change = (slope * env.dynamics(0.0, x, u, env.params(x))).sum(-1)
        power = torch.zeros(50, dtype=F64)
        for rotor, side in enumerate((-1, 1)):  # each force at its own point of the vehicle
            force = PAIR * u[:, rotor]
            along = torch.stack((torch.cos(x[:, 2]), -torch.sin(x[:, 2])), -1)
            up = torch.stack((torch.sin(x[:, 2]), torch.cos(x[:, 2])), -1)
            velocity = x[:, 3:5] - side * LEVER * x[:, 5:] * up  # clockwise: the right side goes down
            assert torch.allclose((along * up).sum(-1), torch.zeros(50, dtype=F64), atol=1e-15)
            power = power + force * (velocity * up).sum(-1)
    assert torch.allclose(change, power, rtol=1e-10, atol=1e-12)


def test_it_is_the_quadrotor_in_a_plane():
    """Full quadrotor, pitched, its rear motors as the left rotor and its front ones as the right one."""
    env, full = QuadrotorPlanar(), Quadrotor()
    x, u = some_states(30), some_actions(30)
    y = torch.zeros(30, 17, dtype=F64)
    y[:, 0], y[:, 2], y[:, 7], y[:, 9], y[:, 11] = x[:, 0], x[:, 1], x[:, 3], x[:, 4], x[:, 5]
    y[:, 3], y[:, 5] = torch.cos(x[:, 2] / 2), torch.sin(x[:, 2] / 2)
    y[:, 13:] = u[:, [1, 0, 0, 1]]  # front right, back right, back left, front left
    planar = env.dynamics(0.0, x, u, env.params(x))
    spatial = full.dynamics(0.0, y, y[:, 13:], full.params(y))
    assert torch.allclose(planar[:, [0, 1, 3, 4, 5]], spatial[:, [0, 2, 7, 9, 11]], rtol=1e-10, atol=1e-10)
    assert spatial[:, [1, 8, 10, 12]].abs().max() < 1e-12  # nothing leaves the plane


@pytest.mark.parametrize(("u", "sign"), [((0.5, 0.2), 1), ((0.2, 0.5), -1)], ids=["left", "right"])
def test_the_stronger_rotor_goes_up(u, sign):
    env, x = QuadrotorPlanar(), torch.zeros(1, 6, dtype=F64)
    rate = env.dynamics(0.0, x, torch.tensor([u], dtype=F64), env.params(x))
    assert float(rate[0, 5]) == pytest.approx(sign * 0.3 * PAIR * LEVER / INERTIA)


def test_left_and_right_are_mirror_images():
    env, x, u = QuadrotorPlanar(), some_states(20), some_actions(20)
    mirror = torch.tensor([-1, 1, -1, -1, 1, -1], dtype=F64)
    for _ in range(10):
        x, y = env.step(x, u, env.params(x)), env.step(mirror * x, u.flip(-1), env.params(x))
        assert torch.allclose(mirror * x[0], y[0], rtol=0, atol=1e-11)
        assert torch.allclose(x[1], y[1], rtol=1e-12, atol=0)
        x = x[0]


def test_actions_and_rates_are_clamped_and_cut_the_gradient_there():
    env = QuadrotorPlanar()
    x = torch.zeros(1, 6, dtype=F64)
    x[0, 5] = 0.99 * MAX_RATE
    x.requires_grad_()
    u = torch.tensor([[3.0, 0.5]], dtype=F64, requires_grad=True)
    following, _ = env.step(x, u, env.params(x))
    assert following[0, 5].item() == pytest.approx(MAX_RATE, rel=1e-15)
    same, _ = env.step(x, torch.tensor([[1.0, 0.5]], dtype=F64), env.params(x))
    assert torch.equal(following, same)
    by_x, by_u = torch.autograd.grad(following[0, 5], (x, u), allow_unused=True)
    assert not by_x.any()
    assert not by_u.any()
    _, by_u = torch.autograd.grad(env.step(x, u, env.params(x))[0][0, 4], (x, u))
    assert by_u[0, 0] == 0.0
    assert by_u[0, 1] > 0.0


def test_resets_cover_the_start_box_upside_down_included():
    env = QuadrotorPlanar()
    x = env.reset(5000, torch.Generator().manual_seed(0), F64)
    high = torch.tensor(env.start_box.high, dtype=F64)
    assert (x.abs() <= high).all()
    assert torch.allclose(x.abs().amax(0), high, rtol=0.01)
    assert torch.allclose(x.std(0), high / math.sqrt(3), rtol=0.03)
    assert 0.45 < (torch.cos(x[:, 2]) < 0).double().mean() < 0.55
