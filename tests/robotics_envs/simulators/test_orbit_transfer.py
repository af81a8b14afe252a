"""The spacecraft obeys Newton, Kepler and Tsiolkovsky, and reaches as far as Bryson and Ho's does."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

from robotics_envs.simulators.orbit_transfer import DRY_MASS, MAX_SPEED, RADII, OrbitTransfer, to_disc

F64 = torch.float64
THRUST, MASS_RATE = 0.1405, 0.0749


def tensor(*rows):
    return torch.tensor(rows, dtype=F64)


def follow(x, u, duration, steps):
    """The state after ``duration`` of the held command, by the simulator's solver without its stops."""
    env = OrbitTransfer()
    p = env.params(x)
    for _ in range(steps):
        x = env.solver.step(env.dynamics, 0.0, x, u, p, duration / steps)
    return x


def elements(x):
    """Energy and angular momentum by mass, and the direction of perihelion (Laplace, Runge, Lenz)."""
    r, outward, along, angle, _ = x.unbind(-1)
    momentum = r * along
    towards, across = along * momentum - 1, -outward * momentum
    vector = (
        towards * torch.cos(angle) - across * torch.sin(angle),
        towards * torch.sin(angle) + across * torch.cos(angle),
    )
    return torch.stack((0.5 * (outward**2 + along**2) - 1 / r, momentum, *vector), -1)


def test_without_thrust_the_orbit_stays_to_the_order_of_the_solver():
    x = OrbitTransfer.state_box.sample(20, torch.Generator().manual_seed(0), F64)
    u = torch.zeros(20, 2, dtype=F64)
    error = [float((elements(follow(x, u, 4.0, n)) - elements(x)).abs().max()) for n in (100, 200)]
    assert error[1] < 1e-4
    assert math.log2(error[0] / error[1]) > 3.7
    assert (follow(x, u, 4.0, 100) - x)[:, :3].abs().max() > 0.5


def test_keplers_third_law():
    """From perihelion back to it in the period of the semi-major axis, and not before."""
    a = torch.tensor([1.0, 1.3, 2.0], dtype=F64)
    e = torch.tensor([0.0, 0.3, 0.5], dtype=F64)
    r = a * (1 - e)
    along = torch.sqrt((1 + e) / r)
    zero = torch.zeros(3, dtype=F64)
    x = torch.stack((r, zero, along, zero, zero + 1), -1)
    end = follow(x, torch.zeros(3, 2, dtype=F64), 2 * math.pi * a**1.5, 400)
    assert torch.allclose(end, x + tensor((0.0, 0.0, 0.0, 2 * math.pi, 0.0)), rtol=0, atol=2e-6)


def test_a_circular_orbit_is_an_equilibrium_of_all_but_the_angle():
    env = OrbitTransfer()
    x = tensor((1.524, 0.0, 1.524**-0.5, 2.0, 0.8))
    rate = env.dynamics(0.0, x, torch.zeros(1, 2, dtype=F64), env.params(x))
    assert rate[0].tolist() == pytest.approx([0.0, 0.0, 0.0, 1.524**-1.5, -7.49e-8], abs=1e-12)
    assert float(env.cost(x, torch.zeros(1, 2, dtype=F64), env.params(x))) == pytest.approx(0.0, abs=1e-15)


