"""The tug obeys the equations of Newton, Kirchhoff and Fossen, and a controller berths it."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from robotics_envs.simulators.tug import BEAM, CURRENT, LENGTH, QUAY, Tug

F64 = torch.float64
SCALE, MASS, INERTIA, CENTRE = 20.0, 23.8, 1.76, 0.046
AZIMUTH, BOW, AFT, SIDE, AHEAD = 8e3, 4e3, 10.0, 1.5, 9.0  # N and m
IDEAL = dict.fromkeys(("x_u", "x_uu", "x_uuu", "y_v", "y_vv", "n_r", "n_rr"), -1e-300)
"""A fluid without friction."""
VACUUM = {**IDEAL, "x_du": -1e-300, "y_dv": -1e-300, "n_dr": -1e-300}


def some_states(batch, seed=0):
    return Tug().state_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def some_actions(batch, seed=1):
    return Tug().action_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def none(batch):
    return torch.zeros(batch, 5, dtype=F64)


def rotated(x, along, across):
    """A vector of the hull as (north, east)."""
    cos, sin = torch.cos(x[:, 2]), torch.sin(x[:, 2])
    return torch.stack((along * cos - across * sin, along * sin + across * cos), -1)


def drifting(x):
    """The same velocities through the water without a current."""
    still = x.clone()
    cos, sin = torch.cos(x[:, 2]), torch.sin(x[:, 2])
    still[:, 3] -= x[:, 6] * cos + x[:, 7] * sin
    still[:, 4] -= x[:, 7] * cos - x[:, 6] * sin
    still[:, 6:] = 0.0
    return still


def integrate(env, x, u, time, steps):
    for _ in range(steps):
        x = env.solver.step(env.dynamics, 0.0, x, u, env.params(x), time / steps)
    return x


def matrices(nu):
    """M, C(nu) and D(nu) of Fossen's chapter 6 in full scale, from CyberShip II's published coefficients."""
    spread = SCALE**3 * np.outer([1, 1, SCALE], [1, 1, SCALE])
    rigid = np.array([[MASS, 0, 0], [0, MASS, MASS * CENTRE], [0, MASS * CENTRE, INERTIA]])
    mass = (rigid + np.diag([2.0, 10.0, 1.0])) * spread
    u, v, r = nu
    coriolis = np.zeros((3, 3))
    coriolis[0, 2] = -(mass[1, 1] * v + mass[1, 2] * r)
    coriolis[1, 2] = mass[0, 0] * u
    coriolis -= coriolis.T
    # Damping at the model's velocities; a force is SCALE³ and a moment SCALE⁴ times the model's.
    u, v, r = u / math.sqrt(SCALE), v / math.sqrt(SCALE), r * math.sqrt(SCALE)
    drag = np.array(
        [
            SCALE**3 * (0.72253 + 1.32742 * abs(u) + 5.86643 * u**2) * u,
            SCALE**3 * (0.88965 + 36.47287 * abs(v)) * v,
            SCALE**4 * (1.9 + 0.75 * abs(r)) * r,
        ]
    )
    return mass, coriolis, drag


def field(_, x, force):
    """dx/dt in NumPy, with the inertial velocity of the water subtracted and its rotation in the hull's frame added."""
    cos, sin = math.cos(x[2]), math.sin(x[2])
    water = np.array([x[6] * cos + x[7] * sin, x[7] * cos - x[6] * sin, 0.0])
    nu = x[3:6] - water
    mass, coriolis, drag = matrices(nu)
    change = np.linalg.solve(mass, force - coriolis @ nu - drag) + x[5] * np.array([water[1], -water[0], 0.0])
    place = [x[3] * cos - x[4] * sin, x[3] * sin + x[4] * cos, x[5]]
    return np.concatenate((place, change, [0.0, 0.0]))


def push(u):
    """Force N along and across the hull and moment N m of an action, each unit's force at its own place."""
    total = np.zeros(3)
    for ahead, side, force in (
        (-AFT, -SIDE, AZIMUTH * u[0:2] / max(1.0, np.hypot(u[0], u[1]))),
        (-AFT, SIDE, AZIMUTH * u[2:4] / max(1.0, np.hypot(u[2], u[3]))),
        (AHEAD, 0.0, BOW * np.array([0.0, u[4]])),
    ):
        total += [*force, ahead * force[1] - side * force[0]]
    return total


def test_the_equations_are_fossens():
    env, x, u = Tug(), some_states(100), some_actions(100)
    got = env.dynamics(0.0, x, u, env.params(x))
    expected = [field(0.0, s.numpy(), push(a.numpy())) for s, a in zip(x, u, strict=True)]
    np.testing.assert_allclose(got.numpy(), np.array(expected), rtol=1e-9, atol=1e-12)


