"""The satellite obeys the mechanics of a gyrostat: what the wheels take up the body loses, and nothing else."""

import math

import pytest
import torch
from torch.autograd.functional import jvp

from robotics_envs.simulators.satellite import Satellite

F64 = torch.float64
QUATERNION, RATES, WHEELS = slice(0, 4), slice(4, 7), slice(7, 11)
ROTOR, TORQUE, SPEED = 23.87e-6, 0.004, 628.3
INERTIA = torch.tensor([0.04198, 0.04198, 0.006667], dtype=F64)


def axes():
    """Columns: the wheels' axes in the body, from the docstring's angles."""
    corners = torch.deg2rad(torch.tensor([45.0, 135.0, 225.0, 315.0], dtype=F64))
    up = torch.full((4,), 1 / math.sqrt(3), dtype=F64)
    flat = math.sqrt(2 / 3)
    return torch.stack((flat * torch.cos(corners), flat * torch.sin(corners), up))


def rotation(env, x):
    return env.observe(x)[:, :9].unflatten(-1, (3, 3))


def momentum(env, x):
    """Total and inertial: that of the body with its wheels locked, and of the wheels' own spin."""
    inside = INERTIA * x[:, RATES] + ROTOR * x[:, WHEELS] @ axes().T
    return (rotation(env, x) @ inside.unsqueeze(-1))[..., 0]


def energy(x):
    """Of the body without its wheels' spin axes, and of each wheel at its absolute rate about its axis."""
    rates = x[:, RATES]
    spin = x[:, WHEELS] + rates @ axes()
    rest = torch.diag(INERTIA) - ROTOR * axes() @ axes().T
    return 0.5 * ((rates @ rest) * rates).sum(-1) + 0.5 * ROTOR * (spin**2).sum(-1)


def some_states(batch, seed=0):
    return Satellite.state_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def some_torques(batch, seed=1):
    return Satellite.action_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def test_the_axes_are_unit_and_turn_the_body_equally_about_all_three():
    a = axes()
    assert torch.allclose(a.norm(dim=0), torch.ones(4, dtype=F64))
    assert torch.allclose(a @ a.T, 4 / 3 * torch.eye(3, dtype=F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("driven", [False, True], ids=["free", "torques"])
def test_total_angular_momentum_is_conserved_to_the_order_of_the_solver(driven):
    env = Satellite()
    start = env.reset(20, torch.Generator().manual_seed(0), F64)
    p = env.params(start)
    u = 0.5 * driven * some_torques(20)  # no wheel comes near its limit

    def error(steps):
        x = start
        for _ in range(steps):
            x = env.solver.step(env.dynamics, 0.0, x, u, p, 2.0 / steps)
        return float((momentum(env, x) - momentum(env, start)).abs().max() / momentum(env, start).abs().max())

    coarse, fine = error(10), error(20)
    assert fine < 1e-5
    assert math.log2(coarse / fine) > 3.7


def test_energy_changes_by_the_power_of_the_wheels():
    env, x, u = Satellite(), some_states(20), some_torques(20)
    rate = env.dynamics(0.0, x, u, env.params(x))
    _, change = jvp(energy, x, rate)
    power = (TORQUE * u * x[:, WHEELS]).sum(-1)  # no wheel of the state box is near its limit
    assert power.abs().min() > 1e-3
    assert torch.allclose(change, power, rtol=0, atol=1e-12)


def test_torque_free_tumbling_is_the_closed_form():
    """An axisymmetric body whose wheels do not spin: the rates go round at (Iz - Ix) / Ix times that about z."""
    env = Satellite()
    inside = INERTIA - ROTOR * 4 / 3  # the wheels do not follow about their own axes
    x = torch.zeros(1, 11, dtype=F64)
    x[0, 0], x[0, 4], x[0, 6] = 1.0, 0.2, 0.5
    x[:, WHEELS] = -x[:, RATES] @ axes()
    u, p, period = torch.zeros(1, 4, dtype=F64), env.params(x), 10.0
    for _ in range(100):
        x = env.solver.step(env.dynamics, 0.0, x, u, p, period / 100)
    angle = float((inside[2] - inside[0]) / inside[0]) * 0.5 * period
    expected = torch.tensor([0.2 * math.cos(angle), 0.2 * math.sin(angle), 0.5], dtype=F64)
    assert abs(angle) > 4
    assert torch.allclose(x[0, RATES], expected, rtol=0, atol=1e-6)
    # The body's axis keeps its angle to the momentum, here along (Ix wx, 0, Iz wz) from the start.
    h = torch.tensor([float(inside[0]) * 0.2, 0.0, float(inside[2]) * 0.5], dtype=F64)
    assert float(rotation(env, x)[0, :, 2] @ h) == pytest.approx(float(h[2]), abs=1e-8)


def test_a_known_torque_gives_the_known_acceleration():
    """All four wheels one way push the body the other way about z; opposite pairs about x and y."""
    env, x = Satellite(), torch.zeros(3, 11, dtype=F64)
    x[:, 0] = 1.0
    u = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, -1.0, 1.0], [1.0, 1.0, -1.0, -1.0]], dtype=F64)
    rate = env.dynamics(0.0, x, u, env.params(x))
    push = 4 * TORQUE / math.sqrt(3)
    expected = torch.diag(-push / (INERTIA - ROTOR * 4 / 3))[[2, 0, 1]]
    assert torch.allclose(rate[:, RATES], expected, rtol=1e-12, atol=1e-15)
    spin = TORQUE * u / ROTOR - rate[:, RATES] @ axes()
    assert torch.allclose(rate[:, WHEELS], spin, rtol=1e-12, atol=1e-12)


