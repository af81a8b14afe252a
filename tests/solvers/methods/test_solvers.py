"""Single steps by mathematics: order of convergence, gradients, energy, tableaus that refuse a typo."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from solvers import SOLVERS, make_solver, solve
from solvers.methods.symplectic import SemiImplicitEuler
from solvers.methods.tableau import DOPRI5, RK4, SDIRK3, TSIT5, ButcherTableau, rooted_trees

OURS = [name for name in SOLVERS if not name.startswith("torchdiffeq.")]


def linear(t, x, u, p):
    """A driven harmonic oscillator in [q, v]; works for separable and general methods."""
    q, v = x.unbind(-1)
    return torch.stack((v, -p * q + u + 0.5 * torch.cos(2 * torch.as_tensor(t))), dim=-1)


def pendulum(t, x, u, p):
    """The same with a sine."""
    q, v = x.unbind(-1)
    return torch.stack((v, -p * torch.sin(q) + u + 0.5 * torch.cos(2 * torch.as_tensor(t))), dim=-1)


X0 = torch.tensor([[1.0, 0.5], [-0.4, 0.7]], dtype=torch.float64)
END = 3.0
# Fine enough for the leading term of the error (Tsit5's is so small that the next one shows for long), and
# coarse enough to stay above rounding.
STEPS = {1: (400, 800), 2: (100, 200, 400), 3: (50, 100, 200), 4: (50, 100, 200), 5: (60, 80, 120)}
FINER = {
    ("tsit5", "linear"): (240, 300, 400),
    ("tsit5", "pendulum"): (240, 300, 400),
    ("dopri5", "pendulum"): (120, 160, 240),
    ("torchdiffeq.dopri5", "pendulum"): (120, 160, 240),
    ("torchdiffeq.dopri8", "linear"): (16, 20, 24),
    ("torchdiffeq.dopri8", "pendulum"): (32, 36, 40),
}


def end_state(name, field, steps):
    """At equal steps; torchdiffeq's adaptive methods are held to them by a tolerance that nothing exceeds."""
    if name.startswith("torchdiffeq.") and make_solver(name).adaptive:
        solver = make_solver(name, first_step=END / steps, max_step=END / steps)
        return solve(field, X0, [0.0, END], 0.3, 4.0, solver=solver, rtol=1e8, atol=1e8).xs[-1]
    options, tolerances = {}, {}
    if "implicit_adams" in name or "fixed_adams" in name:
        options, tolerances = {"max_iters": 100}, {"rtol": 1e-13, "atol": 1e-13}
    solver = make_solver(name, **options)
    return solve(field, X0, [0.0, END], 0.3, 4.0, solver=solver, dt=END / steps, **tolerances).xs[-1]


@pytest.fixture(scope="module")
def exact():
    """To rounding: two step sizes agree, and SciPy's DOP853 to its tolerance."""
    from scipy.integrate import solve_ivp

    def reference(field):
        def right(t, x):
            return field(t, torch.tensor(x).reshape(2, 2), 0.3, 4.0).numpy().reshape(-1)

        done = solve_ivp(right, (0, END), X0.numpy().reshape(-1), method="DOP853", rtol=1e-12, atol=1e-12)
        fine, finer = (end_state("dopri5", field, n) for n in (1500, 2000))
        assert (fine - finer).abs().max() < 5e-14
        assert (finer - torch.tensor(done.y[:, -1]).reshape(2, 2)).abs().max() < 1e-10
        return finer

    return {field: reference(field) for field in (linear, pendulum)}