def test_ten_intervals_are_scipys_solution():
    env, x, u = Tug(), some_states(4), some_actions(4)
    y = x
    for _ in range(10):
        y, _ = env.step(y, u, env.params(x))
    for state, action, end in zip(x, u, y, strict=True):
        arguments = (push(action.numpy()),)
        reference = solve_ivp(
            field, (0, 10), state.numpy(), args=arguments, method="DOP853", rtol=1e-11, atol=1e-11
        )
        np.testing.assert_allclose(end.numpy(), reference.y[:, -1], rtol=0, atol=1e-4)


def test_the_step_has_the_order_of_its_solver():
    env, x, u = Tug(**IDEAL), some_states(20), some_actions(20)
    exact = integrate(env, x, u, 8.0, 256)
    coarse, fine = (float((integrate(env, x, u, 8.0, n) - exact).abs().max()) for n in (16, 32))
    assert math.log2(coarse / fine) > 3.7


def test_in_a_vacuum_it_is_newtons_free_body():
    """Its centre of gravity moves straight and evenly, it turns evenly, and the current does not matter."""
    env, x = Tug(**VACUUM), some_states(20)
    lever = SCALE * CENTRE

    def place(x):
        return x[:, :2] + rotated(x, torch.full_like(x[:, 0], lever), torch.zeros_like(x[:, 0]))

    speed = rotated(x, x[:, 3], x[:, 4] + lever * x[:, 5])
    y = integrate(env, x, none(20), 20.0, 80)
    assert torch.allclose(y[:, 5], x[:, 5], rtol=0, atol=1e-10)
    assert torch.allclose(place(y), place(x) + 20.0 * speed, rtol=0, atol=1e-6)
    still = x.clone()
    still[:, 6:] = 0.0
    ways = [env.dynamics(0.0, s, some_actions(20), env.params(x)) for s in (x, still)]
    assert torch.allclose(*ways, rtol=0, atol=1e-13)


def test_in_an_ideal_fluid_energy_and_impulses_are_conserved():
    """Kirchhoff: the energy of vessel and fluid, and the linear and the angular impulse in the water's frame."""
    env, x = Tug(**IDEAL), some_states(20)
    m11, m22, m23, m33 = env.mass_matrix(env.params(x))
    m23, m33 = SCALE * m23, SCALE**2 * m33

    def invariants(x, time):
        s = drifting(x)
        u, v, r = s[:, 3], s[:, 4], s[:, 5]
        linear = rotated(s, m11 * u, m22 * v + m23 * r)
        place = s[:, :2] - time * x[:, 6:]
        angular = m23 * v + m33 * r + place[:, 0] * linear[:, 1] - place[:, 1] * linear[:, 0]
        energy = 0.5 * (m11 * u**2 + m22 * v**2 + m33 * r**2) + m23 * v * r
        return torch.cat((linear, angular[:, None], energy[:, None]), -1)

    y = integrate(env, x, none(20), 20.0, 100)
    assert torch.allclose(invariants(y, 20.0), invariants(x, 0.0), rtol=1e-6, atol=1e-5)
    assert (y - x)[:, 5].abs().max() > 1e-3  # the Munk moment turns it


def test_a_current_carries_the_whole_motion_along():
    """Galilei: the same motion through the water, displaced by the current."""
    env, x, u = Tug(), some_states(20), some_actions(20)
    y, still = integrate(env, x, u, 20.0, 100), integrate(env, drifting(x), u, 20.0, 100)
    assert torch.allclose(y[:, :2], still[:, :2] + 20.0 * x[:, 6:], rtol=0, atol=1e-6)
    assert torch.allclose(y[:, 2], still[:, 2], rtol=0, atol=1e-7)
    assert torch.allclose(drifting(y)[:, 3:6], still[:, 3:6], rtol=0, atol=1e-7)


def test_drifting_with_the_current_is_the_equilibrium():
    env, x = Tug(), some_states(20)
    x[:, 5] = 0.0
    x[:, 3:5] -= drifting(x)[:, 3:5]
    rate = env.dynamics(0.0, x, none(20), env.params(x))
    assert torch.allclose(rate[:, :2], x[:, 6:], rtol=0, atol=1e-15)
    assert rate[:, 2:].abs().max() < 1e-15


def test_damping_only_takes_energy():
    env = Tug()
    u, v, r = (10 * torch.randn(3, 1000, generator=torch.Generator().manual_seed(0), dtype=F64)).unbind(0)
    for force, speed in zip(env.damping(u, v, r, env.params(u)), (u, v, r), strict=True):
        assert (force * speed > 0).all()