def test_rest_is_an_equilibrium_whatever_the_wheels_do():
    env, x = Satellite(), torch.zeros(5, 11, dtype=F64)
    x[:, 0] = 1.0
    x[:, WHEELS] = some_states(5)[:, WHEELS]
    rate = env.dynamics(0.0, x, torch.zeros(5, 4, dtype=F64), env.params(x))
    assert rate.abs().max() < 1e-15
    x[:, WHEELS] = 0.0
    assert env.cost(x, torch.zeros(5, 4, dtype=F64), env.params(x)).abs().max() < 1e-15


def test_the_attitude_follows_the_rates():
    """dR/dt = R [rates]x at random states, with R as observed."""
    env, x, u = Satellite(), some_states(10), some_torques(10)
    _, turning = jvp(lambda x: rotation(env, x), x, env.dynamics(0.0, x, u, env.params(x)))
    zero = torch.zeros(10, dtype=F64)
    wx, wy, wz = x[:, RATES].unbind(-1)
    rows = ((zero, -wz, wy), (wz, zero, -wx), (-wy, wx, zero))
    skew = torch.stack([torch.stack(row, -1) for row in rows], -2)
    assert torch.allclose(turning, rotation(env, x) @ skew, rtol=0, atol=1e-12)


def test_a_quaternion_and_its_negative_are_one_attitude():
    env, x, u = Satellite(), some_states(20), some_torques(20)
    other = x.clone()
    other[:, QUATERNION] *= -1
    p = env.params(x)
    assert torch.equal(env.observe(x), env.observe(other))
    (there, cost), (too, same) = env.step(x, u, p), env.step(other, u, p)
    assert torch.equal(cost, same)
    assert torch.equal(env.observe(there), env.observe(too))
    assert torch.equal(there[:, QUATERNION], -too[:, QUATERNION])


