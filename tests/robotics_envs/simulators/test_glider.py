"""The glider glides, turns and exchanges energy with the air as point masses do, and a pilot by hand climbs."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from robotics_envs.simulators.glider import FASTEST, Glider

F64 = torch.float64
MASS, AREA, DENSITY, DRAG, INDUCED, G = 100.0, 14.0, 1.13, 0.034, 0.069662, 9.81


def some_states(env, batch, seed=0):
    return env.state_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def some_actions(env, batch, seed=1):
    return env.action_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def flying(batch, seed=0):
    """States of ordinary flight, near the thermal, without a bank rate in the action."""
    env = Glider()
    x = env.reset(batch, torch.Generator().manual_seed(seed), F64)
    x[:, :2] *= 0.5
    x[:, 6] *= 2.0
    u = some_actions(env, batch, seed)
    u[:, 0] = 0.5 + 0.6 * u[:, 0]
    u[:, 1] = 0.0
    return x, u


def coefficients(lift):
    return lift, DRAG + INDUCED * lift**2


def steady(lift, bank):
    """Airspeed, downward angle and rate of turn of a steady glide, from the balance of forces on a helix."""
    cl, cd = coefficients(lift)
    # Along the flight: drag = weight sin(down); across, in the vertical plane: lift cos(bank) = weight cos(down).
    down = math.atan(cd / (cl * math.cos(bank)))
    airspeed = math.sqrt(2 * MASS * G * math.sin(down) / (DENSITY * AREA * cd))
    turn = 0.5 * DENSITY * AREA * airspeed * cl * math.sin(bank) / (MASS * math.cos(down))
    return airspeed, down, turn


@pytest.mark.parametrize("lift", [0.4, 0.7, 1.3])
@pytest.mark.parametrize("bank", [0.0, 0.5, -0.9])
def test_steady_glides_and_turns(lift, bank):
    """The velocity keeps its length and turns to the right of a positive bank, in still air and in a wide updraft."""
    env = Glider()
    airspeed, down, turn = steady(lift, bank)
    for rising in (0.0, 3.0):
        level = airspeed * math.cos(down)
        x = torch.zeros(1, 9, dtype=F64)
        x[0, 3:] = torch.tensor(
            [level * 0.6, level * 0.8, rising - airspeed * math.sin(down), bank, rising, 1e9], dtype=F64
        )
        rate = env.dynamics(0.0, x, torch.tensor([[lift, 0.0]], dtype=F64), env.params(x))[0]
        expected = torch.tensor([turn * x[0, 4], -turn * x[0, 3], 0.0], dtype=F64)
        # The tiny speed that keeps directions finite counts by some 1e-6.
        assert torch.allclose(rate[3:6], expected, rtol=0, atol=3e-5)


def test_the_best_glide_and_the_least_sink_of_the_polar():
    """The best glide ratio is 1 / (2 sqrt(drag induced)); the least sink is at sqrt(3) times its lift coefficient."""
    lifts = np.linspace(0.2, 1.4, 1201)
    glides = [steady(lift, 0.0) for lift in lifts]
    ratio = np.array([1 / math.tan(down) for _, down, _ in glides])
    assert ratio.max() == pytest.approx(1 / (2 * math.sqrt(DRAG * INDUCED)), rel=1e-6)
    assert lifts[ratio.argmax()] == pytest.approx(math.sqrt(DRAG / INDUCED), abs=2e-3)
    sink = np.array([airspeed * math.sin(down) for airspeed, down, _ in glides])
    assert lifts[sink.argmin()] == pytest.approx(math.sqrt(3 * DRAG / INDUCED), abs=0.02)
    assert sink.min() < 1.2
    # A turn costs height: in the middle of the weakest thermal 25 m of radius leave a climb.
    airspeed, down, turn = steady(1.3, 0.45)
    assert airspeed * math.cos(down) / turn < 25.0
    assert airspeed * math.sin(down) < 1.6 < Glider.start_box.low[7]


def test_lift_is_perpendicular_and_drag_opposite_to_the_air():
    env, (x, u) = Glider(), flying(50)
    air = x[:, 3:6].clone()
    distance = x[:, :2].norm(dim=-1)
    air[:, 2] -= x[:, 7] * torch.exp(-((distance / x[:, 8]) ** 2))
    speed = air.norm(dim=-1)
    pressure = 0.5 * DENSITY * AREA * speed**2
    cl, cd = coefficients(u[:, 0])
    force = env.force(x, u, env.params(x))
    along = (force * air).sum(-1) / speed
    assert torch.allclose(along, -pressure * cd, rtol=1e-5)
    lift = force - along[:, None] * air / speed[:, None]
    assert torch.allclose(lift.norm(dim=-1), pressure * cl, rtol=1e-5)
    # To the right of the flight by the sine of the bank.
    right = torch.stack((air[:, 1], -air[:, 0]), -1) / air[:, :2].norm(dim=-1, keepdim=True)
    assert torch.allclose(
        (lift[:, :2] * right).sum(-1), pressure * cl * torch.sin(x[:, 6]), rtol=1e-5, atol=1e-4
    )


def test_the_cost_is_the_loss_of_energy_height():
    env, (x, u) = Glider(), flying(30)
    p = env.params(x)
    rate = env.dynamics(0.0, x, u, p)
    step = 1e-5
    change = (env.energy_height(x + step * rate) - env.energy_height(x - step * rate)) / (2 * step)
    assert torch.allclose(env.cost(x, u, p), -0.5 * change, rtol=1e-7, atol=1e-8)
    # Only the pilot's rolling costs more.
    rolling = u + torch.tensor([0.0, 0.6], dtype=F64)
    assert torch.allclose(env.cost(x, rolling, p) - env.cost(x, u, p), torch.full((30,), 0.02, dtype=F64))


def test_without_drag_in_still_air_energy_stays_to_fourth_order():
    env, (start, u) = Glider(drag=1e-300, induced=1e-300), flying(20)
    start[:, 7] = 0.0
    p = env.params(start)

    def drift(steps):
        x = start
        for _ in range(steps):
            x = env.solver.step(env.dynamics, 0.0, x, u, p, 2.0 / steps)
        return float((env.energy_height(x) - env.energy_height(start)).abs().max())

    coarse, fine = drift(20), drift(40)
    assert fine < 1e-4
    assert math.log2(coarse / fine) > 3.7


def test_a_wide_updraft_carries_the_whole_flight_upwards():
    """Galilei: the same flight as in still air, in a frame that rises."""
    env, (calm, u) = Glider(), flying(20)
    calm[:, 7:] = torch.tensor([0.0, 1e9], dtype=F64)
    lifted = calm.clone()
    lifted[:, 7], lifted[:, 5] = 3.0, lifted[:, 5] + 3.0
    x, y = calm, lifted
    for _ in range(20):
        x, y = env.step(x, u, env.params(x))[0], env.step(y, u, env.params(y))[0]
    assert torch.allclose(y[:, :2], x[:, :2], rtol=0, atol=1e-8)
    assert torch.allclose(y[:, 2] - x[:, 2], torch.full((20,), 30.0, dtype=F64), rtol=0, atol=1e-8)
    assert torch.allclose(y[:, 5] - x[:, 5], torch.full((20,), 3.0, dtype=F64), rtol=0, atol=1e-8)


def test_ten_seconds_agree_with_scipy():
    """Textbook equations of airspeed, angle of climb and heading in the air, with the terms of the wind's change."""
    env, (starts, actions) = Glider(), flying(5, seed=3)
    actions[:, 1] = torch.tensor([0.05, -0.05, 0.0, 0.03, -0.02], dtype=F64)

    def field(_, s, lift, rolling, strength, radius):
        x, y, _, speed, climb, heading, bank = s
        cl, cd = coefficients(lift)
        pressure = 0.5 * DENSITY * AREA * speed**2
        rising = strength * math.exp(-(x**2 + y**2) / radius**2)
        vx, vy = speed * math.cos(climb) * math.cos(heading), speed * math.cos(climb) * math.sin(heading)
        gust = -2 * rising * (x * vx + y * vy) / radius**2  # of the air that the glider passes through
        down = G + gust
        return [
            *(vx, vy, speed * math.sin(climb) + rising),
            -pressure * cd / MASS - down * math.sin(climb),
            (pressure * cl * math.cos(bank) / MASS - down * math.cos(climb)) / speed,
            -pressure * cl * math.sin(bank) / (MASS * speed * math.cos(climb)),
            rolling,
        ]

    for start, u in zip(starts, actions, strict=True):
        x, y, z, vx, vy, vz, bank, strength, radius = start.tolist()
        air = vz - strength * math.exp(-(x**2 + y**2) / radius**2)
        level = math.hypot(vx, vy)
        s = [x, y, z, math.hypot(level, air), math.atan2(air, level), math.atan2(vy, vx), bank]
        given = (*u.tolist(), strength, radius)
        end = solve_ivp(field, (0, 10), s, args=given, rtol=1e-10, atol=1e-10).y[:, -1]
        state = start[None]
        for _ in range(20):
            state, _ = env.step(state, u[None], env.params(state))
        np.testing.assert_allclose(state[0, :3].numpy(), end[:3], rtol=0, atol=5e-3)
        assert state[0, 6].item() == pytest.approx(end[6], abs=1e-12)