@pytest.mark.parametrize("way", [1.0, -1.0], ids=["ahead", "astern"])
def test_the_top_speed_is_where_the_thrust_meets_the_drag(way):
    env = Tug()
    x, u = torch.zeros(1, 8, dtype=F64), none(1)
    u[:, [0, 2]] = way
    for _ in range(300):
        x, _ = env.step(x, u, env.params(x))
    (top,) = (
        z.real for z in np.roots([5.86643, 1.32742, 0.72253, -2 * AZIMUTH / SCALE**3]) if abs(z.imag) < 1e-9
    )
    assert float(x[0, 3]) == pytest.approx(way * math.sqrt(SCALE) * top, rel=1e-6)
    assert x[0, 4:].abs().max() < 1e-12


def test_froudes_law():
    """A vessel of another size, pushed by the same share of its weight, moves alike: x ~ scale, t ~ sqrt(scale)."""
    large, x, u = Tug(), some_states(20), some_actions(20)
    levers = {"azimuth_aft": AFT / 4, "azimuth_side": SIDE / 4, "bow_ahead": AHEAD / 4}
    small = Tug(scale=SCALE / 4, azimuth_thrust=8.0 / 64, bow_thrust=4.0 / 64, **levers)
    unit = torch.tensor([4.0, 4.0, 1.0, 2.0, 2.0, 0.5, 2.0, 2.0], dtype=F64)
    a, b = integrate(large, x, u, 4.0, 8), integrate(small, x / unit, u, 2.0, 8)
    assert torch.allclose(a, unit * b, rtol=1e-10, atol=1e-10)


def test_an_azimuth_unit_pushes_as_hard_in_every_direction():
    env = Tug()
    angle = torch.linspace(0.0, 2 * math.pi, 50, dtype=F64)
    u = none(50)
    for reach, expected in ((0.5, 0.5), (1.0, 1.0), (1.4, 1.0)):
        u[:, 0], u[:, 1] = reach * torch.cos(angle), reach * torch.sin(angle)
        along, across, moment = env.thrust(u, env.params(u))
        assert torch.allclose(torch.hypot(along, across), torch.tensor(8.0 * expected, dtype=F64))
        assert torch.allclose(moment, -AFT * across + SIDE * along)
    # All of them sideways, balanced about the centre: no moment.
    u = none(1)
    u[0, 4] = 1.0
    u[0, 1] = u[0, 3] = 0.5 * AHEAD * BOW / (AFT * AZIMUTH)
    assert env.thrust(u, env.params(u))[2].abs().max() < 1e-12


def test_port_and_starboard_are_mirror_images():
    env, x, u = Tug(), some_states(20), some_actions(20)
    mirror = torch.tensor([1, -1, -1, 1, -1, -1, 1, -1], dtype=F64)
    across = torch.tensor([1, -1, 1, -1, -1], dtype=F64)[[2, 3, 0, 1, 4]]
    a = env.dynamics(0.0, x, u, env.params(x))
    b = env.dynamics(0.0, mirror * x, across * u[:, [2, 3, 0, 1, 4]], env.params(x))
    assert torch.allclose(mirror * a, b, rtol=0, atol=1e-14)


def test_the_reach_beyond_the_quay_is_the_hulls():
    env, x = Tug(), some_states(200)
    x[:, 1] = torch.linspace(-20.0, 5.0, 200)
    around = torch.linspace(0.0, 2 * math.pi, 20001, dtype=F64)
    ahead, side = 0.5 * LENGTH * torch.cos(around), 0.5 * BEAM * torch.sin(around)
    east = x[:, 1:2] + ahead * torch.sin(x[:, 2:3]) + side * torch.cos(x[:, 2:3])
    expected = (east.amax(-1) - QUAY).clamp_min(0.0)
    assert torch.allclose(env.beyond_quay(x), expected, rtol=0, atol=1e-5)
    assert 0.2 < float((expected > 0).double().mean()) < 0.8
    assert not env.beyond_quay(torch.zeros(1, 8, dtype=F64)).any()  # berthed, it is clear of the quay


def test_the_cost_is_least_at_rest_at_the_berth():
    env, x = Tug(), torch.zeros(1, 8, dtype=F64)
    x[0, 6:] = 0.1
    assert float(env.cost(x, none(1), env.params(x))) == pytest.approx(0.0, abs=1e-15)
    for i in range(6):
        for sign in (-1, 1):
            y = x.clone()
            y[0, i] = 0.1 * sign
            assert float(env.cost(y, none(1), env.params(x))) > 1e-4
    x[0, 0] = 30.0
    assert float(env.cost(x, none(1), env.params(x))) == pytest.approx((math.hypot(30.0, 0.5) - 0.5) / 10)
    x[0, :2] = torch.tensor([0.0, QUAY - 0.5 * BEAM + 2.0])
    expected = (math.hypot(3.0, 0.5) - 0.5) / 10 + math.hypot(2.0, 0.5) - 0.5
    assert float(env.cost(x, none(1), env.params(x))) == pytest.approx(expected)
    u = none(1) + 0.5
    assert float(env.cost(x, u, env.params(x))) == pytest.approx(expected + 0.025)


