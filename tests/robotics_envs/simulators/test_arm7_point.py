"""The arm obeys mechanics that is written here a second time: from transforms and Lagrange's equations."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian

from robotics_envs.mechanics import panda
from robotics_envs.mechanics.panda import JOINT_LOW, LINKS, READY
from robotics_envs.simulators.arm7_point import Arm7Point
from solvers.methods.runge_kutta import RK4

F64 = torch.float64
G = 9.81
# a, d, alpha of each joint and the flange, as Franka's documentation prints them.
DH = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -math.pi / 2),
    (0.0, 0.316, math.pi / 2),
    (0.0825, 0.0, math.pi / 2),
    (-0.0825, 0.384, -math.pi / 2),
    (0.0, 0.0, math.pi / 2),
    (0.088, 0.0, math.pi / 2),
)
FLANGE_D = 0.107


def transforms(q):
    """Of the seven links for angles [7]: [7, 4, 4], by Craig's product of two screws."""
    total, result = torch.eye(4, dtype=F64), []
    for (a, d, alpha), angle in zip(DH, q, strict=True):
        ca, sa = math.cos(alpha), math.sin(alpha)
        about_x = torch.tensor([[1, 0, 0, a], [0, ca, -sa, 0], [0, sa, ca, 0], [0, 0, 0, 1]], dtype=F64)
        c, s, zero, one = (
            torch.cos(angle),
            torch.sin(angle),
            torch.zeros((), dtype=F64),
            torch.ones((), dtype=F64),
        )
        rows = ((c, -s, zero, zero), (s, c, zero, zero), (zero, zero, one, one * d), (zero, zero, zero, one))
        total = total @ about_x @ torch.stack([torch.stack(row) for row in rows])
        result.append(total)
    return torch.stack(result)


def centres(q):
    local = torch.tensor([(*link.centre, 1.0) for link in LINKS], dtype=F64)
    return (transforms(q) @ local.unsqueeze(-1))[:, :3, 0]


def potential(q):
    return G * sum(link.mass * centre[2] for link, centre in zip(LINKS, centres(q), strict=True))


def mass_matrix(q, armature, create_graph=False):
    """From the kinetic energy of each link, with Jacobians by automatic differentiation."""
    rotations = transforms(q)[:, :3, :3]
    of_centres = jacobian(centres, q, create_graph=create_graph)
    of_rotations = jacobian(lambda q: transforms(q)[:, :3, :3], q, create_graph=create_graph)
    total = armature * torch.eye(7, dtype=F64)
    for link, rotation, slide, turn in zip(LINKS, rotations, of_centres, of_rotations, strict=True):
        spin = torch.einsum("abj,cb->acj", turn, rotation)  # skew matrices of the angular velocities
        w = torch.stack((spin[2, 1], spin[0, 2], spin[1, 0]))
        xx, yy, zz, xy, xz, yz = link.inertia
        inertia = rotation @ torch.tensor([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], dtype=F64) @ rotation.T
        total = total + link.mass * slide.T @ slide + w.T @ inertia @ w
    return total


def some_states(batch, seed=0):
    x = Arm7Point.state_box.sample(batch, torch.Generator().manual_seed(seed), F64)
    return x, x[:, :7], x[:, 7:14]


def frictionless(env, x):
    return {**env.params(x), "damping": torch.zeros((), dtype=F64)}


def test_the_hand_is_where_plane_geometry_puts_it():
    """Upright; and ready, with the upper arm 45 degrees back, the forearm level and the hand down."""
    hand = panda.hand(torch.tensor([(0.0,) * 7, READY], dtype=F64))
    s = math.sqrt(0.5)
    upright = (0.088, 0.0, 0.333 + 0.316 + 0.384 - 0.107)
    ready = (s * (0.0825 - 0.316) + 0.384 + 0.088, 0.0, 0.333 + s * (0.316 + 0.0825) + 0.0825 - 0.107)
    assert hand[0].tolist() == pytest.approx(upright, abs=1e-12)
    assert hand[1].tolist() == pytest.approx(ready, abs=1e-12)