# SciPy's methods choose their steps and their orders.
@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "torchdiffeq.scipy_solver"])
@pytest.mark.parametrize("field", [linear, pendulum])
def test_observed_order_is_the_stated_order(name, field, exact):
    order = make_solver(name).order
    steps = FINER.get((name, field.__name__)) or STEPS[order]
    errors = [float((end_state(name, field, n) - exact[field]).norm()) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15


@pytest.mark.parametrize("name", OURS)
def test_gradients_of_a_step(name):
    solver = make_solver(name)
    leaf = lambda *v: torch.tensor(v, dtype=torch.float64, requires_grad=True)
    x, u, p, dt = leaf([1.0, 0.5], [-0.3, 2.0]), leaf(0.3, -0.1), leaf(2.0, 1.0), leaf(0.1, 0.2)
    t = leaf(0.4, -0.3)
    assert torch.autograd.gradcheck(
        lambda t, x, u, p, dt: solver.step(pendulum, t, x, u, p, dt), (t, x, u, p, dt)
    )


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(name, dtype):
    x = torch.rand(3, 5, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    stepped = make_solver(name).step(pendulum, 0.0, x, 0.3, 2.0, 0.1)
    assert stepped.shape == x.shape
    assert stepped.dtype == dtype


@pytest.mark.parametrize("name", OURS)
def test_a_step_of_length_zero_is_the_identity(name):
    """Rejected and finished rollouts repeat such steps; their gradient must be the identity too."""
    x, p = X0.clone().requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    stepped = make_solver(name).step(pendulum, zero, x, 0.3, p, zero)
    assert torch.equal(stepped, x)
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    by_x, by_p = torch.autograd.grad((stepped * weights).sum(), (x, p))
    assert torch.equal(by_x, weights)
    assert by_p == 0


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("semi_implicit_euler", 0.06),
        ("stormer_verlet", 1e-3),
        pytest.param("yoshida4", 2e-5, marks=pytest.mark.slow),
    ],
)
def test_symplectic_methods_bound_the_energy_of_a_pendulum(name, bound):
    """Over 1e5 steps, about 1,000 periods; the worst error of the last tenth is that of the first."""
    solver, x = make_solver(name), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    # Traced: the same operations without Python between them.
    step = torch.jit.trace(
        lambda x: solver.step(free_pendulum, 0.0, x, None, None, 0.05), x, check_trace=False
    )
    check_energy(step, x, 100_000, bound)


def test_implicit_midpoint_bounds_the_energy_of_a_pendulum():
    """Over 1,000 steps here; over 1e5 in benchmarks/symplectic_energy.py."""
    solver, x = make_solver("implicit_midpoint"), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    check_energy(lambda x: solver.step(free_pendulum, 0.0, x, None, None, 0.05), x, 1_000, 1e-3)


def free_pendulum(t, x, u, p):
    return torch.stack((x[..., 1], -2.0 * torch.sin(x[..., 0])), -1)


def check_energy(step, x, steps, bound):
    states = [x]
    with torch.no_grad():
        for _ in range(steps):
            states.append(step(states[-1]))
    track = torch.cat(states)
    error = (0.5 * track[:, 1] ** 2 - 2 * torch.cos(track[:, 0]) + 2 * math.cos(1.0)).abs()
    tenth = len(error) // 10
    assert error.max() < bound
    assert error[-tenth:].max() < 1.05 * error[:tenth].max()


def test_euler_gains_energy_where_symplectic_methods_do_not():
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    end = solve(free_pendulum, x, [0.0, 250.0], solver="euler", dt=0.05).xs[-1, 0]
    assert 0.5 * end[1] ** 2 - 2 * torch.cos(end[0]) > -2 * math.cos(1.0) + 1.0


def test_implicit_midpoint_keeps_a_quadratic_invariant():
    spin = lambda t, x, u, p: torch.stack(
        (x[..., 1] * x[..., 2], -2 * x[..., 0] * x[..., 2], x[..., 0] * x[..., 1]), -1
    )
    x0 = torch.tensor([[0.3, 0.8, -0.5]], dtype=torch.float64)
    xs = solve(spin, x0, [0.0, 20.0], solver="implicit_midpoint", dt=0.2).xs
    assert torch.allclose((xs[-1] ** 2).sum(), (x0**2).sum(), rtol=1e-12)