def test_resets_have_every_heading_and_clear_the_quay():
    env = Tug()
    x = env.reset(4000, torch.Generator().manual_seed(0), F64)
    low, high = env.start_box.bounds(x)
    assert ((x >= low) & (x <= high)).all()
    assert torch.allclose(x.std(0), (high - low) / math.sqrt(12), rtol=0.04)
    assert not env.beyond_quay(x).any()
    assert torch.hypot(x[:, 0], x[:, 1]).min() > 10.0
    assert x[:, 6:].abs().max() <= CURRENT


def controlled(x):
    """Velocity control by inverse dynamics: turn clear of the quay, and then go alongside."""
    env = Tug()
    p, scale = env.params(x), SCALE
    north, east, heading, surge, sway, rate = x[:, :6].unbind(-1)
    error = torch.atan2(torch.sin(heading), torch.cos(heading))
    cos, sin = torch.cos(heading), torch.sin(heading)
    reach = 0.5 * torch.sqrt((LENGTH * sin) ** 2 + (BEAM * cos) ** 2)
    # 4 m off the quay until the heading is right to 0.1 rad.
    beside = torch.where(error.abs() < 0.1, torch.zeros_like(east), QUAY - reach - 4.0)
    far = torch.hypot(north, beside - east) + 1e-9
    speed = torch.minimum(0.08 * far, torch.tensor(0.8, dtype=F64))
    to_north, to_east = -speed * north / far, speed * (beside - east) / far
    change_x = 0.5 * (to_north * cos + to_east * sin - surge)
    change_y = 0.5 * (to_east * cos - to_north * sin - sway)
    change_n = 0.6 * ((-0.12 * error).clamp(-0.05, 0.05) - rate)
    # The forces in kN for these changes.
    along, across = env.current(x)
    a, b, r = (surge - along) / math.sqrt(scale), (sway - across) / math.sqrt(scale), rate * math.sqrt(scale)
    m11, m22, m23, m33 = env.mass_matrix(p)
    drag_x, drag_y, drag_n = env.damping(a, b, r, p)
    sideways, ahead, kilo = m22 * b + m23 * r, m11 * a, scale**3 / 1e3
    change_x, change_y = change_x - rate * across, change_y + rate * along
    force_x = kilo * (m11 * change_x + drag_x - sideways * r)
    force_y = kilo * (m22 * change_y + scale * m23 * change_n + drag_y + ahead * r)
    moment = kilo * scale * (m23 * change_y + scale * m33 * change_n + drag_n + sideways * a - ahead * b)
    # The moment goes before the force.
    bow = ((moment + AFT * force_y) / ((AFT + AHEAD) * BOW / 1e3)).clamp(-1, 1)
    stern = ((AHEAD * BOW / 1e3 * bow - moment) / (2 * AFT * AZIMUTH / 1e3)).clamp(-1, 1)
    drive = (force_x / (2 * AZIMUTH / 1e3)).clamp(-1, 1)
    return torch.stack((drive, stern, drive, stern, bow), -1)


def episode(policy, batch=64):
    env = Tug()
    states = [env.reset(batch, torch.Generator().manual_seed(0), F64)]
    for _ in range(env.episode_steps):
        states.append(env.step(states[-1], policy(states[-1]), env.params(states[-1]))[0])
    return torch.stack(states)


def test_a_controller_berths_the_tug():
    """From all of 64 starts, inside the state box; from none without thrust."""
    env = Tug()
    states = episode(controlled)
    assert int(env.success(states).sum()) >= 62
    low, high = env.state_box.bounds(states)
    assert ((states >= low) & (states <= high)).all(-1).double().mean() > 0.99
    assert not env.success(episode(lambda x: none(len(x)))).any()


def test_success_needs_ten_seconds_of_rest_at_the_berth_and_no_way_through_the_quay():
    env = Tug()
    states = torch.zeros(181, 9, 8, dtype=F64)
    states[169, 1, 0] = 1.1  # before the last ten seconds
    states[170, 2, 0] = 1.1
    states[175, 3, 2] = math.radians(3.1)
    states[175, 4, 2] = math.radians(362.9)
    states[180, 5, 4] = 0.06
    states[180, 6, 5] = math.radians(0.21)
    states[10, 7, 1] = QUAY - 0.5 * BEAM + 0.49
    states[10, 8, 1] = QUAY - 0.5 * BEAM + 0.51
    assert env.success(states).tolist() == [True, True, False, False, True, False, False, True, False]
    assert 0 < env.success_criterion.share <= 1