def test_newton_in_cartesian_coordinates():
    """The same flight under a command that turns with the position vector, by scipy in x and y."""
    x = tensor((1.1, 0.1, 0.9, 0.5, 0.9))
    command = (-0.3, 0.6)
    length = math.hypot(*command)

    def newton(t, s):
        position, velocity, mass = s[:2], s[2:4], s[4]
        up = position / np.hypot(*position)
        ahead = np.array((-up[1], up[0]))
        push = THRUST / mass * (command[0] * up + command[1] * ahead)
        return (*velocity, *(-position / np.hypot(*position) ** 3 + push), -MASS_RATE * length)

    r, outward, along, angle, mass = x[0].tolist()
    up = np.array((math.cos(angle), math.sin(angle)))
    start = (*(r * up), *(outward * up + along * np.array((-up[1], up[0]))), mass)
    px, py, vx, vy, m = solve_ivp(newton, (0.0, 3.0), start, "DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    end = follow(x, tensor(command), 3.0, 500)[0]
    assert float(end[0]) == pytest.approx(math.hypot(px, py), abs=1e-8)
    assert float(end[1]) == pytest.approx((px * vx + py * vy) / math.hypot(px, py), abs=1e-8)
    assert float(end[0] * end[2]) == pytest.approx(px * vy - py * vx, abs=1e-8)
    assert float(torch.cos(end[3]) * py - torch.sin(end[3]) * px) == pytest.approx(0.0, abs=1e-8)
    assert float(end[4]) == pytest.approx(m, abs=1e-8)


def test_tsiolkovsky():
    """Far out and at rest, where the Sun hardly pulls: velocity is that of the exhaust times ln(mass ratio)."""
    env = OrbitTransfer(mu=1e-12)
    x, u = tensor((100.0, 0.0, 0.0, 0.0, 1.0)), tensor((1.0, 0.0))
    for _ in range(400):
        x = env.solver.step(env.dynamics, 0.0, x, u, env.params(x), 0.01)
    assert float(x[0, 4]) == pytest.approx(1 - 4 * MASS_RATE, abs=1e-9)
    assert float(x[0, 1]) == pytest.approx(-THRUST / MASS_RATE * math.log(1 - 4 * MASS_RATE), abs=1e-9)


def test_the_scaled_constants_are_the_published_ones():
    """0.85 lbf on a spacecraft of 10,000 lb that burns 12.9 lb a day; 193 days are 3.32 units of time."""
    au, sun = 149.597870700e9, 1.32712440018e20  # IAU 2012 and the Sun's mu, SI
    gravity, pound_standard = sun / au**2, 9.80665
    unit_days = math.sqrt(au**3 / sun) / 86400
    assert 0.85 / 10_000 * pound_standard / gravity == pytest.approx(THRUST, rel=1e-3)
    assert 12.9 / 10_000 * unit_days == pytest.approx(MASS_RATE, rel=2e-3)
    assert 193 / unit_days == pytest.approx(3.32, abs=1e-3)


def test_the_largest_circle_in_193_days_is_bryson_and_hos():
    """Thrust angles by SQP through the simulator: the orbit of Mars, 1.525 AU, and no further."""
    env, intervals, duration = OrbitTransfer(), 14, 3.3194

    @functools.cache
    def fly(key):
        """Minus the radius and what is missing from a circle, [3], and their slopes [3, intervals]."""
        # One rollout for each of the three, so that one backward pass gives all slopes.
        angles = torch.tensor(key, dtype=F64).expand(3, -1).clone().requires_grad_()
        x = tensor((1.0, 0.0, 1.0, 0.0, 1.0)).expand(3, -1)
        p = env.params(x)
        for angle in angles.unbind(-1):
            u = torch.stack((torch.sin(angle), torch.cos(angle)), -1)
            x = env.solver.step(env.dynamics, 0.0, x, u, p, duration / intervals)
        r, outward, along, _, _ = x.unbind(-1)
        values = torch.stack((-r[0], outward[1], (along - torch.rsqrt(r))[2]))
        return values.detach().numpy(), torch.autograd.grad(values.sum(), angles)[0].numpy()

    def at(angles):
        return fly(tuple(angles.tolist()))

    # Outward first, inward later, as everyone's solution does.
    guess = np.concatenate((np.full(intervals // 2, 0.6), np.full(intervals // 2, -0.6)))
    best = minimize(
        lambda a: at(a)[0][0],
        guess,
        jac=lambda a: at(a)[1][0],
        constraints={"type": "eq", "fun": lambda a: at(a)[0][1:], "jac": lambda a: at(a)[1][1:]},
        method="SLSQP",
        options={"maxiter": 40, "ftol": 1e-5},
    )
    assert np.abs(at(best.x)[0][1:]).max() < 1e-4
    assert -best.fun == pytest.approx(1.525, abs=2e-3)


def test_commands_are_brought_to_the_disc():
    u = tensor((0.3, -0.4), (1.0, 1.0), (-1.0, 0.0), (0.0, 0.0))
    s = math.sqrt(0.5)
    expected = tensor((0.3, -0.4), (s, s), (-1.0, 0.0), (0.0, 0.0))
    assert torch.allclose(torch.stack(to_disc(u), -1), expected, rtol=0, atol=1e-15)
    env = OrbitTransfer()
    x = tensor((1.0, 0.0, 1.0, 0.0, 1.0))
    rate = env.dynamics(0.0, x, tensor((-1.0, 1.0)), env.params(x))[0]
    assert rate[[1, 2, 4]].tolist() == pytest.approx([-s * THRUST, s * THRUST, -MASS_RATE], abs=1e-12)
    # What the cost counts does bring a command beyond the disc back to it.
    u = tensor((0.9, 0.9)).requires_grad_()
    (back,) = torch.autograd.grad(env.cost(x, u, env.params(x)).sum(), u)
    assert (back > 0.01).all()


def test_the_sense_of_rotation_does_not_matter():
    """Mirrored: tangential velocity, command and angle change sign, and nothing else does."""
    env = OrbitTransfer()
    x = env.state_box.sample(20, torch.Generator().manual_seed(2), F64)
    u = env.action_box.sample(20, torch.Generator().manual_seed(3), F64)
    mirror = tensor((1.0, 1.0, -1.0, -1.0, 1.0))
    there, _ = env.step(x, u, env.params(x))
    back, _ = env.step(mirror * x, u * tensor((1.0, -1.0)), env.params(x))
    assert torch.allclose(back, mirror * there, rtol=0, atol=1e-14)


def test_the_engine_stops_with_its_propellant():
    env = OrbitTransfer()
    x, u = tensor((1.5, 0.0, 0.8, 0.0, DRY_MASS + 0.05)), tensor((0.0, -1.0))
    for _ in range(60):
        x, _ = env.step(x, u, env.params(x))
        assert float(x[0, 4]) > DRY_MASS
    assert float(x[0, 4]) < DRY_MASS + 0.01
    before = elements(x)
    for _ in range(10):
        x, _ = env.step(x, u, env.params(x))
    assert torch.allclose(elements(x)[:, :2], before[:, :2], rtol=0, atol=1e-4)


def test_radius_and_velocities_meet_their_stops():
    env = OrbitTransfer()
    x = tensor((0.21, -2.9, 0.0, 0.0, 1.0), (3.9, 2.9, 0.5, 0.0, 1.0))
    y, _ = env.step(x, torch.zeros(2, 2, dtype=F64), env.params(x))
    assert y[:, 0].tolist() == list(RADII)
    assert float(y[0, 1]) == -MAX_SPEED


def test_resets_are_near_the_orbit_of_the_earth():
    x = OrbitTransfer().reset(4000, torch.Generator().manual_seed(0), F64)
    mean = x.mean(0).tolist()
    assert mean == pytest.approx([1.0, 0.0, 1.0, 0.0, 0.975], abs=0.12)
    e = elements(x)
    assert torch.hypot(e[:, 2], e[:, 3]).max() < 0.12
    assert e[:, 1].min() > 0.93
