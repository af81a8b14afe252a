"""The trebuchet obeys Lagrange's equations, lets go at the right instant, and its gradients cross the events."""

import itertools
import math

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from robotics_envs.simulators.trebuchet import Trebuchet, fly, in_sling, landing
from solvers import Event, solve

F64 = torch.float64
NUMBERS = {
    "g": 9.81,
    "M": 200.0,
    "m": 2.0,
    "beam": 20.0,
    "long": 2.4,
    "short": 0.6,
    "sling": 2.0,
    "axle": 4.0,
}


def positions(q, n=NUMBERS):
    """Counterweight, middle of the beam and stone, by hand; q is the beam's and the sling's angle."""
    along = lambda length, angle: length * torch.stack((torch.cos(angle), torch.sin(angle)))
    axle = torch.tensor([0.0, n["axle"]], dtype=F64)
    stone = axle + along(n["long"], q[0]) + along(n["sling"], q[0] + q[1])
    return axle + along(-n["short"], q[0]), axle + along((n["long"] - n["short"]) / 2, q[0]), stone


def energies(q, v, n=NUMBERS):
    """Kinetic and potential energy of the swing, from the positions' derivatives."""
    bodies = tuple(
        zip(
            (n["M"], n["beam"], n["m"]),
            positions(q, n),
            jacobian(positions, q, create_graph=True),
            strict=True,
        )
    )
    kinetic = sum(0.5 * mass * ((j @ v) ** 2).sum() for mass, _, j in bodies)
    kinetic = kinetic + 0.5 * n["beam"] * (n["long"] + n["short"]) ** 2 / 12 * v[0] ** 2
    return kinetic, sum(mass * n["g"] * where[1] for mass, where, _ in bodies)


def kinetic(q, v):
    return energies(q, v)[0]


def start(batch=1, target=50.0):
    x = torch.zeros(batch, 10, dtype=F64)
    x[:, 1], x[:, 2], x[:, 9] = 3.9, 2.36, target
    return x


def swings(batch, seed=0):
    return Trebuchet().state_box.sample(batch, torch.Generator().manual_seed(seed), F64)[:, 1:5]


def throw(env, x, u, p, steps=130):
    for _ in range(steps):
        x, cost = env.step(x, u, p)
    return x, cost


def test_the_swing_follows_from_lagranges_equations():
    """By autograd from the energies alone: ``M(q) a = torque - dV/dq + dT/dq - d(dT/dv)/dq v``."""
    env, s = Trebuchet(), swings(6)
    u = torch.tensor([[0.3, 150.0]], dtype=F64).expand(6, 2)
    rates = env.swing(0.0, s, u, env.params(s))
    assert torch.equal(rates[:, :2], s[:, 2:])
    for row, change in zip(s, rates[:, 2:], strict=True):
        q, v = row[:2], row[2:]
        mass = hessian(lambda v, q=q: kinetic(q, v), v)
        momentum = lambda q, v=v: jacobian(lambda w: kinetic(q, w), v, create_graph=True)
        pull = jacobian(lambda q, v=v: kinetic(q, v) - energies(q, v)[1], q)
        force = torch.tensor([150.0, 0.0], dtype=F64) + pull - jacobian(momentum, q) @ v
        assert torch.allclose(change, torch.linalg.solve(mass, force), rtol=1e-9, atol=1e-9)


def test_the_swing_keeps_its_energy_to_the_order_of_the_solver():
    env, u = Trebuchet(), torch.zeros(1, 2, dtype=F64)
    s = start()[:, 1:5]
    p, total = env.params(s), float(sum(energies(s[0, :2], s[0, 2:])).detach())
    errors = []
    for steps in (80, 160, 320):
        y = s
        for _ in range(steps):
            y = env.solver.step(env.swing, 0.0, y, u, p, 0.9 / steps)
        errors.append(abs(float(sum(energies(y[0, :2], y[0, 2:])).detach()) - total))
    assert float(energies(y[0, :2], y[0, 2:])[0].detach()) > 1000.0  # J: most of the counterweight's fall
    assert errors[0] < 1e-5  # J, in steps as long as the simulator takes
    assert all(math.log2(a / b) > 3.7 for a, b in itertools.pairwise(errors))