def test_a_wheel_at_its_top_speed_speeds_up_no_more_but_slows_down():
    env = Satellite()
    speeds = SPEED * torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.2, 0.89, -0.89, -1.2]], dtype=F64)
    p = env.params(speeds)
    up = torch.full((2, 4), 0.5, dtype=F64)
    full = 0.5 * TORQUE
    expected = torch.tensor([[0.0, 0.0, full, full], [0.0, full, full, full]], dtype=F64)
    assert torch.allclose(env.wheel_torques(speeds, up, p), expected, rtol=0, atol=1e-15)
    assert torch.allclose(env.wheel_torques(-speeds, -up, p), -expected, rtol=0, atol=1e-15)
    middle = env.wheel_torques(torch.full((1, 4), 0.95 * SPEED, dtype=F64), up[:1], p)
    assert torch.allclose(middle, torch.full((1, 4), 0.5 * full, dtype=F64), rtol=1e-9, atol=0)

    x = torch.zeros(1, 11, dtype=F64)
    x[:, 0] = 1.0
    for _ in range(16):  # 0.032 N m s in all, where 0.015 are enough
        x, _ = env.step(x, torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=F64), p)
    assert x[:, WHEELS].abs().min() > 0.97 * SPEED
    assert x[:, WHEELS].abs().max() < 1.01 * SPEED


def test_commands_are_clipped():
    env, x = Satellite(), some_states(3)
    u = torch.full((3, 4), 5.0, dtype=F64)
    beyond, _ = env.step(x, u, env.params(x))
    bound, _ = env.step(x, u.clamp(-1, 1), env.params(x))
    assert torch.equal(beyond, bound)


def test_resets_are_uniform_attitudes_with_a_momentum_that_the_wheels_can_take_up():
    env = Satellite()
    x = env.reset(4000, torch.Generator().manual_seed(0), F64)
    assert torch.allclose(x[:, QUATERNION].norm(dim=-1), torch.ones(4000, dtype=F64))
    r = rotation(env, x)
    assert r.mean(0).abs().max() < 0.05  # no direction is preferred
    assert torch.allclose((r**2).mean(0), torch.full((3, 3), 1 / 3, dtype=F64), rtol=0, atol=0.03)
    # At the reference and at rest the wheels hold it all, each as little as it can.
    needed = momentum(env, x) @ torch.linalg.pinv(axes()).T / ROTOR
    assert needed.abs().max() < SPEED


@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 200), (F64, 20)])
def test_wild_steps_stay_finite_with_finite_gradients(dtype, steps):
    env, generator = Satellite(), torch.Generator().manual_seed(0)
    low, high = env.state_box.bounds(torch.zeros((), dtype=dtype))
    start = (3 * (low + (high - low) * torch.rand(32, 11, generator=generator, dtype=dtype))).requires_grad_()
    x, total = start, 0.0
    p = {name: value.requires_grad_() for name, value in env.params(start).items()}
    for k in range(steps):
        u = 2 * torch.rand(32, 4, generator=generator, dtype=dtype).round() - 1
        x, cost = env.step(x, u, p)
        total = total + cost.sum()
        assert torch.isfinite(x).all()
        if k == 10:
            for gradient in torch.autograd.grad(total, (start, *p.values())):
                assert torch.isfinite(gradient).all()
            x, p = x.detach(), env.params(x.detach())
    assert (x[:, QUATERNION].norm(dim=-1) - 1).abs().max() < 4 * torch.finfo(dtype).eps
    assert math.isfinite(float(total.detach()))


def test_gradients_are_finite_in_the_worst_places():
    """At the reference, where the angle is 0, and for the quaternion that has no attitude."""
    env, x = Satellite(), torch.zeros(2, 11, dtype=F64)
    x[0, 0] = 1.0
    x.requires_grad_()
    u = torch.zeros(2, 4, dtype=F64, requires_grad=True)
    p = {name: value.requires_grad_() for name, value in env.params(x).items()}
    following, cost = env.step(x, u, p)
    total = following.sum() + cost.sum() + env.observe(x).sum()
    for gradient in torch.autograd.grad(total, (x, u, *p.values())):
        assert torch.isfinite(gradient).all()
