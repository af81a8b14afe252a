"""The reactor keeps its balances, has its published steady states, and is integrated through ignition."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from robotics_envs.simulators.reactor import Reactor, pace, resolvent, speed
from solvers.methods.paced import PacedRosenbrock

F64 = torch.float64
RISE = 5e4 / (1000.0 * 0.239)  # K by mol/L, what the reaction heats


def states(batch, seed=0, dtype=F64):
    return Reactor().state_box.sample(batch, torch.Generator().manual_seed(seed), dtype)


def nominal(env):
    """The middle steady state and the inlet temperature that holds it."""
    p = env.params(torch.zeros((), dtype=F64))
    c, jacket, held = env.steady(p)
    return torch.stack((c, p["set_point"], jacket))[None], held.reshape(1, 1), p


def jacobian(env, x, u, p):
    f = lambda v: env.dynamics(0.0, v[None], u[None], p)[0]
    return torch.stack([torch.autograd.functional.jacobian(f, row) for row in x])


def reference(env, x, u, minutes, dense=None):
    """SciPy's Radau with the Jacobian by autograd."""
    p = env.params(x)
    f = lambda t, y: env.dynamics(0.0, torch.from_numpy(y)[None], u, p)[0].numpy()
    j = lambda t, y: jacobian(env, torch.from_numpy(y)[None], u[0], p)[0].numpy()
    times = None if dense is None else np.asarray(dense)
    return solve_ivp(f, (0.0, minutes), x[0].numpy(), "Radau", times, jac=j, rtol=1e-10, atol=1e-10).y


def test_a_closed_adiabatic_tank_keeps_energy_along_its_adiabat():
    """Without flow, jacket and feed, ``T + heat / (rho cp) c`` stays, to rounding, while all of A burns."""
    env = Reactor(q=1e-300, UA=1e-300)
    x, p = states(20), None
    p = env.params(x)
    u = x[:, 2:]
    kept = x[:, 1] + RISE * x[:, 0]
    y = x
    for _ in range(10):
        y, _ = env.step(y, u, p)
        assert torch.allclose(y[:, 1] + RISE * y[:, 0], kept, rtol=1e-13, atol=0)
    assert (y[:, 0] < 1e-6).any()
    assert (y[:, 1] > x[:, 1]).all()


def test_mass_and_energy_balances():
    """Of all that flows, with the numbers of the source written out; J/min and mol/min."""
    env, x = Reactor(), states(50)
    u = torch.full((50, 1), 280.0, dtype=F64)
    c, temperature, jacket = x.unbind(-1)
    dc, dt, dj = env.dynamics(0.0, x, u, env.params(x)).unbind(-1)
    burnt = 7.2e10 * torch.exp(-8750.0 / temperature) * c * 100.0  # mol/min
    assert torch.allclose(100.0 * dc, 100.0 * (1.0 - c) - burnt, rtol=1e-12, atol=1e-9)
    stored = 100.0 * 1000.0 * 0.239 * dt + 5.0 * 4184.0 * dj
    carried = 100.0 * 1000.0 * 0.239 * (350.0 - temperature) + 100.0 * 4184.0 * (280.0 - jacket)
    assert torch.allclose(stored, carried + 5e4 * burnt, rtol=1e-12, atol=1e-3)
    # With nothing but flow the tank is washed out with its residence time, one minute.
    still = Reactor(k0=1e-300)
    y = x
    for _ in range(10):
        y, _ = still.step(y, u, still.params(x))
    assert torch.allclose(1 - y[:, 0], (1 - c) * math.exp(-1.0), rtol=1e-4, atol=0)


def test_the_three_steady_states():
    """The nominal one of the source, 0.5 mol/L and 350 K at a jacket of 300 K, and two more about it."""
    env = Reactor()
    x, held, p = nominal(env)
    assert torch.allclose(x[0], torch.tensor([0.5, 350.0, 300.0], dtype=F64), atol=0.02)
    assert env.dynamics(0.0, x, held, p).abs().max() < 1e-9
    assert float(env.cost(x, held, p)) == pytest.approx(0.0, abs=1e-15)

    # Heat released less heat taken away as a function of temperature alone, from the balances by hand.
    def surplus(temperature):
        k = 7.2e10 * math.exp(-8750.0 / temperature)
        return 23900.0 * (350.0 - temperature) + 5e6 * k / (1 + k) - 5e4 * (temperature - 300.0)

    found = [brentq(surplus, a, b, xtol=1e-12) for a, b in ((300, 335), (335, 360), (360, 400))]
    assert found == pytest.approx([324.475, 350.006, 369.705], abs=1e-3)
    grid = np.array([surplus(v) for v in np.linspace(280.0, 600.0, 3201)])
    assert (np.diff(np.sign(grid)) != 0).sum() == 3
    for temperature, unstable in zip(found, (0, 1, 2), strict=True):
        k = 7.2e10 * math.exp(-8750.0 / temperature)
        y = torch.tensor([[1 / (1 + k), temperature, 300.0]], dtype=F64)
        u = (y[:, 2:] - 5e4 * (temperature - 300.0) / (100.0 * 4184.0)).reshape(1, 1)
        assert env.dynamics(0.0, y, u, p).abs().max() < 1e-6
        assert int((torch.linalg.eigvals(jacobian(env, y, u[0], p)).real > 0).sum()) == unstable