def test_the_stone_in_the_sling_is_where_the_angles_say():
    s = swings(5)
    p = Trebuchet().params(s)
    for row, stone in zip(s, in_sling(s, p), strict=True):
        assert torch.allclose(stone[:2], positions(row[:2])[2])
        assert torch.allclose(stone[2:], jacobian(lambda q: positions(q)[2], row[:2]) @ row[2:])


def test_hanging_straight_down_is_an_equilibrium():
    """Counterweight below, sling down from the tip of the long arm."""
    env = Trebuchet()
    s = torch.tensor([[math.pi / 2, math.pi, 0.0, 0.0]], dtype=F64)
    off = torch.zeros(1, 2, dtype=F64)
    assert env.swing(0.0, s, off, env.params(s)).abs().max() < 1e-12


def reference(env, x, command, torque, p):
    """Time and state of the release by ``solvers.solve`` at 1e-10."""
    control = torch.stack((command, torque)).reshape(1, 2)
    crossing = Event(lambda t, s, u, p: s[..., 1] - u[..., 0], terminal=True, direction=-1)
    solution = solve(env.swing, x[:, 1:5], [0.0, 2.0], control, p, rtol=1e-10, atol=1e-10, events=crossing)
    return solution.events.times[0, 0], solution.events.states[0, 0]


