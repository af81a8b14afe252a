"""The reference is a lemniscate, and what is flown along it obeys the quadrotor's mechanics."""

import math

import pytest
import torch
from torch.autograd.functional import jvp

from robotics_envs.mechanics.quaternions import rotation
from robotics_envs.simulators.quadrotor import Quadrotor
from robotics_envs.simulators.quadrotor_eight import HALF_WIDTH, QuadrotorEight, curve

F64 = torch.float64
PACE, G, MASS, MAX_THRUST = 2 * math.pi / 5, 9.81, 0.027, 0.1597
VELOCITY, RATES, MOTORS = slice(7, 10), slice(10, 13), slice(13, 17)


def phases(count=12):
    return torch.linspace(-math.pi, math.pi, count, dtype=F64)


def tilt(phase):
    """The angle about y at which the thrust gives the reference's acceleration; written out from x and z."""
    ax = -(PACE**2) * torch.sin(phase)
    az = -2 * PACE**2 * torch.sin(2 * phase)
    return torch.atan2(ax, G + az), torch.sqrt(ax**2 + (G + az) ** 2)


def flawless(phase):
    """The state on the curve and the action, thrust alone, at each phase."""
    angle, specific = tilt(phase)
    _, turning = jvp(lambda s: tilt(s)[0], phase, torch.full_like(phase, PACE))
    x = torch.zeros(len(phase), 18, dtype=F64)
    x[:, 3], x[:, 5] = torch.cos(angle / 2), torch.sin(angle / 2)
    x[:, 11] = turning
    x[:, MOTORS] = (MASS * specific / (4 * MAX_THRUST)).unsqueeze(-1)
    x[:, 17] = phase
    return x, x[:, MOTORS].clone()


def some_states(batch, seed=0):
    env, generator = QuadrotorEight(), torch.Generator().manual_seed(seed)
    return env.state_box.sample(batch, generator, F64), env.action_box.sample(batch, generator, F64)


def in_the_world(x):
    """The same state as the quadrotor's."""
    at = curve(x[:, 17])
    return torch.cat((x[:, :3] + at.point, x[:, 3:7], x[:, VELOCITY] + PACE * at.first, x[:, 10:17]), -1)


def test_the_curve_is_geronos_lemniscate():
    at = curve(phases(50))
    x, y, z = (at.point / HALF_WIDTH).unbind(-1)
    assert torch.allclose(x**4, x**2 - z**2, rtol=0, atol=1e-14)
    assert not y.any()
    assert float(x.max() - x.min()) == pytest.approx(2.0, abs=0.01)
    assert float(z.max() - z.min()) == pytest.approx(1.0, abs=0.01)
    assert torch.allclose(curve(phases(50) + 2 * math.pi).point, at.point, rtol=0, atol=1e-14)


def test_the_derivatives_of_the_curve_are_those_of_autograd():
    phase = phases(20)
    at, one = curve(phase), torch.ones(20, dtype=F64)
    for lower, higher in (("point", "first"), ("first", "second"), ("second", "third")):
        _, slope = jvp(lambda s, name=lower: getattr(curve(s), name), phase, one)
        assert torch.allclose(slope, getattr(at, higher), rtol=0, atol=1e-13)


def test_in_the_world_it_moves_as_the_quadrotor_does():
    """d(world state)/dt by the chain rule from this simulator's rates, against the other's dynamics."""
    env, (x, u) = QuadrotorEight(), some_states(20)
    p = env.params(x)
    world, change = jvp(in_the_world, x, env.dynamics(0.0, x, u, p))
    assert torch.allclose(change, Quadrotor().dynamics(0.0, world, u, p), rtol=0, atol=1e-10)


def test_a_lap_in_the_moving_frame_is_a_flight_in_the_world():
    """The two simulators fly the same thrusts to the same place, to the accuracy of the solver."""
    env, other = QuadrotorEight(), Quadrotor()
    x = env.reset(10, torch.Generator().manual_seed(0), F64)
    y = in_the_world(x)
    for step in range(100):
        u = torch.full((10, 4), 0.45 + 0.05 * math.sin(step), dtype=F64)
        x, _ = env.step(x, u, env.params(x))
        y, _ = other.step(y, u, other.params(y))
    assert torch.allclose(in_the_world(x), y, rtol=0, atol=1e-6)


