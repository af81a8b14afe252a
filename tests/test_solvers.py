"""Numerics by mathematics: order of convergence, gradients, energy, tableaus that refuse a typo."""

import math

import numpy as np
import pytest
import torch

from solvers import SOLVERS, make_solver
from solvers.symplectic import SemiImplicitEuler
from solvers.tableau import RK4, ButcherTableau


def oscillator(t, x, u, p):
    """A driven nonlinear pendulum in [q, v]; works for separable and general methods."""
    q, v = x.unbind(-1)
    return torch.stack((v, -p * torch.sin(q) + u), dim=-1)


def integrate(solver, x, p, steps, end=1.0):
    dt = end / steps
    for i in range(steps):
        x = solver.step(oscillator, i * dt, x, 0.3, p, dt)
    return x


@pytest.mark.parametrize("name", SOLVERS)
def test_observed_order_is_the_stated_order(name):
    solver = make_solver(name)
    x0, p = torch.tensor([[1.0, 0.5]], dtype=torch.float64), 2.0
    reference = integrate(make_solver("rk4"), x0, p, 20_000)
    steps = np.array([40, 80, 160, 320])
    errors = [float((integrate(solver, x0, p, n) - reference).norm()) for n in steps]
    slope = np.polyfit(np.log(1 / steps), np.log(errors), 1)[0]
    assert abs(slope - solver.order) < 0.15


@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_of_a_step(name):
    solver = make_solver(name)
    leaf = lambda *v: torch.tensor(v, dtype=torch.float64, requires_grad=True)  # noqa: E731
    x, u, p, dt = leaf([1.0, 0.5], [-0.3, 2.0]), leaf(0.3, -0.1), leaf(2.0, 1.0), leaf(0.1)
    assert torch.autograd.gradcheck(
        lambda x, u, p, dt: solver.step(oscillator, 0.0, x, u, p, dt), (x, u, p, dt)
    )


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(name, dtype):
    x = torch.rand(3, 5, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    stepped = make_solver(name).step(oscillator, 0.0, x, 0.3, 2.0, 0.1)
    assert stepped.shape == x.shape
    assert stepped.dtype == dtype


def test_semi_implicit_euler_bounds_the_energy_where_euler_does_not():
    def drift(solver):
        x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        energy = lambda x: float(0.5 * x[0, 1] ** 2 - 2 * torch.cos(x[0, 0]))  # noqa: E731
        first, worst = energy(x), 0.0
        for _ in range(5_000):
            x = solver.step(oscillator, 0.0, x, 0.0, 2.0, 0.05)
            worst = max(worst, abs(energy(x) - first))
        return worst

    assert drift(make_solver("semi_implicit_euler")) < 0.06  # O(dt), however long
    assert drift(make_solver("euler")) > 1.0


def test_semi_implicit_euler_moves_the_position_with_the_projected_velocity():
    solver = SemiImplicitEuler(project_velocity=lambda v: v.clamp(-1, 1))
    x = solver.step(oscillator, 0.0, torch.tensor([[0.0, 5.0]]), 0.0, 0.0, 0.1)
    assert torch.equal(x, torch.tensor([[0.1, 1.0]]))


def test_semi_implicit_euler_refuses_a_state_without_halves():
    with pytest.raises(ValueError, match=r"even length, got 3 components"):
        make_solver("semi_implicit_euler").step(lambda t, x, u, p: x, 0.0, torch.zeros(1, 3), 0, 0, 0.1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"b": (1 / 6, 1 / 3, 1 / 3, 1 / 3)}, "sum b is"),
        ({"b": (1 / 3, 1 / 6, 1 / 6, 1 / 3), "order": 3}, "sum b c\\^2|sum b a c"),
        ({"c": (0.0, 0.5, 0.4, 1.0)}, "sum of row 2 of a"),
        ({"a": ((1 / 2,), (0.0, 1 / 2))}, "do not describe 4 stages"),
        ({"a": ((1 / 2,), (1 / 2,), (0.0, 0.0, 1.0))}, "row 2 of a has 1 entries, not 2"),
        ({"a": ((0.5,), (0.25, 0.25), (0.0, 0.0, 1.0))}, "sum b a c"),
    ],
)
def test_a_mistyped_tableau_is_refused(change, complaint):
    values = {"name": "typo", "order": 4, "a": RK4.a, "b": RK4.b, "c": RK4.c, "source": "", **change}
    with pytest.raises(ValueError, match=complaint):
        ButcherTableau(**values)


def test_rk4_solves_the_harmonic_oscillator():
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    solver, steps = make_solver("rk4"), 100
    for _ in range(steps):
        x = solver.step(
            lambda t, x, u, p: torch.stack((x[:, 1], -x[:, 0]), -1), 0.0, x, 0, 0, 2 * math.pi / steps
        )
    assert torch.allclose(x, torch.tensor([[1.0, 0.0]], dtype=torch.float64), atol=1e-6)