def test_left_alone_the_middle_state_goes_out_or_runs_away():
    env = Reactor()
    x, held, p = nominal(env)
    x, u = x.repeat(2, 1), held.repeat(2, 1)
    x = x + torch.tensor([[0.0, -0.5, 0.0], [0.0, 0.5, 0.0]], dtype=F64)
    peak = x[1, 1]
    for _ in range(60):
        x, _ = env.step(x, u, p)
        peak = torch.maximum(peak, x[1, 1])
    assert x[0, 1] < 330.0
    assert peak > 400.0


def test_the_resolvent_has_the_jacobian_of_the_dynamics():
    env, x = Reactor(), states(30)
    x[0, 1], x[1, 1] = 150.0, 800.0  # where Arrhenius's law is not followed any more
    p, u = env.params(x), torch.full((30, 1), 300.0, dtype=F64)
    h = torch.linspace(0.0, 0.05, 30, dtype=F64)
    right = torch.randn(30, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    matrix = torch.eye(3, dtype=F64) - h[:, None, None] * jacobian(env, x, u[0], p)
    exact = torch.linalg.solve(matrix, right.unsqueeze(-1))[..., 0]
    assert torch.allclose(resolvent(x, h, p)(right), exact, rtol=1e-9, atol=1e-12)


def test_an_ignition_is_stiff():
    """Right after it: eigenvalues a thousand times apart; explicit steps of the mean length are unstable there."""
    env = Reactor()
    x = torch.tensor([[0.9, 380.0, 300.0]], dtype=F64)
    u = torch.full((1, 1), 280.0, dtype=F64)
    path = torch.from_numpy(reference(env, x, u, 0.06)).T
    values = torch.linalg.eigvals(jacobian(env, path, u[0], env.params(x))).real
    ratios = values.abs().amax(-1) / values.abs().amin(-1)
    assert path[:, 1].max() > 540.0
    assert env.dynamics(0.0, path, u.expand(len(path), 1), env.params(x))[:, 1].max() > 1e4
    burnt = values.amax(-1) < 0
    assert ratios[burnt].max() > 1e3
    assert values[burnt].min() < -1e3


def test_steps_agree_with_radau_through_an_ignition():
    """Before, during and after it. During it the temperature rises by 100 K in 0.002 minutes."""
    env = Reactor()
    u = torch.full((1, 1), 280.0, dtype=F64)
    for start, minutes, error in (
        ((0.5, 345.0, 295.0), 1.0, 0.01),  # calm
        ((0.9, 380.0, 300.0), 0.1, 0.5),  # through ignition in the first interval
        ((0.7, 362.0, 290.0), 1.0, 0.1),  # ignites later
    ):
        x = torch.tensor([start], dtype=F64)
        exact = torch.from_numpy(reference(env, x, u, minutes)[:, -1])
        y = x
        for _ in range(round(minutes / 0.1)):
            y, _ = env.step(y, u, env.params(x))
        assert abs(float(y[0, 1] - exact[1])) < error
        assert abs(float(y[0, 0] - exact[0])) < error / 100


def test_the_solver_is_of_third_order():
    env = Reactor()
    x, u = torch.tensor([[0.5, 345.0, 295.0]], dtype=F64), torch.full((1, 1), 280.0, dtype=F64)
    p = env.params(x)
    exact = torch.from_numpy(reference(env, x, u, 0.2)[:, -1])
    errors = []
    for intervals in (4, 8, 16):
        y = x
        for _ in range(intervals):
            y = env.solver.step(env.dynamics, 0.0, y, u, p, 0.2 / intervals)
        errors.append(float((y[0] - exact).abs().max()))
    assert all(math.log2(a / b) == pytest.approx(3.0, abs=0.3) for a, b in itertools.pairwise(errors))


def test_the_solver_is_l_stable_and_all_of_the_interval_is_spent():
    """``x' = rate x``: decay however fast, to nothing; and the exact growth of time in uneven steps."""
    solve = lambda x, h, p: lambda right: right / (1 - h * p).unsqueeze(-1)
    calm = lambda x, slope, p: torch.zeros_like(x[:, 0])
    decay = lambda t, x, u, p: p.unsqueeze(-1) * x
    rates = -(10.0 ** torch.arange(-2, 9, dtype=F64))
    one = torch.ones(len(rates), 1, dtype=F64)
    left = PacedRosenbrock(solve, calm, 4).step(decay, 0.0, one, None, rates, 1.0)[:, 0]
    assert (left.abs() < 1).all()
    assert left[-1].abs() < 1e-12
    hurried = lambda x, slope, p: 5.0 + x[:, 0] ** 2 + torch.arange(len(x), dtype=F64)
    clock = lambda t, x, u, p: torch.ones_like(x)
    still = lambda x, h, p: lambda right: right
    for steps in (4, 16):
        passed = PacedRosenbrock(still, hurried, steps).step(clock, 0.0, one, None, None, 0.7)
        assert torch.allclose(passed, one + 0.7, rtol=0, atol=1e-14)


def test_the_paces_steps_stay_clear_of_the_pole():
    """A growing eigenvalue of reaction alone times the step that the pace allows is below 0.75."""
    env = Reactor()
    x = torch.stack(
        torch.meshgrid(
            torch.linspace(0, 1, 30, dtype=F64), torch.linspace(300, 600, 60, dtype=F64), indexing="ij"
        ),
        -1,
    )
    x = torch.cat((x.reshape(-1, 2), torch.full((1800, 1), 300.0, dtype=F64)), -1)
    p, u = env.params(x), torch.full((1800, 1), 280.0, dtype=F64)
    adiabatic = Reactor(q=1e-300, UA=1e-300)
    slope = adiabatic.dynamics(0.0, x, u, adiabatic.params(x))
    growing = torch.linalg.eigvals(jacobian(adiabatic, x[::7], u[0], adiabatic.params(x))).real.amax(-1)
    assert growing.max() > 500.0
    assert (growing <= 0.75 * pace(x, slope, p)[::7] + 1e-6).all()


def test_arrhenius_follows_the_law_and_its_derivative():
    p = Reactor().params(torch.zeros((), dtype=F64))
    t = torch.tensor([150.0, 250.0, 350.0, 500.0, 699.0, 900.0], dtype=F64, requires_grad=True)
    k, slope = speed(t, p)
    assert float(k[2].detach()) == pytest.approx(7.2e10 * math.exp(-25.0))
    (by_autograd,) = torch.autograd.grad(k.sum(), t)
    assert torch.allclose(slope, by_autograd, rtol=1e-12)
    assert slope[0] == slope[-1] == 0


def test_gradients_through_an_ignition_agree_with_finite_differences():
    env, u = Reactor(), torch.full((1, 1), 280.0, dtype=F64)
    x = torch.tensor([[0.85, 375.0, 300.0]], dtype=F64, requires_grad=True)

    def after(x):
        for _ in range(3):
            x, _ = env.step(x, u, env.params(x))
        return x

    assert torch.autograd.gradcheck(after, x, eps=1e-6, rtol=1e-3, atol=1e-6)


def test_resets_are_in_the_start_box():
    x = Reactor().reset(2000, torch.Generator().manual_seed(0), F64)
    for column, (low, high) in zip(x.T, ((0.3, 0.65), (330.0, 352.0), (285.0, 305.0)), strict=True):
        assert low <= column.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < column.max() <= high


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_200_wild_steps_stay_finite(dtype):
    env, generator = Reactor(), torch.Generator().manual_seed(0)
    low, high = env.state_box.bounds(torch.zeros((), dtype=dtype))
    x = (low + high) / 2 + 3 * (states(32, dtype=dtype) - (low + high) / 2)
    p, y = env.params(x), x
    for i in range(200):
        if i in (0, 180):  # gradients of the first and the last 20
            y = start = y.detach().requires_grad_()
            total = torch.zeros((), dtype=dtype)
        u = 270.0 + 50.0 * torch.rand(32, 1, generator=generator, dtype=dtype).round()
        with torch.set_grad_enabled(i < 20 or i >= 180):
            y, cost = env.step(y, u, p)
            total = total + cost.sum()
        assert torch.isfinite(y).all()
        if i in (19, 199):
            (gradient,) = torch.autograd.grad(total, start)
            assert torch.isfinite(gradient).all()
            assert gradient.any()
    # From wherever it began, it ends among the temperatures that feed can reach.
    assert y[:, 0].min() > -0.001
    assert y[:, 0].max() < 1.0
    assert y[:, 1].min() > 290.0
    assert y[:, 1].max() < 560.0