def test_the_phase_runs_round_once_in_five_seconds():
    env, (x, u) = QuadrotorEight(), some_states(4)
    start = x[:, 17]
    for _ in range(250):
        x, _ = env.step(x, u, env.params(x))
    assert torch.allclose(x[:, 17], start + 2 * math.pi, rtol=0, atol=1e-10)
    # ... or as fast as each rollout's own parameter says
    p = {**env.params(x), "phase_rate": torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=F64)}
    following, _ = env.step(x, u, p)
    assert torch.allclose(following[:, 17] - x[:, 17], 0.02 * p["phase_rate"], rtol=0, atol=1e-12)


def test_a_flawless_state_stays_on_the_curve_and_costs_nothing():
    env, phase = QuadrotorEight(), phases()
    x, u = flawless(phase)
    assert env.cost(x, u, env.params(x)).abs().max() < 1e-15
    _, along = jvp(lambda s: flawless(s)[0], phase, torch.full_like(phase, PACE))
    change = env.dynamics(0.0, x, u, env.params(x))
    # Position, attitude, velocity and phase change as those of the flawless states from phase to phase do.
    assert torch.allclose(change[:, :10], along[:, :10], rtol=0, atol=1e-12)
    assert torch.allclose(change[:, 17], along[:, 17])
    assert x[:, 11].abs().max() > 0.2  # the body does turn on the way


def test_every_departure_from_flawless_costs_and_the_heading_does_not():
    env = QuadrotorEight()
    x, u = flawless(phases())
    p = env.params(x)
    for i in (0, 1, 2, 7, 8, 9, 10, 11, 12):
        y = x.clone()
        y[:, i] += 0.1
        weight = 1.0 if i < 3 else 0.05 if i < 10 else 0.01
        assert torch.allclose(env.cost(y, u, p), torch.full((12,), 0.01 * weight, dtype=F64), atol=1e-12)
    assert torch.allclose(env.cost(x, u + 0.1, p), torch.full((12,), 0.05 * 4 * 0.01, dtype=F64))
    # Turned by 0.8 rad about its own z: the rates, seen from the body, turn back by as much.
    c, s, half = math.cos(0.8), math.sin(0.8), 0.4
    y = x.clone()
    a, b = x[:, 3], x[:, 5]
    turned = (a * math.cos(half), b * math.sin(half), b * math.cos(half), a * math.sin(half))
    y[:, 3:7] = torch.stack(turned, -1)
    y[:, 10], y[:, 11] = s * x[:, 11], c * x[:, 11]
    assert torch.allclose(rotation(y[:, 3:7])[:, 2::3], rotation(x[:, 3:7])[:, 2::3], rtol=0, atol=1e-12)
    assert env.cost(y, u, p).abs().max() < 1e-15


def test_feedback_on_thrust_and_tilt_follows_the_curve():
    """Feedback about the reference's acceleration, the attitude by opposite pairs of motors: it can be flown."""
    env = QuadrotorEight()
    x = env.reset(16, torch.Generator().manual_seed(1), F64)
    p, errors = env.params(x), []
    signs = torch.tensor([[-1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, -1.0, 0.0]], dtype=F64)
    for _ in range(375):
        force = PACE**2 * curve(x[:, 17]).second - 4 * x[:, :3] - 3 * x[:, VELOCITY]
        force = force + torch.tensor([0.0, 0.0, G], dtype=F64)
        turn = rotation(x[:, 3:7]).unflatten(-1, (3, 3))
        aim = (turn.mT @ (force / force.norm(dim=-1, keepdim=True)).unsqueeze(-1))[..., 0]
        thrust = MASS * (force * turn[..., 2]).sum(-1, keepdim=True) / (4 * MAX_THRUST)
        lean = torch.stack((-aim[:, 1], aim[:, 0], torch.zeros(16, dtype=F64)), -1)
        x, _ = env.step(x, thrust + (0.15 * lean - 0.02 * x[:, RATES]) @ signs.T, p)
        errors.append(x[:, :3].norm(dim=-1))
    assert torch.stack(errors[-250:]).max() < 0.15


def test_starts_are_near_the_curve_at_any_phase():
    env = QuadrotorEight()
    x = env.reset(5000, torch.Generator().manual_seed(0), F64)
    assert (x[:, 3:7].norm(dim=-1) - 1).abs().max() < 1e-12
    turned = 2 * torch.rad2deg(torch.acos(x[:, 3]))
    assert 30 < turned.max() < 39
    assert x[:, :3].abs().max() <= 0.3
    assert torch.histc(x[:, 17], 8, -math.pi, math.pi).min() > 500