def test_forces_grow_in_proportion_beyond_the_fastest_airspeed():
    env = Glider()
    x = torch.zeros(3, 9, dtype=F64)
    x[:, 3] = FASTEST * torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    x[:, 8] = 80.0
    u = torch.tensor([[1.0, 0.0]], dtype=F64).expand(3, 2)
    size = env.force(x, u, env.params(x)).norm(dim=-1)
    assert torch.allclose(size / size[1], torch.tensor([0.25, 1.0, 2.0], dtype=F64), rtol=1e-6)


def turned(x, angle):
    """The state turned about the thermal."""
    cos, sin = math.cos(angle), math.sin(angle)
    y = x.clone()
    for i in (0, 3):
        y[:, i], y[:, i + 1] = cos * x[:, i] - sin * x[:, i + 1], sin * x[:, i] + cos * x[:, i + 1]
    return y


def test_turned_mirrored_and_higher_flights_are_alike():
    env = Glider()
    x, u = some_states(env, 30), some_actions(env, 30)
    p = env.params(x)
    mirror = torch.tensor([1, -1, 1, 1, -1, 1, -1, 1, 1], dtype=F64)
    flip = torch.tensor([1, -1], dtype=F64)
    higher = x.clone()
    higher[:, 2] += 500.0
    following, cost = env.step(x, u, p)
    other, other_cost = env.step(turned(x, 0.7), u, p)
    assert torch.allclose(turned(following, 0.7), other, rtol=0, atol=1e-9)
    assert torch.allclose(cost, other_cost, rtol=1e-9)
    assert torch.allclose(env.observe(x), env.observe(turned(x, 0.7)), rtol=0, atol=1e-9)
    other, other_cost = env.step(mirror * x, flip * u, p)
    assert torch.allclose(mirror * following, other, rtol=0, atol=1e-9)
    assert torch.allclose(cost, other_cost, rtol=1e-9)
    other, other_cost = env.step(higher, u, p)
    assert torch.allclose(other[:, 2], following[:, 2] + 500.0, rtol=0, atol=1e-9)
    assert torch.equal(cost, other_cost)
    assert torch.equal(env.observe(x), env.observe(higher))