@pytest.mark.parametrize("command", [0.1, 0.6])
def test_release_and_landing_agree_with_the_event_of_an_adaptive_solver(command):
    """Time and state of the release, the point of landing, and its gradients across the event."""
    env, x, torque = Trebuchet(), start(), torch.tensor(-100.0, dtype=F64, requires_grad=True)
    command = torch.tensor(command, dtype=F64, requires_grad=True)
    beam = torch.tensor(3.9, dtype=F64, requires_grad=True)
    p = {name: value.requires_grad_() for name, value in env.params(x).items()}
    x = torch.cat((x[:, :1], beam.reshape(1, 1), x[:, 2:]), -1)
    time, let_go = reference(env, x, command, torque, p)
    exact = landing(in_sling(let_go[None], p), p)[0]

    y, _ = throw(env, x, torch.stack((command, torque)).reshape(1, 2), p, 25)
    assert y[0, 6] > 0
    landed = landing(y[:, 5:9], p)[0]
    assert torch.allclose(y[0, 1:5], let_go, rtol=0, atol=5e-6)
    assert float((landed - exact).detach()) == pytest.approx(0.0, abs=2e-4)
    at_flight = int(float(time.detach()) / env.dt) + 1
    z, _ = throw(env, x, torch.stack((command, torque)).reshape(1, 2), p, at_flight)
    flown = fly(in_sling(let_go[None], p), (at_flight * env.dt - time).reshape(1), p)
    assert torch.allclose(z[0, 5:9], flown[0], rtol=0, atol=2e-4)

    inputs = (command, torque, beam, *p.values())
    ours, theirs = torch.autograd.grad(landed, inputs), torch.autograd.grad(exact, inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert float(b.abs()) > 1e-4
        assert float(a) == pytest.approx(float(b), rel=1e-3, abs=1e-4)


def test_gradients_of_the_landing_agree_with_finite_differences_across_the_event():
    env, base = Trebuchet(), start()
    names = ("counterweight", "stone", "sling_length", "g")

    def land(command, beam, *masses):
        p = {**env.params(base), **dict(zip(names, masses, strict=True))}
        x = torch.cat((base[:, :1], beam.reshape(1, 1), base[:, 2:]), -1)
        u = torch.stack((command, torch.zeros_like(command))).reshape(1, 2)
        return landing(throw(env, x, u, p, 22)[0][:, 5:9], p)

    values = (0.4, 3.9, *(env.constants[name].value for name in names))
    inputs = [torch.tensor(value, dtype=F64, requires_grad=True) for value in values]
    assert torch.autograd.gradcheck(land, inputs, eps=1e-6, rtol=1e-3, atol=1e-5)


def test_the_release_is_continuous_from_one_interval_to_the_next():
    """Landing point against the command, finely: no jump where the release moves into another interval or step."""
    env = Trebuchet()
    command = torch.linspace(0.2, 0.9, 2001, dtype=F64)
    x, p = start(2001), env.params(command)
    y, _ = throw(env, x, torch.stack((command, torch.zeros_like(command)), -1), p, 25)
    assert (y[:, 0] == 1).all()
    reached = landing(y[:, 5:9], p)
    assert (reached[1:] - reached[:-1]).abs().max() < 0.1
    assert reached.max() - reached.min() > 50.0


def test_flight_is_the_parabola_and_ends_on_the_ground():
    env = Trebuchet()
    x = start(3)
    x[:, 0] = 1.0
    x[:, 5:9] = torch.tensor(
        [[0.0, 0.0, 20.0, 15.0], [0.0, 10.0, 20.0, 0.0], [3.0, 5.0, -2.0, -4.0]], dtype=F64
    )
    u, p = torch.zeros(3, 2, dtype=F64), env.params(x)
    expected = (
        2 * 20.0 * 15.0 / 9.81,  # v² sin(2 angle) / g
        20.0 * math.sqrt(2 * 10.0 / 9.81),
        3.0 - 2.0 * (-4.0 + math.sqrt(16.0 + 2 * 9.81 * 5.0)) / 9.81,
    )
    assert landing(x[:, 5:9], p).tolist() == pytest.approx(expected, rel=1e-12)
    after, _ = throw(env, x, u, p, 10)
    t = 0.4
    assert after[0, 5:9].tolist() == pytest.approx(
        [20 * t, 15 * t - 4.905 * t * t, 20.0, 15.0 - 9.81 * t], rel=1e-12
    )
    rate = env.dynamics(0.0, x, u, p)
    assert rate[1, 5:9].tolist() == [20.0, 0.0, 0.0, -9.81]
    rest, cost = throw(env, x, u, p)
    assert rest[:, 5].tolist() == pytest.approx(expected, rel=1e-12)
    assert rest[:, 6:9].abs().max() == 0.0
    again, _ = throw(env, rest, u, p, 5)
    assert torch.equal(again, rest)
    miss = (torch.tensor(expected, dtype=F64) - 50.0) / 2
    assert torch.allclose(cost, torch.sqrt(1 + miss**2) - 1)
    assert env.dynamics(0.0, rest, u, p).abs().max() == 0.0


def test_a_command_above_the_sling_releases_at_once_and_none_below_never():
    env, x = Trebuchet(), start(2)
    x[0, 2] = 1.0
    x[:, 3] = -3.0
    u = torch.tensor([[1.2, 0.0], [-0.2, 0.0]], dtype=F64)
    p = env.params(x)
    y, cost = env.step(x, u, p)
    assert y[:, 0].tolist() == [1.0, 0.0]
    assert torch.equal(y[0, 1:5], x[0, 1:5])
    expected = fly(in_sling(x[:1, 1:5], p), torch.tensor([0.04], dtype=F64), p)
    assert torch.allclose(y[0, 5:9], expected[0])
    assert torch.equal(y[1, 5:9], x[1, 5:9])
    assert float(cost[1]) == pytest.approx(2.0, abs=1e-3)


def test_all_targets_are_in_reach_and_the_stone_clears_the_ground():
    env = Trebuchet()
    command = torch.linspace(0.0, 1.0, 41, dtype=F64)
    x, p = start(41), env.params(command)
    u = torch.stack((command, torch.zeros_like(command)), -1)
    reached = landing(throw(env, x, u, p, 25)[0][:, 5:9], p)
    assert reached.max() > 75.0
    assert reached.min() < 25.0
    lowest = torch.full((1,), 9.0, dtype=F64)
    y, off = start(), torch.tensor([[-0.2, 0.0]], dtype=F64)
    for _ in range(22):
        lowest = torch.minimum(lowest, in_sling(y[:, 1:5], p)[:, 1])
        y, _ = env.step(y, off, p)
    assert lowest > 1.0


def test_resets_are_loaded_machines_with_random_targets():
    x = Trebuchet().reset(2000, torch.Generator().manual_seed(0), F64)
    assert (x[:, [0, 5, 6, 7, 8]] == 0).all()
    assert 30.0 <= x[:, 9].min() < 30.2
    assert 69.8 < x[:, 9].max() <= 70.0
    assert x[:, 1].min() >= 3.8
    assert x[:, 1].max() <= 4.0
