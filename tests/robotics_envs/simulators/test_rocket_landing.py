"""The rocket obeys Tsiolkovsky, Newton and Euler while it burns its own mass."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from robotics_envs.simulators.rocket_landing import MAX_GIMBAL, MIN_THROTTLE, STANDARD_GRAVITY, RocketLanding

F64 = torch.float64
DRY, THRUST, LEVER, G = 9100.0, 240e3, 3.0, 9.81
EXHAUST = 373.0 * 9.80665  # m/s
INERTIA_PER_MASS = 2.4557**2


def some_states(env, batch, seed=0):
    return env.state_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def some_actions(env, batch, seed=1):
    return env.action_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def upright(batch=1, propellant=1500.0):
    x = torch.zeros(batch, 7, dtype=F64)
    x[:, 6] = propellant
    return x


def test_tsiolkovsky():
    """Straight up: the gain of speed is exhaust velocity times the log of the mass ratio, less g t; to fourth order."""
    env = RocketLanding(flame_out=1e-3)
    start, u, time = upright(propellant=2000.0), torch.tensor([[1.0, 0.0]], dtype=F64), 20.0

    def end(steps):
        x = start
        for _ in range(steps):
            x = env.solver.step(env.dynamics, 0.0, x, u, env.params(x), time / steps)
        return x[0]

    left = 2000.0 - THRUST / EXHAUST * time
    gain = EXHAUST * math.log((DRY + 2000.0) / (DRY + left)) - G * time
    errors = []
    for steps in (2, 4):
        x = end(steps)
        assert x[6].item() == pytest.approx(left, rel=1e-12)
        errors.append(abs(x[4].item() - gain))
    assert errors[1] < 1e-4
    assert math.log2(errors[0] / errors[1]) > 3.7


def test_free_fall_without_propellant():
    """Nothing left to burn: a parabola and a steady turn whatever the throttle says."""
    env = RocketLanding()
    start = some_states(env, 20)
    start[:, 6] = 0.0
    x, u = start, some_actions(env, 20)
    for _ in range(8):
        x, _ = env.step(x, u, env.params(x))
    rates = torch.tensor([0.0, -G, 0.0, 0.0], dtype=F64)
    assert torch.allclose(x[:, 3:], start[:, 3:] + 2 * rates, rtol=0, atol=1e-11)
    assert torch.allclose(x[:, :3], start[:, :3] + 2 * start[:, 3:6] + 2 * rates[:3], rtol=0, atol=1e-11)


def test_hover_is_an_equilibrium_but_for_the_propellant():
    env, x = RocketLanding(), upright()
    u = torch.tensor([[(DRY + 1500.0) * G / THRUST, 0.0]], dtype=F64)
    assert MIN_THROTTLE < u[0, 0] < 1
    rate = env.dynamics(0.0, x, u, env.params(x))[0]
    assert rate[:6].abs().max() < 1e-12
    assert rate[6].item() == pytest.approx(-(DRY + 1500.0) * G / EXHAUST, rel=1e-12)
    assert env.cost(x, u, env.params(x)).item() == pytest.approx(0.0, abs=1e-15)
    # The throttle's range has the weight within it for any propellant on board.
    assert MIN_THROTTLE * THRUST < DRY * G < (DRY + 2200.0) * G < THRUST


def test_momentum_of_vehicle_and_exhaust_together_is_kept():
    """Without gravity, the exhaust leaves at the vehicle's velocity less the exhaust velocity along the thrust."""
    env = RocketLanding(g=1e-12)
    start = some_states(env, 10)
    start[:, 6] = torch.linspace(30.0, 2000.0, 10, dtype=F64)  # the first ones burn out
    u, p = some_actions(env, 10), env.params(start)

    def field(t, y, u, p):
        x = y[:, :7]
        dx = env.dynamics(t, x, u, p)
        along = torch.stack((torch.sin(x[:, 2] + u[:, 1]), torch.cos(x[:, 2] + u[:, 1])), -1)
        return torch.cat((dx, -dx[:, 6:] * (x[:, 3:5] - EXHAUST * along)), -1)

    def momentum(y):
        return (DRY + y[:, 6:7]) * y[:, 3:5] + y[:, 7:]

    begin = torch.cat((start, torch.zeros(10, 2, dtype=F64)), -1)

    def drift(steps):
        y = begin
        for _ in range(steps):
            y = env.solver.step(field, 0.0, y, u, p, 2.0 / steps)
        return float((momentum(y) - momentum(begin)).abs().max())

    coarse, fine = drift(40), drift(80)
    assert fine < 1e-3  # kg m/s, of some 1e5
    assert math.log2(coarse / fine) > 3.7


def test_the_gimbals_torque_is_the_moment_of_the_thrust_at_the_tail():
    env = RocketLanding()
    x, u = some_states(env, 50), some_actions(env, 50)
    p = env.params(x)
    rate = env.dynamics(0.0, x, u, p)
    mass = DRY + x[:, 6]
    force = mass.unsqueeze(-1) * (rate[:, 3:5] + torch.tensor([0.0, G], dtype=F64))
    tail = -LEVER * torch.stack((torch.sin(x[:, 2]), torch.cos(x[:, 2])), -1)
    moment = tail[:, 1] * force[:, 0] - tail[:, 0] * force[:, 1]  # clockwise is positive
    assert torch.allclose(rate[:, 5] * mass * INERTIA_PER_MASS, moment, rtol=1e-10, atol=1e-6)
    assert torch.allclose(force.norm(dim=-1), env.thrust(x, u, p), rtol=1e-12)
    # Upright with the thrust turned to +x: the tail goes right, the nose left.
    rate = env.dynamics(0.0, upright(), torch.tensor([[0.5, MAX_GIMBAL]], dtype=F64), env.params(upright()))
    assert rate[0, 3] > 0
    assert rate[0, 5] < 0


