"""The arm with a payload obeys Lagrange's equations; a controller that does not know the payload solves the task."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.func import grad, jacrev

from robotics_envs.simulators.payload_arm import FURTHEST, HEAVIEST, NEAREST, PayloadArm

F64 = torch.float64
G, LENGTH = 9.81, 0.45
M_1, M_2, CENTRE_1, CENTRE_2, INERTIA_1, INERTIA_2 = 23.902, 3.88, 0.091, 0.048, 1.266, 0.093
FRICTION, TORQUE = (2.288, 0.175), (150.0, 15.0)
NO_FRICTION = {"friction_1": 1e-300, "friction_2": 1e-300}


def some_states(batch, seed=0):
    return PayloadArm().state_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def some_actions(batch, seed=1):
    return PayloadArm().action_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def points(angles):
    """Places of both centres of mass and of the payload, from the geometry alone, ``[3, 2]``."""
    first, second = angles[0], angles[0] + angles[1]
    along = [torch.stack((torch.sin(a), -torch.cos(a))) for a in (first, second)]
    elbow = LENGTH * along[0]
    return torch.stack((CENTRE_1 * along[0], elbow + CENTRE_2 * along[1], elbow + LENGTH * along[1]))


def kinetic(angles, rates, payload):
    """Kinetic energy in J: of the three points, moved along ``rates``, and of the links' rotations."""
    velocities = jacrev(points)(angles) @ rates
    masses = torch.stack((torch.tensor(M_1, dtype=F64), torch.tensor(M_2, dtype=F64), payload))
    rotation = INERTIA_1 * rates[0] ** 2 + INERTIA_2 * rates.sum() ** 2
    return 0.5 * ((masses * (velocities**2).sum(-1)).sum() + rotation)


def potential(angles, payload):
    heights = points(angles)[:, 1]
    return G * (M_1 * heights[0] + M_2 * heights[1] + payload * heights[2])


def energy(x):
    """The total energy in J of states ``[B, 7]``."""
    return torch.stack([kinetic(s[:2], s[2:4], s[6]) + potential(s[:2], s[6]) for s in x])


def accelerations(x, torques):
    """Lagrange's equations of the energies above, by automatic differentiation: d/dt dT/dq' = dT/dq - dV/dq + Q."""
    angles, rates, payload = x[:2], x[2:4], x[6]
    momentum = grad(kinetic, argnums=1)
    mass = jacrev(momentum, argnums=1)(angles, rates, payload)
    drift = jacrev(momentum)(angles, rates, payload) @ rates
    lagrangian = lambda q: kinetic(q, rates, payload) - potential(q, payload)
    force = torques - torch.tensor(FRICTION, dtype=F64) * rates + grad(lagrangian)(angles)
    return torch.linalg.solve(mass, force - drift)


def test_the_equations_are_lagranges():
    env, x, u = PayloadArm(), some_states(40), some_actions(40)
    got = env.dynamics(0.0, x, u, env.params(x))
    expected = torch.stack([accelerations(s, a * torch.tensor(TORQUE)) for s, a in zip(x, u, strict=True)])
    assert torch.allclose(got[:, 2:4], expected, rtol=1e-10, atol=1e-9)
    assert torch.equal(got[:, :2], x[:, 2:4])
    assert not got[:, 4:].any()  # target and payload are constant


def test_the_published_coefficients_of_the_unloaded_arm():
    """Of mass matrix and gravity, which Reyes and Kelly give to three digits."""
    env = PayloadArm()
    x = torch.zeros(3, 7, dtype=F64)
    x[:, 1] = torch.tensor([0.0, math.pi / 2, math.pi])
    cos = torch.cos(x[:, 1])
    for got, expected in zip(
        env.inertia(x, env.params(x)), (2.351 + 0.168 * cos, 0.102 + 0.084 * cos, 0.102), strict=True
    ):
        assert torch.allclose(got, torch.as_tensor(expected, dtype=F64).expand(3), rtol=0, atol=2e-3)
    x[:, 0] = math.pi / 2 - x[:, 1]
    shoulder, elbow = env.gravity(x, env.params(x))
    assert torch.allclose(elbow, torch.full((3,), 0.186 * G, dtype=F64), rtol=0, atol=6e-3)
    assert torch.allclose(shoulder - elbow, 3.921 * G * torch.sin(x[:, 0]), rtol=0, atol=6e-3)


