"""The quadrotor obeys the mechanics of a rigid body."""

import math

import pytest
import torch
from torch.autograd.functional import jvp

from robotics_envs.simulators.quadrotor import MAX_RATE, Quadrotor, unit

F64 = torch.float64
QUATERNION, VELOCITY, RATES, MOTORS = slice(3, 7), slice(7, 10), slice(10, 13), slice(13, 17)


def at_rest(batch=1):
    x = torch.zeros(batch, 17, dtype=F64)
    x[:, 3] = 1.0
    return x


def hover(env):
    c = {name: constant.value for name, constant in env.constants.items()}
    return c["mass"] * c["g"] / (4 * c["max_thrust"])


def rotation(env, x):
    return env.observe(x)[:, 3:12].unflatten(-1, (3, 3))


def some_states(batch):
    return Quadrotor().state_box.sample(batch, torch.Generator().manual_seed(0), F64)


def test_free_fall():
    """A second without thrust, in any attitude: a parabola, which RK4 integrates exactly."""
    env = Quadrotor()
    x = env.reset(10, torch.Generator().manual_seed(0), F64)
    x[:, MOTORS] = 0.0
    start, u = x, torch.zeros(10, 4, dtype=F64)
    for _ in range(50):
        x, _ = env.step(x, u, env.params(x))
    down = torch.tensor([0.0, 0.0, -9.81], dtype=F64)
    assert torch.allclose(x[:, VELOCITY], start[:, VELOCITY] + down, rtol=0, atol=1e-12)
    assert torch.allclose(x[:, :3], start[:, :3] + start[:, VELOCITY] + 0.5 * down, rtol=0, atol=1e-12)


def test_hover_is_an_equilibrium_at_exactly_the_weight():
    env = Quadrotor()
    x, u = at_rest(), torch.full((1, 4), hover(env), dtype=F64)
    x[:, MOTORS] = u
    for factor, sign in ((1.0, 0), (1.01, 1), (0.99, -1)):
        y = x.clone()
        y[:, MOTORS] *= factor
        rate = env.dynamics(0.0, y, factor * u, env.params(x))
        assert rate[0, 9] == pytest.approx(9.81 * (factor - 1), abs=1e-12)
        assert torch.sign(rate[0, 9].round(decimals=6)) == sign
        rate[0, 9] = 0.0
        assert rate.abs().max() < 1e-12
    assert 4 * hover(env) * 0.1597 == pytest.approx(0.027 * 9.81)
    assert float(env.cost(x, u, env.params(x))) == pytest.approx(0.0, abs=1e-15)


def test_the_weightless_turn_keeps_angular_momentum_and_energy():
    """In the world frame and without thrust, to the order of the solver."""
    env = Quadrotor()
    start = env.reset(20, torch.Generator().manual_seed(0), F64)
    start[:, MOTORS] = 0.0
    p = env.params(start)
    inertia = torch.stack([p[f"inertia_{a}"] for a in "xyz"])

    def conserved(x):
        momentum = (rotation(env, x) @ (inertia * x[:, RATES]).unsqueeze(-1))[..., 0]
        return torch.cat((momentum, (inertia * x[:, RATES] ** 2).sum(-1, keepdim=True)), -1)

    def error(steps):
        x, u = start, torch.zeros(20, 4, dtype=F64)
        for _ in range(steps):
            x = env.solver.step(env.dynamics, 0.0, x, u, p, 2.0 / steps)
        return float((conserved(x) - conserved(start)).abs().max() / conserved(start).abs().max())

    coarse, fine = error(100), error(200)
    assert fine < 1e-5
    assert math.log2(coarse / fine) > 3.7
    # The body's own components do change: it is no steady turn that is conserved.
    x = start
    for _ in range(100):
        x, _ = env.step(x, torch.zeros(20, 4, dtype=F64), p)
    assert (x[:, RATES] - start[:, RATES]).abs().max() > 0.5


@pytest.mark.parametrize(
    ("motors", "axis", "torque"),
    [
        ((0.2, 0.2, 0.4, 0.4), 0, math.sqrt(0.5) * 0.046 * 0.1597 * 0.4),
        ((0.2, 0.4, 0.4, 0.2), 1, math.sqrt(0.5) * 0.046 * 0.1597 * 0.4),
        ((0.2, 0.4, 0.2, 0.4), 2, 5.964552e-3 * 0.1597 * 0.4),
    ],
    ids=["roll: left up", "pitch: nose down", "yaw: clockwise rotors turn the body to the left"],
)
def test_a_known_torque_gives_the_known_angular_acceleration(motors, axis, torque):
    env, x = Quadrotor(), at_rest()
    x[:, MOTORS] = torch.tensor(motors, dtype=F64)
    expected = torch.zeros(3, dtype=F64)
    expected[axis] = torque / (16.571710e-6, 16.655602e-6, 29.261652e-6)[axis]
    rate = env.dynamics(0.0, x, x[:, MOTORS], env.params(x))
    assert torch.allclose(rate[0, RATES], expected, rtol=1e-12, atol=1e-9)
    assert torch.allclose(
        env.dynamics(0.0, x, 1 - x[:, MOTORS], env.params(x))[0, RATES], expected, atol=1e-9
    )


