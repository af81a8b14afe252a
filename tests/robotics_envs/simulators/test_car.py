"""The car obeys its tyres, its drive and the geometry of its track."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import fsolve

from robotics_envs.simulators.car import BEND, HALF_WIDTH, LAP, LOBES, TIGHTEST, Car, curvature, magic_formula

F64 = torch.float64
MASS, INERTIA, FRONT, REAR = 0.041, 27.8e-6, 0.029, 0.033
FRONT_TYRE, REAR_TYRE = (2.579, 1.2, 0.192), (3.3852, 1.2691, 0.1737)


def some_states(batch, seed=0):
    return Car().state_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def some_actions(batch, seed=1):
    return Car().action_box.sample(batch, torch.Generator().manual_seed(seed), F64)


def constants(*values):
    return [torch.tensor(value, dtype=F64) for value in values]


def tangent(phase):
    """Angle of the centre line's tangent: the curvature, integrated by hand."""
    return phase + BEND / LOBES * np.sin(LOBES * phase)


@pytest.mark.parametrize(("b", "c", "d"), [FRONT_TYRE, REAR_TYRE], ids=["front", "rear"])
def test_tyre_forces_are_odd_and_saturate_at_the_published_peak(b, c, d):
    slip = torch.linspace(-1.5, 1.5, 30001, dtype=F64)
    force = magic_formula(slip, *constants(b, c, d))
    assert torch.allclose(force, -force.flip(0), rtol=0, atol=1e-15)
    assert force.abs().max() <= d
    expected = d if c * math.atan(1.5 * b) > math.pi / 2 else d * math.sin(c * math.atan(1.5 * b))
    assert force.max().item() == pytest.approx(expected, rel=1e-6)
    peak = math.tan(math.pi / (2 * c)) / b  # where c atan(b slip) is a right angle
    assert magic_formula(torch.tensor([peak], dtype=F64), *constants(b, c, d)).item() == pytest.approx(d)
    small = magic_formula(torch.tensor([1e-6], dtype=F64), *constants(b, c, d)).item()
    assert small / 1e-6 == pytest.approx(b * c * d, rel=1e-6)


def test_steady_cornering_is_that_of_the_linear_bicycle():
    """At small slip: steering = wheelbase/R + m/wheelbase (rear/C_front - front/C_rear) v²/R (Rajamani)."""
    env, speed, bend = Car(), 2.0, 0.002
    stiff_front, stiff_rear = math.prod(FRONT_TYRE), math.prod(REAR_TYRE)
    gradient = MASS / (FRONT + REAR) * (REAR / stiff_front - FRONT / stiff_rear)
    expected = (FRONT + REAR) * bend + gradient * speed**2 * bend

    def residual(unknown):
        vy, steering = unknown
        x = torch.tensor([[0.0, 0.0, 0.0, speed, vy, speed * bend]], dtype=F64)
        u = torch.tensor([[0.3, steering]], dtype=F64)
        return env.dynamics(0.0, x, u, env.params(x))[0, 4:].numpy()

    vy, steering = fsolve(residual, (0.0, expected), xtol=1e-13)
    assert steering == pytest.approx(expected, rel=1e-3)
    slide = REAR * bend - FRONT / (FRONT + REAR) * MASS * speed**2 * bend / stiff_rear
    assert vy / speed == pytest.approx(slide, rel=1e-3)


def test_coasting_down_follows_the_closed_form():
    """m dv/dt = -(rolling + drag v²): v = sqrt(rolling/drag) tan(c - t sqrt(rolling drag)/m)."""
    env = Car()
    rolling, drag = 0.0518, 0.00035
    x = torch.tensor([[0.0, 0.0, 0.0, 3.0, 0.0, 0.0]], dtype=F64)
    ratio, rate = math.sqrt(rolling / drag), math.sqrt(rolling * drag) / MASS
    for _ in range(40):
        x, _ = env.step(x, torch.zeros(1, 2, dtype=F64), env.params(x))
    time = 40 * env.dt
    begin = math.atan(3.0 / ratio)
    assert x[0, 3].item() == pytest.approx(ratio * math.tan(begin - rate * time), rel=1e-8)
    # At last it stands, and does not roll back.
    slow = torch.tensor([[0.0, 0.0, 0.0, 0.05, 0.0, 0.0]], dtype=F64)
    for _ in range(20):
        slow, _ = env.step(slow, torch.zeros(1, 2, dtype=F64), env.params(slow))
    assert 0 <= slow[0, 3].item() < 1e-3