def test_the_hand_is_where_the_transforms_put_it():
    _, q, _ = some_states(5)
    flange = torch.tensor([0.0, 0.0, FLANGE_D, 1.0], dtype=F64)
    expected = torch.stack([(transforms(angles)[-1] @ flange)[:3] for angles in q])
    assert torch.allclose(panda.hand(q), expected, rtol=0, atol=1e-13)


def test_every_links_inertia_is_that_of_a_body():
    """Positive masses, and principal moments that obey the triangle inequality."""
    for link in LINKS:
        xx, yy, zz, xy, xz, yz = link.inertia
        moments = torch.linalg.eigvalsh(torch.tensor([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], dtype=F64))
        assert link.mass > 0
        assert moments[0] > 0
        assert moments[0] + moments[1] > moments[2]


def test_the_mass_matrix_is_symmetric_and_positive_definite():
    env = Arm7Point()
    x, q, _ = some_states(500)
    p = {**env.params(x), "armature": torch.zeros((), dtype=F64)}
    m = panda.mass_matrix(panda.motion(q), p["armature"])
    assert torch.equal(m, m.mT)
    assert torch.linalg.eigvalsh(m).min() > 1e-4


def test_the_mass_matrix_is_that_of_the_kinetic_energy():
    env = Arm7Point()
    x, q, _ = some_states(5)
    expected = torch.stack([mass_matrix(angles, 0.1) for angles in q])
    assert torch.allclose(
        panda.mass_matrix(panda.motion(q), env.params(x)["armature"]), expected, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bias_is_lagranges(seed):
    """d/dt (M qd) - d/dq (qd' M qd / 2 - V), with and without gravity."""
    _, q, qd = some_states(1, seed)
    angles, rates = q[0], qd[0]
    slope = jacobian(lambda q: mass_matrix(q, 0.0, create_graph=True), angles)
    motion = torch.einsum("ijk,j,k->i", slope, rates, rates)
    motion = motion - 0.5 * torch.einsum("ijk,i,j->k", slope, rates, rates)
    weight = jacobian(potential, angles)
    assert motion.norm() > 0.1
    assert torch.allclose(panda.bias(panda.motion(q), qd)[0], motion, rtol=0, atol=1e-8)
    assert torch.allclose(panda.bias(panda.motion(q), qd, G)[0], motion + weight, rtol=0, atol=1e-8)
    assert torch.allclose(panda.bias(panda.motion(q), 0 * qd, G)[0], weight, rtol=0, atol=1e-10)


def test_the_dynamics_solve_the_equation_of_motion():
    """M qdd + bias + damping qd = torque, with the mass matrix of the kinetic energy."""
    env = Arm7Point(damping=0.7, armature=0.05)
    x, q, qd = some_states(4)
    u = env.action_box.sample(4, torch.Generator().manual_seed(1), F64)
    rate = env.dynamics(0.0, x, u, env.params(x))
    m = torch.stack([mass_matrix(angles, 0.05) for angles in q])
    torque = (m @ rate[:, 7:14, None])[..., 0] + panda.bias(panda.motion(q), qd) + 0.7 * qd
    assert torch.allclose(torque, u, rtol=0, atol=1e-9)
    assert torch.equal(rate[:, :7], qd)
    assert not rate[:, 14:].any()


def drift(env, steps):
    """The largest change of energy in 1 s of free fall: the action takes gravity's compensation away."""
    x = torch.zeros(1, 17, dtype=F64)
    x[:, :7] = torch.tensor(READY, dtype=F64) + 0.2
    x[:, 7:14] = torch.tensor([0.5, -0.3, 0.4, 0.2, -0.5, 0.3, 0.6], dtype=F64)
    p = frictionless(env, x)

    def falling(t, x, u, p):
        return env.dynamics(t, x, -panda.bias(panda.motion(x[:, :7]), torch.zeros_like(x[:, :7]), G), p)

    def energy(x):
        kinetic = 0.5 * x[0, 7:14] @ mass_matrix(x[0, :7], 0.1) @ x[0, 7:14]
        return float(kinetic + potential(x[0, :7])), float(kinetic)

    (start, _), kinetic, worst = energy(x), 0.0, 0.0
    for step in range(1, steps + 1):
        x = RK4().step(falling, 0.0, x, None, p, 1.0 / steps)
        if step % (steps // 10) == 0:
            now, moving = energy(x)
            worst, kinetic = max(worst, abs(now - start)), max(kinetic, moving)
    assert kinetic > 10.0  # it does fall
    return worst


def test_a_falling_arm_keeps_its_energy_to_the_order_of_the_solver():
    env = Arm7Point()
    coarse, fine = drift(env, 100), drift(env, 200)
    assert fine < 1e-3  # J, of more than 10 J
    assert math.log2(coarse / fine) > 3.7


def test_friction_takes_the_power_it_should():
    """d/dt (kinetic energy) = -damping |qd|² where no torque acts."""
    env = Arm7Point()
    x, q, qd = some_states(1)
    p = env.params(x)
    rate = env.dynamics(0.0, x, torch.zeros(1, 7, dtype=F64), p)[:, 7:14]
    slope = jacobian(lambda q: mass_matrix(q, 0.1, create_graph=True), q[0])
    power = qd[0] @ mass_matrix(q[0], 0.1) @ rate[0]
    power = power + 0.5 * torch.einsum("ijk,i,j,k->", slope, qd[0], qd[0], qd[0])
    assert float(power) == pytest.approx(-float((qd**2).sum()), rel=1e-9)


def test_gravity_compensation_keeps_the_arm_at_rest():
    env = Arm7Point()
    x = env.reset(20, torch.Generator().manual_seed(0), F64)
    x[:, 7:14] = 0.0
    start, u = x, torch.zeros(20, 7, dtype=F64)
    for _ in range(50):
        x, _ = env.step(x, u, env.params(x))
    assert torch.equal(x, start)
    # ... which is no small feat: without it each arm would set off.
    held = -panda.bias(panda.motion(start[:, :7]), 0 * start[:, :7], G)
    fall = env.dynamics(0.0, start, held, env.params(x))[:, 7:14]
    assert fall.norm(dim=-1).min() > 1.0


def test_gradients_in_float64_also_at_rest():
    env = Arm7Point()
    x, _, _ = some_states(3)
    x[1, 7:14] = 0.0
    x[2, :14] = 0.0
    u = 0.5 * env.action_box.sample(3, torch.Generator().manual_seed(1), F64)
    values = list(env.params(x).values())
    inputs = [v.clone().requires_grad_() for v in (x, u, *values)]

    def call(x, u, damping, armature):
        return env.dynamics(0.0, x, u, {"damping": damping, "armature": armature})

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


def test_the_cost_counts_distance_rates_torque_and_limits():
    env = Arm7Point()
    x = torch.zeros(4, 17, dtype=F64)
    x[:, :7] = torch.tensor(READY, dtype=F64)
    x[:, 14:] = panda.hand(x[:, :7])
    x[1, 14] += 0.5
    x[2, 7:14] = 1.0
    u = torch.zeros(4, 7, dtype=F64)
    u[3] = torch.tensor(env.action_box.high, dtype=F64)
    cost = env.cost(x, u, env.params(x)).tolist()
    assert cost == pytest.approx([0.0, 0.25, 0.035, 0.035])
    x[0, 3] = JOINT_LOW[3] - 0.1
    x[0, 14:] = panda.hand(x[:1, :7])[0]
    assert float(env.cost(x, u, env.params(x))[0]) == pytest.approx(0.01)


def test_every_target_is_within_reach():
    low, high = Arm7Point.start_box.bounds(torch.zeros(1, dtype=F64))
    corners = torch.cartesian_prod(*torch.stack((low, high), 1)[14:])
    shoulder = torch.tensor([0.0, 0.0, 0.333], dtype=F64)
    assert (corners - shoulder).norm(dim=-1).max() < 0.855  # m, the reach in Franka's data sheet