def test_the_moment_of_inertia_is_that_of_a_uniform_cone():
    """Summed over thin discs of a cone of 12 m on a base of 4.1 m, whose centre of mass is 3 m above the base."""
    height = (np.arange(20000) + 0.5) / 20000 * 12
    radius = 2.05 * (1 - height / 12)
    mass = radius**2 / (radius**2).sum()
    centre = (mass * height).sum()
    inertia = (mass * (radius**2 / 4 + (height - centre) ** 2)).sum()
    assert centre == pytest.approx(LEVER, rel=1e-6)
    assert inertia == pytest.approx(INERTIA_PER_MASS, rel=1e-4)


def test_two_seconds_agree_with_scipy():
    env = RocketLanding()
    start, u = some_states(env, 1)[0], some_actions(env, 1)[0]
    throttle, gimbal = u.tolist()

    def field(_, y):
        _, _, a, vx, vz, w, fuel = y
        f = THRUST * throttle * (1 - math.exp(-fuel / 30.0))
        m = DRY + fuel
        push = (f / m * math.sin(a + gimbal), f / m * math.cos(a + gimbal) - G)
        return [vx, vz, w, *push, -LEVER * f * math.sin(gimbal) / (m * INERTIA_PER_MASS), -f / EXHAUST]

    reference = solve_ivp(field, (0, 2), start.tolist(), rtol=1e-11, atol=1e-11).y[:, -1]
    x = start.unsqueeze(0)
    for _ in range(8):
        x, _ = env.step(x, u.unsqueeze(0), env.params(x))
    np.testing.assert_allclose(x[0].numpy(), reference, rtol=1e-3, atol=1e-3)


def test_propellant_runs_out_smoothly_and_stays_above_zero():
    env = RocketLanding()
    x, u = upright(propellant=60.0), torch.tensor([[1.0, 0.0]], dtype=F64)
    seen = [x[0, 6].item()]
    for _ in range(40):
        x, _ = env.step(x, u, env.params(x))
        seen.append(x[0, 6].item())
    assert all(0 <= b < a for a, b in itertools.pairwise(seen))
    assert seen[-1] < 0.1
    assert env.thrust(x, u, env.params(x)).item() < 3e-3 * THRUST
    low = upright(2, 30.0)
    low[1, 6] = -500.0
    left = env.thrust(low, u.expand(2, 2), env.params(low))
    assert left[0].item() == pytest.approx((1 - math.exp(-1)) * THRUST)
    assert left[1].item() == 0.0


def test_left_and_right_are_mirror_images():
    env = RocketLanding()
    x, u = some_states(env, 20), some_actions(env, 20)
    mirror = torch.tensor([-1, 1, -1, -1, 1, -1, 1], dtype=F64)
    flip = torch.tensor([1, -1], dtype=F64)
    for _ in range(10):
        (x, cost), (y, other) = env.step(x, u, env.params(x)), env.step(mirror * x, flip * u, env.params(x))
        assert torch.allclose(mirror * x, y, rtol=0, atol=1e-10)
        assert torch.allclose(cost, other, rtol=1e-12)


def test_below_the_ground_costs_more_than_above_and_the_slope_does_not_jump():
    env = RocketLanding()
    x = upright(4)
    x[:, 1] = torch.tensor([2.0, -2.0, 1e-9, -1e-9], dtype=F64)
    x.requires_grad_()
    u = torch.tensor([[0.4, 0.0]], dtype=F64).expand(4, 2)
    cost = env.cost(x, u, env.params(x))
    assert (cost[1] - cost[0]).item() == pytest.approx(0.4)
    (slope,) = torch.autograd.grad(cost.sum(), x)
    assert slope[2:, 1].abs().max() < 1e-8


def test_the_observation_is_the_state_and_the_place_near_the_pad_on_a_finer_scale():
    env, x = RocketLanding(), upright(2)
    x[:, :2] = torch.tensor([[0.03, -0.04], [3000.0, 4000.0]], dtype=F64)
    near = env.observe(x)[:, 8:]
    expected = torch.tensor([[0.006, -0.008], [0.6, 0.8]], dtype=F64)
    assert torch.allclose(near, expected, rtol=1e-4, atol=0)
    assert torch.equal(env.observe(x)[:, [0, 1, 7]], x[:, [0, 1, 6]])


def test_actions_are_clipped_to_what_the_engines_can():
    env, x = RocketLanding(), upright()
    u = torch.tensor([[0.0, 1.0]], dtype=F64, requires_grad=True)
    following, _ = env.step(x, u, env.params(x))
    bound = torch.tensor([[0.3, math.radians(8)]], dtype=F64)
    assert torch.equal(following, env.step(x, bound, env.params(x))[0])
    (gradient,) = torch.autograd.grad(following.sum(), u)
    assert not gradient.any()
    assert STANDARD_GRAVITY == 9.80665


def test_resets_fill_the_start_box_and_every_start_can_be_stopped():
    env = RocketLanding()
    x = env.reset(4000, torch.Generator().manual_seed(0), F64)
    low, high = env.start_box.bounds(x)
    assert ((x >= low) & (x <= high)).all()
    assert torch.allclose(x.mean(0), (low + high) / 2, rtol=0.02, atol=0.3)
    brake = THRUST / (DRY + x[:, 6]) - G
    assert (x[:, 4] ** 2 / (2 * brake) < x[:, 1]).all()