def test_the_top_speed_is_where_the_drive_meets_the_resistance():
    env = Car()
    a, b, c = 0.00035, 0.0545, 0.0518 - 0.287
    top = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    x = torch.tensor([[0.0, 0.0, 0.0, top, 0.0, 0.0]], dtype=F64)
    u = torch.tensor([[1.0, 0.0]], dtype=F64)
    assert abs(env.dynamics(0.0, x, u, env.params(x))[0, 3].item()) < 1e-12
    assert 4.0 < top < 4.5


def test_the_tyres_only_take_energy():
    """Power of both tyres' lateral forces at their own contact points, also sideways and backwards."""
    env = Car()
    x, u = 3 * some_states(2000), some_actions(2000)
    _, _, _, vx, vy, rate = x.unbind(-1)
    _, front, rear = env.forces(x, u, env.params(x))
    across = (vy + FRONT * rate) * torch.cos(u[:, 1]) - vx * torch.sin(u[:, 1])
    assert (front * across <= 0).all()
    assert (rear * (vy - REAR * rate) <= 0).all()
    # The same from the equations of motion: what the drive does not give, the energy loses.
    drive, _, _ = env.forces(x, u, env.params(x))
    change = env.dynamics(0.0, x, u, env.params(x))
    power = MASS * (vx * change[:, 3] + vy * change[:, 4]) + INERTIA * rate * change[:, 5]
    assert torch.allclose(
        power, drive * vx + front * across + rear * (vy - REAR * rate), rtol=1e-9, atol=1e-9
    )


def test_the_centre_line_closes_and_its_arc_coordinate_is_its_length():
    phase = np.arange(6000) / 6000 * 2 * math.pi
    step = LAP / 6000
    assert abs((np.exp(1j * tangent(phase)) * step).sum()) < 1e-10
    h = 1e-5
    slope = (tangent(phase + h) - tangent(phase - h)) / (2 * h) * 2 * math.pi / LAP
    np.testing.assert_allclose(curvature(torch.as_tensor(phase)).numpy(), slope, rtol=0, atol=1e-8)
    assert slope.max() * HALF_WIDTH < 1 - TIGHTEST  # all of the track lies where nothing is clamped
    assert slope.min() < 0  # it bends both ways


def test_curvilinear_motion_is_the_motion_in_the_plane():
    """The car integrated in Cartesian coordinates by scipy, against phase, offset and heading put onto the plane."""
    env = Car()
    x = torch.tensor([[0.4, 0.05, 0.2, 1.8, 0.1, 1.0]], dtype=F64)
    u, p = torch.tensor([[0.5, 0.2]], dtype=F64), env.params(x)
    time, furthest = 0.6, 0.0

    def place(x):
        phase, offset, heading = x[0, :3].tolist()
        at = np.linspace(0.0, phase, 20001)
        line = np.exp(1j * tangent(at)) * LAP / (2 * math.pi)
        point = np.trapezoid(line, at) + 1j * offset * np.exp(1j * tangent(phase))
        return point, tangent(phase) + heading

    def field(_, y):
        state = torch.tensor([[0.0, 0.0, 0.0, *y[3:]]], dtype=F64)
        yaw, (vx, vy, rate) = y[2], y[3:]
        rest = env.dynamics(0.0, state, u, p)[0, 3:].tolist()
        cos, sin = math.cos(yaw), math.sin(yaw)
        return [vx * cos - vy * sin, vx * sin + vy * cos, rate, *rest]

    point, yaw = place(x)
    begin = [point.real, point.imag, yaw, *x[0, 3:].tolist()]
    reference = solve_ivp(field, (0, time), begin, rtol=1e-8, atol=1e-8).y[:, -1]
    for _ in range(20):
        x, _ = env.step(x, u, p)
        furthest = max(furthest, abs(x[0, 1].item()))
    point, yaw = place(x)
    np.testing.assert_allclose([point.real, point.imag, yaw], reference[:3], rtol=0, atol=1e-5)
    assert furthest > 0.1  # it did wander off the centre line
    assert abs(yaw - begin[2]) > 1.0


