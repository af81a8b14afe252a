"""The levitated ball and its coil exchange energy as they should, and float under a feedback written by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from robotics_envs.simulators.maglev import MAX_VOLTAGE, STIFFNESS, TABLE, Maglev, stop_force

F64 = torch.float64
MASS, G, LENGTH, L0, L1, DRAG = 0.1, 9.81, 0.05, 0.01, 0.02, 0.001


def in_the_air(batch, seed=0):
    """States from which neither surface is reached within 50 ms."""
    x = Maglev.state_box.sample(batch, torch.Generator().manual_seed(seed), F64)
    x[:, 0] = 0.04 + 0.2 * x[:, 0]
    x[:, 1] *= 0.3
    return x


def voltages(batch, seed=1):
    return Maglev.action_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def inductance(gap):
    return L1 + L0 / (1 + gap / LENGTH)


def floating(gap):
    """At rest at the reference, and the voltage that holds it there: L0 i² / (2 a (1 + y/a)²) = m g."""
    gap = torch.as_tensor(gap, dtype=F64).reshape(-1)
    current = (1 + gap / LENGTH) * math.sqrt(2 * LENGTH * MASS * G / L0)
    return torch.stack((gap, torch.zeros_like(gap), current, gap), -1), current[:, None]


def test_the_force_is_the_slope_of_the_coils_energy():
    """At a constant current, ``L(y) i² / 2`` grows by the work of the magnet."""
    env, x, u = Maglev(drag=1e-300), in_the_air(30), voltages(30)
    gap = x[:, 0].clone().requires_grad_()
    (force,) = torch.autograd.grad((0.5 * inductance(gap) * x[:, 2] ** 2).sum(), gap)
    rate = env.dynamics(0.0, x, u, env.params(x))
    assert torch.allclose(MASS * (rate[:, 1] - G), force, rtol=1e-12)
    assert (force < 0).all()
    # The book's formula.
    assert torch.allclose(force, -L0 * x[:, 2] ** 2 / (2 * LENGTH * (1 + x[:, 0] / LENGTH) ** 2), rtol=1e-12)


def test_energy_balance_to_fourth_order():
    """Coil, motion and height gain what the source gives less what resistance and drag take."""
    env, start, u = Maglev(drag=0.5), in_the_air(20), voltages(20)
    p = env.params(start)

    def field(t, y, u, p):
        power = u[:, 0] * y[:, 2] - y[:, 2] ** 2 - 0.5 * y[:, 1] ** 2
        return torch.cat((env.dynamics(t, y[:, :4], u, p), power[:, None]), -1)

    def energy(y):
        stored = 0.5 * inductance(y[:, 0]) * y[:, 2] ** 2 + 0.5 * MASS * y[:, 1] ** 2 - MASS * G * y[:, 0]
        return stored - y[:, 4]

    def drift(steps):
        y = begin = torch.cat((start, torch.zeros(20, 1, dtype=F64)), -1)
        for _ in range(steps):
            y = env.solver.step(field, 0.0, y, u, p, 0.05 / steps)
        assert ((y[:, 0] > 0) & (y[:, 0] < TABLE)).all()
        return float((energy(y) - energy(begin)).abs().max())

    coarse, fine = drift(10), drift(20)
    assert fine < 1e-5  # J, of some 0.5
    assert math.log2(coarse / fine) > 3.7


def test_without_resistance_the_flux_grows_by_the_voltage():
    env, x, u = Maglev(resistance=1e-300), in_the_air(20), voltages(20)
    flux = inductance(x[:, 0]) * x[:, 2]
    for _ in range(2):
        x, _ = env.step(x, u, env.params(x))
    assert torch.allclose(inductance(x[:, 0]) * x[:, 2], flux + 0.02 * u[:, 0], rtol=0, atol=1e-7)


def test_without_current_the_ball_falls_freely():
    env, x = Maglev(drag=1e-300), in_the_air(20)
    x[:, 1:3] = 0.0
    start = x
    for _ in range(5):
        x, _ = env.step(x, torch.zeros(20, 1, dtype=F64), env.params(x))
    assert torch.allclose(x[:, 0], start[:, 0] + 0.5 * G * 0.05**2, rtol=0, atol=1e-13)
    assert not x[:, 2].any()


@pytest.mark.parametrize("gap", [0.03, 0.05, 0.07])
def test_the_linearisation_has_its_closed_form_and_one_unstable_pole(gap):
    env = Maglev()
    x, u = floating(gap)
    f = lambda v: env.dynamics(0.0, v[None], u, env.params(v))[0][:3]
    jacobian = torch.autograd.functional.jacobian(f, x[0])[:, :3]
    current, inside = float(u), inductance(gap)
    back = L0 * current / (LENGTH * (1 + gap / LENGTH) ** 2)  # V s/m, and N/A
    # The force goes with the square of current over (a + y): by the gap 2 m g / (a + y), by the current -2 m g / i.
    expected = [
        [0.0, 1.0, 0.0],
        [2 * G / (LENGTH + gap), -DRAG / MASS, -2 * G / current],
        [0.0, back / inside, -1.0 / inside],
    ]
    np.testing.assert_allclose(jacobian.numpy(), expected, rtol=1e-9, atol=1e-9)
    poles = np.linalg.eigvals(np.array(expected))
    assert (poles.real > 0).sum() == 1
    # At a held current the ball falls or rises with the rate sqrt(2 g / (a + y)).
    held = np.linalg.eigvals(np.array(expected)[:2, :2])
    assert held.real.max() == pytest.approx(math.sqrt(2 * G / (LENGTH + gap)), rel=1e-3)


def test_floating_at_the_reference_costs_nothing():
    env = Maglev()
    x, u = floating([0.03, 0.05, 0.07])
    assert env.dynamics(0.0, x, u, env.params(x)).abs().max() < 1e-12
    assert env.cost(x, u, env.params(x)).abs().max() < 1e-12
    assert torch.allclose(env.holding_current(x[:, 0], env.params(x)), x[:, 2], rtol=1e-12)
    # The source can hold the ball everywhere between the surfaces, and lift it off the table.
    assert float(floating(TABLE)[1]) < 0.7 * MAX_VOLTAGE


def test_fifty_milliseconds_agree_with_scipy():
    """With the flux as a state, whose square over the inductance gives the energy."""
    env = Maglev()
    starts, actions = in_the_air(5, seed=2), voltages(5, seed=3)

    def field(_, y, voltage):
        gap, velocity, flux = y
        inside, slope = inductance(gap), -L0 * LENGTH / (LENGTH + gap) ** 2
        force = 0.5 * (flux / inside) ** 2 * slope
        return [velocity, G + (force - DRAG * velocity) / MASS, voltage - flux / inside]

    for start, u in zip(starts, actions, strict=True):
        gap, velocity, current, _ = start.tolist()
        y = [gap, velocity, inductance(gap) * current]
        end = solve_ivp(field, (0, 0.05), y, args=(float(u),), rtol=1e-11, atol=1e-12).y[:, -1]
        x = start[None]
        for _ in range(5):
            x, _ = env.step(x, u[None], env.params(x))
        reached = [x[0, 0].item(), x[0, 1].item(), inductance(x[0, 0].item()) * x[0, 2].item()]
        np.testing.assert_allclose(reached, end, rtol=0, atol=1e-6)


def test_the_surfaces_hold_the_ball_and_never_pull():
    depth, rate = torch.linspace(-0.01, 0.01, 41, dtype=F64), torch.linspace(-9, 9, 41, dtype=F64)
    force = stop_force(depth[:, None], rate)
    assert (force >= 0).all()
    assert not force[depth <= 0].any()
    env = Maglev()
    x = torch.tensor([[0.05, 0.0, 0.0, 0.05], [0.05, 0.0, 12.0, 0.05]], dtype=F64)
    u, seen = torch.tensor([[0.0], [MAX_VOLTAGE]], dtype=F64), []
    for _ in range(200):
        x, _ = env.step(x, u, env.params(x))
        seen.append(x.clone())
    states = torch.stack(seen)
    assert states[..., 0].min() > -0.012
    assert states[..., 0].max() < TABLE + 0.012
    # At rest on the table under its weight; at the magnet under 15 A, which carry it many times.
    assert x[0, 0].item() == pytest.approx(TABLE + MASS * G / STIFFNESS, abs=1e-6)
    pull = L0 * 15**2 / (2 * LENGTH * (1 + x[1, 0].item() / LENGTH) ** 2)
    assert x[1, 0].item() == pytest.approx(-(pull - MASS * G) / STIFFNESS, abs=1e-6)
    assert x[:, 1].abs().max() < 1e-6


def test_the_current_never_reverses():
    """The voltage is not negative, so neither is the current, whatever is done."""
    env, x = Maglev(), Maglev.state_box.sample(200, torch.Generator().manual_seed(0), F64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        u = MAX_VOLTAGE * torch.rand(200, 1, generator=generator, dtype=F64).round()
        x, _ = env.step(x, u, env.params(x))
        assert (x[:, 2] >= 0).all()
        assert (x[:, 2] < 30).all()


def feedback(x, pole=25.0, lag=0.015):
    """A critically damped acceleration, the current whose force gives it, and a voltage that brings the coil there."""
    gap, velocity, current, reference = x.unbind(-1)
    slope = -L0 * LENGTH / (LENGTH + gap) ** 2
    wanted = -(pole**2) * (gap - reference).clamp(-0.02, 0.02) - 2 * pole * velocity
    target = torch.sqrt(2 * MASS * (G - wanted.clamp(-30.0, 6.0)) / -slope)
    voltage = current + slope * velocity * current + inductance(gap) * (target - current) / lag
    return voltage[:, None]


def episodes(env, act, batch=64):
    x = env.reset(batch, torch.Generator().manual_seed(0), F64)
    states = [x]
    for _ in range(env.episode_steps):
        x, _ = env.step(x, act(x), env.params(x))
        states.append(x)
    return torch.stack(states)


def test_a_feedback_by_hand_succeeds_from_every_start():
    env = Maglev()
    states = episodes(env, feedback)
    assert env.success(states).all()
    low, high = env.state_box.bounds(states)
    assert ((states >= low) & (states <= high)).all()  # a good policy stays in the state box


@pytest.mark.parametrize("voltage", [0.0, MAX_VOLTAGE / 2, None])
def test_a_constant_voltage_never_succeeds(voltage):
    """Also the one that holds the ball at the reference: the balance is unstable."""
    env = Maglev()
    held = lambda x: env.params(x)["resistance"] * env.holding_current(x[:, 3:], env.params(x))
    states = episodes(env, held if voltage is None else lambda x: torch.full((64, 1), voltage, dtype=F64))
    assert not env.success(states).any()


def test_success_is_the_whole_last_half_second_and_nothing_before():
    env = Maglev()
    states = floating(0.05)[0].expand(151, 4, 4).clone()
    states[:100, :, 0] += 0.02
    states[120, 1, 0] += 0.0011
    states[150, 2, 0] -= 0.0011
    states[100, 3, 0] += 0.0011
    assert env.success(states).tolist() == [True, False, False, False]
    assert env.success_criterion.share == 0.9


def test_the_observation_adds_the_error():
    x = in_the_air(10)
    seen = Maglev().observe(x)
    assert torch.equal(seen[:, :4], x)
    assert torch.equal(seen[:, 4], x[:, 0] - x[:, 3])