@pytest.mark.parametrize("name", ["backward_euler", "sdirk3", "rodas5p"])
def test_l_stable_methods_damp_what_a_step_cannot_resolve(name):
    x = make_solver(name).step(
        lambda t, x, u, p: -1e8 * x, 0.0, torch.ones(1, 1, dtype=torch.float64), 0, 0, 1.0
    )
    assert x.abs() < 1e-6


def test_implicit_midpoint_does_not_damp():
    x = make_solver("implicit_midpoint").step(
        lambda t, x, u, p: -1e8 * x, 0.0, torch.ones(1, 1, dtype=torch.float64), 0, 0, 1.0
    )
    assert torch.allclose(x, -torch.ones(1, 1, dtype=torch.float64), rtol=1e-6)


def test_newton_needs_an_iteration_for_a_linear_field():
    calls = 0

    def field(t, x, u, p):
        nonlocal calls
        calls += 1
        return -3.0 * x

    with torch.no_grad():
        x = make_solver("backward_euler").step(field, 0.0, torch.ones(1, 1, dtype=torch.float64), 0, 0, 0.5)
    assert torch.allclose(x, torch.tensor([[1 / 2.5]], dtype=torch.float64), rtol=1e-14)
    # One iteration, one that finds nothing left to do, the final Jacobian, the correction and its slope.
    assert calls == 5


def test_semi_implicit_euler_moves_the_position_with_the_projected_velocity():
    solver = SemiImplicitEuler(project_velocity=lambda v: v.clamp(-1, 1))
    x = solver.step(
        lambda t, x, u, p: torch.stack((x[..., 1], 0 * x[..., 0]), -1),
        0.0,
        torch.tensor([[0.0, 5.0]]),
        0.0,
        0.0,
        0.1,
    )
    assert torch.equal(x, torch.tensor([[0.1, 1.0]]))


@pytest.mark.parametrize("name", ["semi_implicit_euler", "stormer_verlet", "yoshida4"])
def test_methods_for_velocities_refuse_a_state_without_halves(name):
    with pytest.raises(ValueError, match=r"even length, got 3 components"):
        make_solver(name).step(lambda t, x, u, p: x, 0.0, torch.zeros(1, 3), 0, 0, 0.1)