def test_the_step_has_the_order_of_its_solver():
    env, x, u = Car(), some_states(20), some_actions(20)
    p = env.params(x)

    def end(steps):
        y = x
        for _ in range(steps):
            y = env.solver.step(env.dynamics, 0.0, y, u, p, 0.03 / steps)
        return y

    exact = end(96)
    coarse, fine = (float((end(n) - exact).abs().max()) for n in (6, 12))
    assert math.log2(coarse / fine) > 3.7
    assert (end(env.substeps) - exact).abs().max() < 2e-2


def test_left_and_right_are_mirror_images_on_the_straight():
    """Velocities do not know the track, so their mirror image is a solution, too."""
    env, x, u = Car(), some_states(50), some_actions(50)
    mirror, flip = torch.tensor([1, -1, -1, 1, -1, -1], dtype=F64), torch.tensor([1, -1], dtype=F64)
    a = env.dynamics(0.0, x, u, env.params(x))
    b = env.dynamics(0.0, mirror * x, flip * u, env.params(x))
    assert torch.allclose(mirror[3:] * a[:, 3:], b[:, 3:], rtol=0, atol=1e-10)


def test_a_lap_changes_nothing_and_a_third_of_it_neither():
    env, x, u = Car(), some_states(20), some_actions(20)
    for laps in (1, -2, 1 / 3):
        y = x.clone()
        y[:, 0] += 2 * math.pi * laps
        assert torch.allclose(env.observe(x), env.observe(y), rtol=0, atol=1e-11)
        (a, cost), (b, other) = env.step(x, u, env.params(x)), env.step(y, u, env.params(x))
        assert torch.allclose(a[:, 1:], b[:, 1:], rtol=0, atol=1e-11)
        assert torch.allclose(cost, other, rtol=0, atol=1e-11)


def test_the_preview_is_the_curvature_ahead():
    env, x = Car(), some_states(10)
    further = x.clone()
    further[:, 0] += 2 * math.pi * 0.7 / LAP
    names = list(env.observation_names)
    now, then = names.index("curvature_0cm"), names.index("curvature_70cm")
    assert torch.allclose(env.observe(x)[:, then], env.observe(further)[:, now], rtol=0, atol=1e-12)


def test_clips_and_clamps():
    env = Car()
    x = torch.zeros(1, 6, dtype=F64)
    x[0, 3] = 1.0
    u = torch.tensor([[3.0, -2.0]], dtype=F64, requires_grad=True)
    following, _ = env.step(x, u, env.params(x))
    assert torch.equal(following, env.step(x, torch.tensor([[1.0, -0.35]], dtype=F64), env.params(x))[0])
    assert not torch.autograd.grad(following.sum(), u)[0].any()
    # Beyond the centre of the bend the progress is that of the clamp, and the offset no longer counts.
    x[0, 1] = 5.0
    x.requires_grad_()
    progress = env.progress(x)
    assert progress.item() == pytest.approx(1.0 / TIGHTEST)
    assert torch.autograd.grad(progress.sum(), x)[0][0, 1] == 0.0


def test_standing_still_is_an_equilibrium_and_no_pole():
    env = Car()
    x = torch.zeros(1, 6, dtype=F64, requires_grad=True)
    u = torch.tensor([[0.0, 0.2]], dtype=F64, requires_grad=True)
    rate = env.dynamics(0.0, x, u, env.params(x))
    assert rate.abs().max() == 0.0
    for gradient in torch.autograd.grad(rate.sum(), (x, u)):
        assert gradient.isfinite().all()


def test_resets_fill_the_start_box_around_the_whole_lap():
    env = Car()
    x = env.reset(4000, torch.Generator().manual_seed(0), F64)
    low, high = env.start_box.bounds(x)
    assert ((x >= low) & (x <= high)).all()
    assert torch.allclose(x.std(0), (high - low) / math.sqrt(12), rtol=0.04)
    assert (x[:, 1].abs() < HALF_WIDTH).all()
