"""The crane obeys Lagrange, its buffers hold, and a linear quadratic regulator brings the load to rest."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import solve_discrete_are

from robotics_envs.simulators.crane import BUFFER, MAX_FORCE, RAIL, ROPE, Crane, buffer_force

F64 = torch.float64
TROLLEY, LOAD, HOIST, G = 300.0, 500.0, 100.0, 9.81
WEIGHT = LOAD * G


def some_states(env, batch, seed=0):
    return env.state_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def some_actions(env, batch, seed=1):
    return env.action_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def hanging(depth=3.0, target=0.0):
    """The load at rest on its target."""
    return torch.tensor([[target, depth, 0.0, 0.0, 0.0, 0.0, target, depth]], dtype=F64)


def kinetic(q, rates):
    """Of trolley, hoist and load, from the velocities of the three masses."""
    _, length, sway = q
    velocity, length_rate, sway_rate = rates
    right = velocity + length_rate * torch.sin(sway) + length * sway_rate * torch.cos(sway)
    up = -length_rate * torch.cos(sway) + length * sway_rate * torch.sin(sway)
    return 0.5 * (TROLLEY * velocity**2 + HOIST * length_rate**2 + LOAD * (right**2 + up**2))


def potential(q, u):
    """Of the load's weight and of both constant forces."""
    position, length, sway = q
    return -WEIGHT * length * torch.cos(sway) - u[0] * position + u[1] * length


def accelerations_of_lagrange(q, rates, u):
    """From the Lagrangian alone: ``M a = dL/dq - (dM/dt) rates``, all by automatic differentiation."""
    momenta = torch.func.grad(kinetic, argnums=1)
    mass = torch.func.jacrev(momenta, argnums=1)(q, rates)
    changes = torch.func.jacrev(momenta)(q, rates) @ rates
    force = torch.func.grad(lambda q: kinetic(q, rates) - potential(q, u))(q)
    return torch.linalg.solve(mass, force - changes)