def test_the_number_of_order_conditions_is_that_of_rooted_trees():
    assert [len(rooted_trees(k)) for k in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize(
    ("table", "change", "complaint"),
    [
        (RK4, {"b": (1 / 6, 1 / 3, 1 / 3, 1 / 3)}, "of order 1"),
        (RK4, {"b": (1 / 3, 1 / 6, 1 / 6, 1 / 3), "order": 3}, "of order 3"),
        (RK4, {"c": (0.0, 0.5, 0.4, 1.0)}, "sum of row 2 of a"),
        (RK4, {"a": ((), (1 / 2,), (0.0, 1 / 2))}, "do not describe 4 stages"),
        (RK4, {"a": ((), (1 / 2,), (1 / 2,), (0.0, 0.0, 1.0))}, "row 2 of a has 1 entries, not 2"),
        (RK4, {"a": ((), (0.5,), (0.25, 0.25), (0.0, 0.0, 1.0))}, "of order 3"),
        (RK4, {"order": 5}, "of order 5"),
        (TSIT5, {"order": 6}, "of order 6"),
        (TSIT5, {"b_error": (*TSIT5.b_error[:-1], 1 / 66)}, "embedded"),
        (DOPRI5, {"error_order": 6}, "embedded"),
        (DOPRI5, {"dense_order": 5}, "dense output"),
        (TSIT5, {"dense": (*TSIT5.dense[:-1], (0.0, 1.5, -4.0, 2.6))}, r"b_6\(1\)|dense output"),
        (SDIRK3, {"order": 4}, "of order 4"),
    ],
)
def test_a_mistyped_tableau_is_refused(table, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(table, **change)


def test_every_coefficient_of_the_pairs_is_guarded():
    """A change in the tenth digit of any coefficient is noticed."""
    for table in (TSIT5, DOPRI5):
        for i, row in enumerate(table.a):
            for j, value in enumerate(row):
                changed = [list(r) for r in table.a]
                changed[i][j] = value + 1e-10
                with pytest.raises(ValueError, match="tableau"):
                    replace(table, a=tuple(map(tuple, changed)))


@pytest.mark.parametrize("name", ["tsit5", "dopri5", "rodas5p"])
def test_dense_output_has_order_four(name, exact):
    """Its local error falls with the fifth power of the step."""
    solver, theta = make_solver(name), torch.tensor([[0.3], [0.5], [0.8]], dtype=torch.float64).expand(3, 2)
    errors, steps = [], (0.2, 0.1, 0.05)
    for h in steps:
        dense = solver.attempt(pendulum, torch.zeros(2, dtype=torch.float64), X0, 0.3, 4.0, h).dense(theta)
        fine = [
            solve(pendulum, X0, [0.0, h * s], 0.3, 4.0, solver="dopri5", dt=h / 40).xs[-1]
            for s in (0.3, 0.5, 0.8)
        ]
        errors.append(float((dense - torch.stack(fine)).abs().max()))
    assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(5, abs=0.4)


def test_an_own_tableau_is_a_solver():
    class Ralston(type(make_solver("rk4")).__mro__[1]):
        tableau = ButcherTableau("ralston", 2, ((), (2 / 3,)), (1 / 4, 3 / 4), (0.0, 2 / 3), "Ralston 1962")

    assert Ralston().order == 2
    xs = solve(
        lambda t, x, u, p: -x, torch.ones(1, 1, dtype=torch.float64), [0.0, 1.0], solver=Ralston(), dt=1e-3
    ).xs
    assert xs[-1] == pytest.approx(math.exp(-1), abs=1e-6)


@pytest.mark.parametrize("name", [n for n in OURS if "implicit" not in make_solver(n).adjoints])
def test_a_step_stays_on_its_device_and_asks_for_no_value(name):
    """On the meta device, where a value or a tensor made elsewhere is an error.  (Newton has to ask.)"""
    x, times = torch.zeros(4, 2, device="meta"), torch.zeros(4, device="meta")
    free = lambda t, x, u, p: torch.stack((x[..., 1], -p * torch.sin(x[..., 0])), -1)
    attempt = make_solver(name).attempt(free, times, x, None, torch.zeros((), device="meta"), times)
    assert attempt.x.device.type == "meta"
    assert attempt.x.shape == x.shape


@pytest.mark.parametrize("name", ["heun", "midpoint", "rk4"])
def test_a_step_has_the_gradient_of_its_stages_to_the_last_bit(name):
    """``step`` is written out apart from ``stages``: the order of its operations decides how gradients are rounded."""
    method, g = make_solver(name), torch.Generator().manual_seed(0)
    new = lambda *shape: torch.rand(*shape, generator=g).requires_grad_()
    t, x, p, dt = new(64), new(64, 2), new(()), new(64)
    field = lambda t, x, u, p: torch.stack((x[..., 1], -p * torch.sin(x[..., 0]) + torch.cos(t)), -1)
    _, slopes = method.stages(field, t, x, None, p, dt)
    weighted = [b * k for b, k in zip(method.tableau.b, slopes, strict=True) if b != 0.0]
    total = weighted[0]
    for term in weighted[1:]:
        total = total + term
    by_stages = x + dt.unsqueeze(-1) * total
    by_step = method.step(field, t, x, None, p, dt)
    assert torch.equal(by_step, by_stages)
    for one, other in zip(
        *(torch.autograd.grad(y.sum(), (t, x, p, dt)) for y in (by_step, by_stages)), strict=True
    ):
        assert torch.equal(one, other)