def test_energy_is_conserved_without_friction_to_the_order_of_the_solver():
    env, x = PayloadArm(**NO_FRICTION), some_states(20)
    u, start = torch.zeros(20, 2, dtype=F64), energy(x)

    def drift(steps):
        y = x
        for _ in range(steps):
            y = env.solver.step(env.dynamics, 0.0, y, u, env.params(x), 0.4 / steps)
        return float((energy(y) - start).abs().max())

    coarse, fine = drift(160), drift(320)
    assert fine < 1e-4
    assert math.log2(coarse / fine) > 3.7


def test_power_is_that_of_torques_and_friction():
    env, x, u = PayloadArm(), some_states(40).requires_grad_(), some_actions(40)
    (slope,) = torch.autograd.grad(energy(x).sum(), x)
    with torch.no_grad():
        rates = x[:, 2:4]
        change = (slope * env.dynamics(0.0, x, u, env.params(x))).sum(-1)
        power = ((u * torch.tensor(TORQUE) - torch.tensor(FRICTION, dtype=F64) * rates) * rates).sum(-1)
    assert torch.allclose(change, power, rtol=1e-9, atol=1e-8)


def test_a_step_is_scipys_solution():
    """Ten intervals against a solve of Lagrange's equations with tight tolerances."""
    env, x, u = PayloadArm(), some_states(2), 0.5 * some_actions(2)
    x[:, 2:4] *= 0.3

    def field(_, y, state, torques):
        full = torch.cat((torch.from_numpy(y), state[4:]))
        return np.concatenate((y[2:], accelerations(full, torques).numpy()))

    y = x
    for _ in range(10):
        y, _ = env.step(y, u, env.params(x))
    for state, action, end in zip(x, u, y, strict=True):
        arguments = (state, action * torch.tensor(TORQUE))
        reference = solve_ivp(
            field, (0, 0.2), state[:4].numpy(), args=arguments, method="DOP853", rtol=1e-8, atol=1e-8
        )
        np.testing.assert_allclose(end[:4].numpy(), reference.y[:, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("payload", [0.0, 1.3, HEAVIEST])
def test_the_weight_of_arm_and_payload_is_held_in_equilibrium(payload):
    """The holding torque is the slope of the potential energy, and within the bounds in every posture."""
    env, x = PayloadArm(), some_states(50)
    x[:, 2:4], x[:, 6] = 0.0, payload
    hold = torch.stack(env.gravity(x, env.params(x)), -1)
    slope = torch.stack([grad(potential)(s[:2], s[6]) for s in x])
    assert torch.allclose(hold, slope, rtol=1e-10, atol=1e-10)
    u = hold / torch.tensor(TORQUE)
    assert u.abs().max() < 0.75
    assert env.dynamics(0.0, x, u, env.params(x)).abs().max() < 1e-11


def test_a_heavier_payload_is_slower_and_hangs_as_straight():
    """The same torque accelerates it less; hanging straight down is an equilibrium whatever its mass."""
    env = PayloadArm()
    x = torch.zeros(2, 7, dtype=F64)
    x[1, 6] = HEAVIEST
    pushed = env.dynamics(0.0, x, torch.full((2, 2), 0.2, dtype=F64), env.params(x))
    assert 0 < pushed[1, 2] < pushed[0, 2]
    assert not env.dynamics(0.0, x, torch.zeros(2, 2, dtype=F64), env.params(x)).any()


def test_the_tips_velocity_is_the_rate_of_its_place():
    env, x = PayloadArm(), some_states(20)
    got = env.tip_velocity(x[:, :2], x[:, 2:4], env.params(x))
    assert torch.allclose(env.tip(x[:, :2], env.params(x)), torch.stack([points(s[:2])[2] for s in x]))
    assert torch.allclose(got, torch.stack([jacrev(points)(s[:2])[2] @ s[2:4] for s in x]))


def test_left_and_right_are_mirror_images():
    env, x, u = PayloadArm(), some_states(20), some_actions(20)
    mirror = torch.tensor([-1, -1, -1, -1, -1, 1, 1], dtype=F64)
    for _ in range(10):
        x, y = env.step(x, u, env.params(x)), env.step(mirror * x, -u, env.params(x))
        assert torch.allclose(mirror * x[0], y[0], rtol=0, atol=1e-9)
        assert torch.allclose(x[1], y[1], rtol=1e-9, atol=0)
        x = x[0]


def test_the_payload_is_not_observed_and_not_negative():
    env, x, u = PayloadArm(), some_states(20), some_actions(20)
    other = x.clone()
    other[:, 6] = HEAVIEST - x[:, 6]
    assert torch.equal(env.observe(x), env.observe(other))
    assert not torch.allclose(env.step(x, u, env.params(x))[0], env.step(other, u, env.params(x))[0])
    x[:, 6], other[:, 6] = -1.0, 0.0
    x.requires_grad_()
    following, _ = env.step(x, u, env.params(x))
    assert torch.equal(following[:, :6], env.step(other, u, env.params(x))[0][:, :6])
    assert not torch.autograd.grad(following[:, :6].sum(), x)[0][:, 6].any()


def test_the_cost_is_least_where_the_tip_rests_at_the_target():
    env, x = PayloadArm(), some_states(200)
    u = torch.zeros(200, 2, dtype=F64)
    x[:, 4:6] = env.tip(x[:, :2], env.params(x))
    x[:, 2:4] = 0.0
    assert env.cost(x, u, env.params(x)).abs().max() < 1e-12
    far = x.clone()
    far[:, 4] += 0.5
    assert torch.allclose(
        env.cost(far, u, env.params(x)), torch.full((200,), math.hypot(0.5, 0.01) - 0.01, dtype=F64)
    )
    x[:, 2] = 1.0
    assert (env.cost(x, u, env.params(x)) > 0).all()
    assert torch.allclose(
        env.cost(far, u + 1.0, env.params(x)) - env.cost(far, u, env.params(x)), torch.tensor(0.02, dtype=F64)
    )


def test_targets_fill_the_ring_and_payloads_their_range():
    env = PayloadArm()
    x = env.reset(4000, torch.Generator().manual_seed(0), F64)
    radius = torch.linalg.vector_norm(x[:, 4:6], dim=-1)
    assert radius.min() >= NEAREST
    assert radius.max() <= FURTHEST < 2 * LENGTH
    middle = math.sqrt((NEAREST**2 + FURTHEST**2) / 2)  # half of the area
    assert float((radius < middle).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert x[:, 4:6].mean(0).abs().max() < 0.03
    assert x[:, 6].min() >= 0
    assert float(x[:, 6].mean()) == pytest.approx(HEAVIEST / 2, abs=0.05)


def controlled(x):
    """PD control of the joints to the target's inverse kinematics, and the weight of a payload of 1 kg."""
    env = PayloadArm()
    bend = torch.acos(((x[:, 4:6] ** 2).sum(-1) / (2 * LENGTH**2) - 1).clamp(-1, 1))
    bearing = torch.atan2(x[:, 4], -x[:, 5])
    wanted = torch.stack((bearing - bend / 2, bend), -1)
    mean = torch.cat((wanted, x[:, 2:6], torch.full_like(x[:, :1], HEAVIEST / 2)), -1)
    error = torch.atan2(torch.sin(wanted - x[:, :2]), torch.cos(wanted - x[:, :2]))
    stiff, damp = torch.tensor([1000.0, 100.0], dtype=F64), torch.tensor([90.0, 6.0], dtype=F64)
    torques = torch.stack(env.gravity(mean, env.params(x)), -1) + stiff * error - damp * x[:, 2:4]
    return torques / torch.tensor(TORQUE)


def episode(policy, batch=64):
    env = PayloadArm()
    states = [env.reset(batch, torch.Generator().manual_seed(0), F64)]
    for _ in range(env.episode_steps):
        states.append(env.step(states[-1], policy(states[-1]), env.params(states[-1]))[0])
    return torch.stack(states)


def test_a_controller_that_does_not_know_the_payload_succeeds():
    """From 62 of 64 starts; from none without torque."""
    env = PayloadArm()
    assert int(env.success(episode(controlled)).sum()) >= 60
    assert not env.success(episode(lambda x: torch.zeros(len(x), 2, dtype=F64))).any()


def test_success_needs_rest_at_the_target_for_half_a_second():
    env = PayloadArm()
    states = torch.zeros(151, 5, 7, dtype=F64)
    states[..., 5] = -0.9  # hanging straight down
    states[124, 1, 5] = -0.7  # before the last half second: allowed
    states[125, 2, 5] = -0.7
    states[140, 3, 2] = 0.1  # 9 cm/s
    states[..., 4, 4] = 0.029
    assert env.success(states).tolist() == [True, True, False, False, True]
    states[150, 4, 4] = 0.031
    assert env.success(states).tolist() == [True, True, False, False, False]
    assert 0 < env.success_criterion.share <= 1