def test_the_accelerations_are_those_of_the_lagrangian():
    env = Crane(trolley_friction=1e-300, hoist_friction=1e-300)
    x, u = some_states(env, 30), some_actions(env, 30)
    rate = env.dynamics(0.0, x, u, env.params(x))
    expected = torch.stack(
        [accelerations_of_lagrange(*pair) for pair in zip(x[:, :3], x[:, 3:6], u, strict=True)]
    )
    assert torch.allclose(rate[:, 3:6], expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(rate[:, :3], x[:, 3:6])
    assert not rate[:, 6:].any()


def test_friction_opposes_motion():
    env, x = Crane(), some_states(Crane(), 30)
    u, p = some_actions(env, 30), env.params(x)
    free = Crane(trolley_friction=1e-300, hoist_friction=1e-300)
    # Friction enters like a change of both forces.
    same = u + torch.stack((100.0 * x[:, 3], -200.0 * x[:, 4]), -1)
    assert torch.allclose(env.dynamics(0.0, x, same, p), free.dynamics(0.0, x, u, free.params(x)), atol=1e-9)


def test_energy_and_horizontal_momentum_are_kept_to_fourth_order():
    env = Crane(trolley_friction=1e-300, hoist_friction=1e-300)
    start, u = some_states(env, 20), some_actions(env, 20)
    start[:, 0] = 0.0
    start[:, 1] = torch.linspace(3.0, 5.0, 20, dtype=F64)
    p = env.params(start)

    def energy(x):
        return torch.stack([kinetic(a[:3], a[3:6]) + potential(a[:3], b) for a, b in zip(x, u, strict=True)])

    def momentum(x):
        return TROLLEY * x[:, 3] + LOAD * env.load_velocity(x)[0]

    def drifts(steps):
        x = start
        for _ in range(steps):
            x = env.solver.step(env.dynamics, 0.0, x, u, p, 1.0 / steps)
        pushed = momentum(x) - momentum(start) - u[:, 0]
        return float((energy(x) - energy(start)).abs().max()), float(pushed.abs().max())

    for coarse, fine in zip(drifts(20), drifts(40), strict=True):
        assert fine < 0.5  # J of some 2e4, and N s of some 1e3
        assert math.log2(coarse / fine) > 3.7


@pytest.mark.parametrize("length", [1.5, 3.0, 5.0])
def test_frequency_of_small_sway(length):
    """sqrt(g/l) under a trolley too heavy to move, sqrt((1 + load/trolley) g/l) under a free one."""
    for trolley, factor in ((1e12, 1.0), (TROLLEY, 1 + LOAD / TROLLEY)):
        env = Crane(trolley=trolley, trolley_friction=1e-300, hoist_friction=1e-300)
        x, u = hanging(length), torch.tensor([0.0, WEIGHT], dtype=F64)
        f = lambda v, env=env, u=u: env.dynamics(0.0, v[None], u[None], env.params(v))[0]
        values = torch.linalg.eigvals(torch.autograd.functional.jacobian(f, x[0]))
        assert values.imag.max().item() == pytest.approx(math.sqrt(factor * G / length), rel=1e-6)
        assert values.real.abs().max() < 1e-3


def test_the_load_at_rest_on_its_target_costs_nothing_and_stays():
    env, x = Crane(), hanging(4.0, -2.0)
    u = torch.tensor([[0.0, WEIGHT]], dtype=F64)
    assert env.dynamics(0.0, x, u, env.params(x)).abs().max() < 1e-12
    following, cost = env.step(x, u, env.params(x))
    assert torch.allclose(following, x, atol=1e-12)
    assert cost.item() == pytest.approx(0.0, abs=1e-15)
    # The middle of the action box carries the weight.
    low, high = env.action_box.bounds(x)
    assert torch.equal((low + high)[None] / 2, u)


def test_three_seconds_agree_with_scipy():
    """In Cartesian coordinates of the load, with the pull of the rope as the unknown constraint force."""
    env = Crane()
    starts, actions = some_states(env, 5, seed=2), some_actions(env, 5, seed=3)
    starts[:, 0] *= 0.3
    starts[:, 1] = torch.linspace(3.0, 4.0, 5, dtype=F64)
    starts[:, 3:6] *= 0.4
    actions[:, 1] = WEIGHT + 0.2 * (actions[:, 1] - WEIGHT)

    def field(_, y, force, pull):
        """Trolley x, rope l, load (a, b) to the right and down, and their velocities."""
        x, length, a, b, vx, vl, va, vb = y
        away = np.array((a - x, b)) / length
        relative = np.array((va - vx, vb))
        # The tension s: trolley vx' = (F + s away_x)/M, hoist vl' = (s - pull)/I, load v' = (0, g) - s away/m.  That
        # the rope is as long as the distance, l l'' + l'² = |relative|² + (load - trolley)·(load - trolley)'', gives s.
        forced = (force - 100.0 * vx) / TROLLEY
        paid = (-pull - 200.0 * vl) / HOIST
        left = (relative @ relative - vl**2) / length - away[0] * forced + away[1] * G - paid
        s = left / (1 / HOIST + 1 / LOAD + away[0] ** 2 / TROLLEY)
        return [
            *(vx, vl, va, vb),
            *(forced + s * away[0] / TROLLEY, paid + s / HOIST),
            *(-s * away[0] / LOAD, G - s * away[1] / LOAD),
        ]

    for start, u in zip(starts, actions, strict=True):
        position, length, sway, velocity, length_rate, _, _, _ = start.tolist()
        load = (position + length * math.sin(sway), length * math.cos(sway))
        speeds = [float(v) for v in env.load_velocity(start)]
        y = [position, length, *load, velocity, length_rate, *speeds]
        end = solve_ivp(field, (0, 3), y, args=u.tolist(), rtol=1e-11, atol=1e-11).y[:, -1]
        x = start[None]
        for _ in range(30):
            x, _ = env.step(x, u[None], env.params(x))
        reached = x[0, 0], x[0, 1], *(e + t for e, t in zip(env.error(x[0]), x[0, 6:], strict=True))
        np.testing.assert_allclose([float(v) for v in reached], end[:4], rtol=0, atol=2e-3)
        np.testing.assert_allclose([float(v) for v in env.load_velocity(x[0])], end[6:], rtol=0, atol=5e-3)


def test_the_buffers_hold_the_full_forces_and_never_pull():
    depth, rate = torch.linspace(-1, 1, 41, dtype=F64), torch.linspace(-50, 50, 41, dtype=F64)
    force = buffer_force(depth[:, None], rate)
    assert (force >= 0).all()
    assert not force[depth <= 0].any()
    assert torch.allclose(buffer_force(depth[depth > 0], torch.zeros(())), BUFFER * depth[depth > 0])
    env = Crane()
    for push in (-1.0, 1.0):
        x, farthest = hanging().repeat(2, 1), []
        u = torch.tensor([[push * MAX_FORCE, WEIGHT], [0.0, WEIGHT + push * 1000.0]], dtype=F64)
        for _ in range(300):
            x, _ = env.step(x, u, env.params(x))
            farthest.append(x.clone())
        states = torch.stack(farthest)
        assert states[:, 0, 0].abs().max() < RAIL + 0.6
        assert ROPE[0] - 0.4 < states[:, 1, 1].min()
        assert states[:, 1, 1].max() < ROPE[1] + 0.4
        # In the end it leans on the buffer, with the force that pushes it over the stiffness.
        end = ROPE[0] - 0.05 if push > 0 else ROPE[1] + 0.05
        assert x[1, 1].item() == pytest.approx(end, abs=1e-3)
        assert x[0, 0].item() == pytest.approx(push * (RAIL + MAX_FORCE / BUFFER), abs=0.05)


def test_left_and_right_are_mirror_images():
    env = Crane()
    x, u = some_states(env, 20), some_actions(env, 20)
    mirror = torch.tensor([-1, 1, -1, -1, 1, -1, -1, 1], dtype=F64)
    flip = torch.tensor([-1, 1], dtype=F64)
    for _ in range(10):
        (x, cost), (y, other) = env.step(x, u, env.params(x)), env.step(mirror * x, flip * u, env.params(x))
        assert torch.allclose(mirror * x, y, rtol=0, atol=1e-10)
        assert torch.allclose(cost, other, rtol=1e-12)


@functools.cache
def regulator():
    """Gains ``[2, 6]`` of the discrete linear quadratic regulator about a rope of 3.5 m."""
    env, x = Crane(), hanging(3.5)[0]
    f = lambda x, u: env.step(x[None], u[None], env.params(x))[0][0]
    a, b = torch.autograd.functional.jacobian(f, (x, torch.tensor([0.0, WEIGHT], dtype=F64)))
    a, b = a[:6, :6].numpy(), b[:6].numpy()
    r = np.diag([4 / 600.0**2, 1 / 1000.0**2])
    cost = solve_discrete_are(a, b, np.diag([1.0, 4.0, 2.0, 1.0, 1.0, 2.0]), r)
    return torch.from_numpy(np.linalg.solve(r + b.T @ cost @ b, b.T @ cost @ a))


def regulate(x):
    """The regulator, for which a far target is one at 2 m beside and 0.6 m above or below."""
    away = x[:, :6].clone()
    away[:, 0] = (x[:, 0] - x[:, 6]).clamp(-2.0, 2.0)
    away[:, 1] = (x[:, 1] - x[:, 7]).clamp(-0.6, 0.6)
    return torch.tensor([0.0, WEIGHT], dtype=F64) - away @ regulator().T


def episodes(env, act, batch=64):
    x = env.reset(batch, torch.Generator().manual_seed(0), F64)
    states, tensions = [x], []
    for _ in range(env.episode_steps):
        u, p = act(x), env.params(x)
        rate = env.dynamics(0.0, x, env.clip_action(u), p)
        sway, acceleration, hoisting = x[:, 2], rate[:, 3], rate[:, 4]
        outward = x[:, 1] * x[:, 5] ** 2 + G * torch.cos(sway)
        tensions.append(LOAD * (outward - hoisting - acceleration * torch.sin(sway)))
        x, _ = env.step(x, u, p)
        states.append(x)
    return torch.stack(states), torch.stack(tensions)


def test_a_regulator_by_hand_succeeds_from_every_start_with_a_taut_rope():
    env = Crane()
    states, tensions = episodes(env, regulate)
    assert env.success(states).all()
    assert tensions.min() > 0.5 * WEIGHT
    low, high = env.state_box.bounds(states)
    assert ((states >= low) & (states <= high)).all()  # a good policy stays in the state box


def test_holding_the_weight_alone_never_succeeds():
    env = Crane()
    middle = torch.tensor([[0.0, WEIGHT]], dtype=F64).expand(64, 2)
    assert not env.success(episodes(env, lambda x: middle)[0]).any()


def test_success_is_the_whole_last_second_and_nothing_before():
    env, rest = Crane(), hanging()
    states = rest.expand(201, 5, 8).clone()
    states[:190, :, 0] += 1.0  # far away, but for the last second
    states[195, 1, 0] += 0.06
    states[200, 2, 3] = 0.06
    states[190, 3, 1] -= 0.06
    states[190:, 4, 0] += 0.04
    states[190:, 4, 5] = 0.015  # 0.045 m/s at 3 m
    assert env.success(states).tolist() == [True, False, False, False, True]
    assert env.success_criterion.share == 0.9


def test_the_observation_gives_the_loads_error():
    env, x = Crane(), some_states(Crane(), 20)
    seen = env.observe(x)
    load = x[:, 0] + x[:, 1] * torch.sin(x[:, 2]), x[:, 1] * torch.cos(x[:, 2])
    assert torch.allclose(seen[:, 7], load[0] - x[:, 6])
    assert torch.allclose(seen[:, 8], load[1] - x[:, 7])
    assert torch.equal(seen[:, [0, 1, 4, 5, 6]], x[:, [0, 1, 3, 4, 5]])
    # The load's velocity is the rate of its position along the motion.
    rates = env.dynamics(0.0, x, some_actions(env, 20), env.params(x))
    ahead, behind = env.error(x + 1e-6 * rates), env.error(x - 1e-6 * rates)
    for after, before, velocity in zip(ahead, behind, env.load_velocity(x), strict=True):
        assert torch.allclose((after - before) / 2e-6, velocity, rtol=1e-6, atol=1e-6)