def test_the_observation_sees_the_thermal_along_the_flight():
    env = Glider()
    x = torch.zeros(2, 9, dtype=F64)
    x[:, :2], x[:, 4] = torch.tensor([-30.0, -40.0], dtype=F64), 10.0  # flying to +y
    x[1, 4] = -10.0
    seen = env.observe(x)
    expected = torch.tensor([[40.0, 30.0, 10.0], [-40.0, -30.0, 10.0]], dtype=F64)
    assert torch.allclose(seen[:, :3], expected, rtol=1e-5, atol=0)


def test_resets_lie_around_the_thermal():
    env = Glider()
    x = env.reset(4000, torch.Generator().manual_seed(0), F64)
    share = x[:, :2].norm(dim=-1) / x[:, 8]
    assert share.min() > 1.0
    assert share.max() < 1.8
    speed = x[:, 3:5].norm(dim=-1)
    assert speed.min() > 9.0 - 1e-9
    assert speed.max() < 14.0 + 1e-9
    assert x[:, :2].mean(0).abs().max() < 6.0
    assert x[:, 3:5].mean(0).abs().max() < 0.6
    assert ((x[:, 7] >= 2.5) & (x[:, 7] <= 4.0) & (x[:, 8] >= 60.0) & (x[:, 8] <= 100.0)).all()