def test_yaw_reactions_are_symmetric():
    env, x = Quadrotor(), at_rest(2)
    x[0, MOTORS] = torch.tensor([0.3, 0.5, 0.3, 0.5], dtype=F64)
    x[1, MOTORS] = torch.tensor([0.5, 0.3, 0.5, 0.3], dtype=F64)
    u = x[:, MOTORS]
    for _ in range(20):
        x, _ = env.step(x, u, env.params(x))
    assert x[0, 12] > 1.0
    assert float(x[0, 12]) == pytest.approx(-float(x[1, 12]), rel=1e-12)
    assert float(x[0, 9]) == pytest.approx(float(x[1, 9]), rel=1e-12)
    assert x[:, 10:12].abs().max() < 1e-12


def test_thrust_pushes_along_the_bodys_axis():
    """Lying on its right side (turned by 90 degrees about x), z of the body is -y of the world."""
    env, x = Quadrotor(), at_rest()
    x[0, QUATERNION] = torch.tensor([math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0], dtype=F64)
    x[0, MOTORS] = 0.5
    rate = env.dynamics(0.0, x, x[:, MOTORS], env.params(x))[0, VELOCITY]
    expected = torch.tensor([0.0, -4 * 0.5 * 0.1597 / 0.027, -9.81], dtype=F64)
    assert torch.allclose(rate, expected, rtol=0, atol=1e-12)


def test_the_attitude_follows_the_rates():
    """dR/dt = R [rates]x at random states, with R as observed."""
    env, x = Quadrotor(), some_states(10)
    u = x[:, MOTORS]
    _, turning = jvp(lambda x: rotation(env, x), x, env.dynamics(0.0, x, u, env.params(x)))
    zero = torch.zeros(10, dtype=F64)
    wx, wy, wz = x[:, RATES].unbind(-1)
    rows = ((zero, -wz, wy), (wz, zero, -wx), (-wy, wx, zero))
    skew = torch.stack([torch.stack(row, -1) for row in rows], -2)
    assert torch.allclose(turning, rotation(env, x) @ skew, rtol=0, atol=1e-12)


def test_observed_rotations_are_rotations():
    env, x = Quadrotor(), some_states(100)
    r = rotation(env, x)
    assert torch.allclose(r @ r.mT, torch.eye(3, dtype=F64).expand(100, 3, 3), rtol=0, atol=1e-12)
    assert torch.allclose(torch.linalg.det(r), torch.ones(100, dtype=F64))
    other = x.clone()
    other[:, QUATERNION] *= -0.3
    assert torch.allclose(env.observe(other), env.observe(x), rtol=0, atol=1e-12)


def test_the_motors_lag():
    env, x = Quadrotor(), at_rest()
    u = torch.full((1, 4), 0.8, dtype=F64)
    for _ in range(5):
        x, _ = env.step(x, u, env.params(x))
    assert torch.allclose(
        x[:, MOTORS], 0.8 * (1 - torch.exp(torch.tensor(-0.1 * 15.4666, dtype=F64))), atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_quaternion_stays_unit_through_500_wild_steps(dtype):
    env, generator = Quadrotor(), torch.Generator().manual_seed(0)
    x = env.reset(32, generator, dtype)
    accuracy = 4 * torch.finfo(dtype).eps
    assert (x[:, QUATERNION].norm(dim=-1) - 1).abs().max() < accuracy
    for _ in range(500):
        u = torch.rand(32, 4, generator=generator, dtype=dtype).round()
        x, cost = env.step(x, u, env.params(x))
    assert (x[:, QUATERNION].norm(dim=-1) - 1).abs().max() < accuracy
    assert torch.isfinite(x).all()
    assert torch.isfinite(cost).all()
    assert x[:, RATES].abs().max() == pytest.approx(MAX_RATE)


def test_resets_are_turned_by_no_more_than_the_docstring_says():
    env = Quadrotor()
    x = env.reset(5000, torch.Generator().manual_seed(0), F64)
    turned = 2 * torch.rad2deg(torch.acos(x[:, 3]))
    assert 90 < turned.max() < 101
    tilt = env.observe(x)[:, 11]
    assert tilt.min() < 0.2


def test_gradients_are_finite_in_the_worst_places():
    """At rest, without thrust, and for the quaternion that has no attitude."""
    env, x = Quadrotor(), at_rest(2)
    x[1, QUATERNION] = 0.0
    x.requires_grad_()
    u = torch.full((2, 4), 0.5, dtype=F64, requires_grad=True)
    p = {name: value.requires_grad_() for name, value in env.params(x).items()}
    following, cost = env.step(x, u, p)
    total = following.sum() + cost.sum() + env.observe(x).sum()
    for gradient in torch.autograd.grad(total, (x, u, *p.values())):
        assert torch.isfinite(gradient).all()
    assert torch.equal(unit(torch.zeros(1, 4)), torch.zeros(1, 4))


def test_gradients_of_the_dynamics_in_float64():
    env, x = Quadrotor(), some_states(5)
    x[0] = at_rest()[0]
    u = env.action_box.sample(5, torch.Generator().manual_seed(1), F64)
    p = env.params(x)
    inputs = [v.clone().requires_grad_() for v in (x, u, *p.values())]

    def call(x, u, *values):
        return env.dynamics(0.0, x, u, dict(zip(p, values, strict=True)))

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