def pilot(x, circle=25.0):
    """Towards the thermal, and around its middle to the right at 25 m, by the bank of the wanted rate of turn."""
    ahead, right, speed, *_ = Glider().observe(x).unbind(-1)
    beyond = (torch.hypot(ahead, right) - circle) / circle
    near = torch.exp(-beyond.clamp_min(0.0))
    wanted = math.pi / 2 * near + 0.6 * (-beyond).clamp(0.0, 1.0)  # where to see the middle, to the right
    off = torch.remainder(torch.atan2(right, ahead) - wanted + math.pi, 2 * math.pi) - math.pi
    turn = speed / circle * torch.exp(-(beyond.clamp_min(0.0) ** 2)) + off
    bank = torch.atan(turn * speed / G).clamp(-0.9, 0.9)
    return torch.stack((torch.full_like(bank, 1.3), (bank - x[:, 6]) / 0.7), -1)


def episodes(env, act, batch=64):
    x = env.reset(batch, torch.Generator().manual_seed(0), F64)
    states, total = [x], torch.zeros(batch, dtype=F64)
    for _ in range(env.episode_steps):
        x, cost = env.step(x, act(x), env.params(x))
        states.append(x)
        total = total + cost
    return torch.stack(states), total


def test_a_pilot_by_hand_succeeds_from_every_start():
    env = Glider()
    states, costs = episodes(env, pilot)
    assert env.success(states).all()
    low, high = env.state_box.bounds(states)
    inside = (states >= low) & (states <= high)
    assert inside[..., [0, 1, 3, 4, 6, 7, 8]].all()
    assert inside.double().mean() > 0.99
    # The return is the energy height gained, to the error of the sum over intervals and the cost of rolling.
    gained = env.energy_height(states[-1]) - env.energy_height(states[0])
    assert (gained + costs).abs().max() < 0.05 * gained.abs().max()


@pytest.mark.parametrize("lift", [0.7, 0.8, 1.3])
def test_who_holds_the_bank_loses_height(lift):
    """Flying on as released, straight or in a circle, mostly leaves the thermal or misses it."""
    env = Glider()
    still = torch.tensor([[lift, 0.0]], dtype=F64).expand(64, 2)
    states, _ = episodes(env, lambda x: still)
    assert not env.success(states).any()
    assert (env.energy_height(states[-1]) < env.energy_height(states[0])).double().mean() > 0.8


def test_success_is_the_climb_of_the_last_half_minute_by_the_thermals_strength():
    env = Glider()
    states = torch.zeros(201, 4, 9, dtype=F64)
    states[..., 7] = torch.tensor([2.5, 2.5, 4.0, 2.5], dtype=F64)
    states[..., 3] = 10.0
    states[:, :, 2] = 0.51 * 0.5 * torch.arange(201, dtype=F64)[:, None]  # 0.51 m/s
    states[141:, 1, 2] = states[140, 1, 2]  # climbed before, and not after
    # Speed counts as height: 15 m of it.
    states[:, 3, 2] = 0.0
    states[-1, 3, 3] = math.sqrt(10.0**2 + 2 * G * 15.1)
    assert env.success(states).tolist() == [True, False, False, True]
    assert env.success_criterion.share == 0.9
