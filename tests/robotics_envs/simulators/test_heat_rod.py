"""The heated rod obeys the heat equation."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from robotics_envs.simulators.heat_rod import CELLS, MAX_POWER, HeatRod, profile
from solvers.methods.chebyshev import RungeKuttaChebyshev
from solvers.methods.runge_kutta import RK4

F64 = torch.float64
LENGTH = 0.25  # m
TAU = LENGTH**2 * 2702.0 * 903.0 / (math.pi**2 * 237.0)  # s, of the slowest mode of the insulated rod
SECTION = math.pi / 4 * 0.02**2  # m²


def middles(cells):
    return (torch.arange(cells, dtype=F64) + 0.5) / cells


def rod(temperatures):
    """States whose targets are 40 °C."""
    return torch.cat((temperatures, temperatures.new_full((len(temperatures), 2), 40.0)), -1)


def insulated(**other):
    """A rod that loses next to nothing: the parameter itself has to be positive."""
    return HeatRod(h=1e-300, **other)


def wild(batch, seed=0, dtype=F64):
    return HeatRod().state_box.sample(batch, torch.Generator().manual_seed(seed), dtype)


def heat(env, x):
    """J above 0 °C."""
    c = {name: constant.value for name, constant in env.constants.items()}
    capacity = c["rho"] * c["cp"] * c["length"] * math.pi / 4 * c["diameter"] ** 2
    return capacity * x[:, :-2].mean(-1)


def test_an_insulated_rod_keeps_its_heat_and_takes_up_what_the_modules_give():
    """To rounding, in each step, whatever the profile: the fluxes cancel in pairs."""
    env, x = insulated(), wild(20)
    start = heat(env, x)
    for power in ((0.0, 0.0), (60.0, -60.0), (35.0, 20.0)):
        u = torch.tensor(power, dtype=F64).expand(20, 2)
        y, _ = env.step(x, u, env.params(x))
        assert (y - x)[:, :-2].abs().max() > 1.0
        assert torch.allclose(heat(env, y), start + sum(power), rtol=1e-13, atol=0)
        assert torch.equal(y[:, -2:], x[:, -2:])


def test_what_the_rod_loses_is_newtons_law_over_its_surface():
    """The mean of the rod follows ``C dT/dt = power - h S (T - ambient)`` exactly, for any profile."""
    env, x = HeatRod(h=25.0), wild(10)
    rate = env.dynamics(0.0, x, torch.tensor([[30.0, 10.0]], dtype=F64).expand(10, 2), env.params(x))
    lost = 25.0 * math.pi * 0.02 * LENGTH * (x[:, :-2].mean(-1) - 20.0)
    assert torch.allclose(heat(env, rate), 40.0 - lost, rtol=1e-10, atol=0)


@pytest.mark.parametrize("mode", [1, 3])
def test_fourier_modes_decay_at_their_rate_to_second_order_in_the_cells(mode):
    """``cos(mode pi s)`` is a mode of the cells too; its rate tends to ``-mode² / tau - 4 h / (rho cp D)``."""
    env = HeatRod()
    expected = -(mode**2) / TAU - 4 * 10.0 / (2702.0 * 903.0 * 0.02)
    errors = []
    for cells in (50, 100, 200):
        shape = torch.cos(mode * math.pi * middles(cells))
        x = rod((20.0 + 5.0 * shape).unsqueeze(0))
        rate = env.dynamics(0.0, x, torch.zeros(1, 2, dtype=F64), env.params(x))[0, :-2]
        assert torch.allclose(rate, (rate @ shape / (shape @ shape)) * shape, rtol=0, atol=1e-9)
        errors.append(abs(float(rate @ shape / (shape @ shape)) / 5.0 - expected))
    assert errors[1] < 1e-4 * mode**2 * abs(expected)
    assert all(math.log2(a / b) == pytest.approx(2.0, abs=0.01) for a, b in itertools.pairwise(errors))


def test_the_slowest_mode_after_a_minute_of_steps():
    env = insulated()
    x = rod((40.0 + 10.0 * torch.cos(math.pi * middles(CELLS))).unsqueeze(0))
    for _ in range(60):
        x, _ = env.step(x, torch.zeros(1, 2, dtype=F64), env.params(x))
    left = 10.0 * math.exp(-60.0 / TAU) * torch.cos(math.pi * middles(CELLS))
    assert torch.allclose(x[0, :-2], 40.0 + left, rtol=0, atol=2e-3)


def test_sudden_heating_is_the_half_infinite_solid():
    """Constant flux into one end, before the other feels it: Carslaw and Jaeger's error-function solution.

    Incropera et al., eq. 5.59.  The first half of the rod shows ``2 q/k sqrt(a t/pi) exp(-s²/(4 a t)) -
    q s/k erfc(s / (2 sqrt(a t)))``.
    """
    env = insulated()
    s, spread = LENGTH * middles(CELLS), 237.0 / (2702.0 * 903.0) * 6.0
    slope = 50.0 / SECTION / 237.0
    rise = slope * (
        2 * math.sqrt(spread / math.pi) * torch.exp(-(s**2) / (4 * spread))
        - s * torch.erfc(s / (2 * math.sqrt(spread)))
    )
    assert rise[0] > 10.0
    u = torch.tensor([[50.0, 0.0]], dtype=F64)
    # The jump of the flux is a corner, which the steps of the simulator, long for the cells, round off.
    for steps, error in ((6, 0.03), (48, 0.003)):
        x = rod(torch.full((1, CELLS), 40.0, dtype=F64))
        for _ in range(steps):
            x = env.solver.step(env.dynamics, 0.0, x, u, env.params(x), 6.0 / steps)
        assert (x[0, :-2] - 40.0 - rise).abs().max() < error * rise[0]


def test_the_steady_profile_of_a_heated_fin():
    """Equal power at both ends: ``q cosh(m (s - L/2)) / (k m sinh(m L/2))`` above ambient, to second order.

    Here in a stainless steel rod with a strong wind, where it is far from flat.
    """
    env = HeatRod(k=14.9, rho=7900.0, cp=477.0, h=100.0)
    m = math.sqrt(4 * 100.0 / (14.9 * 0.02))
    errors = []
    for cells in (50, 100, 200):
        zero, u = torch.zeros(1, cells, dtype=F64), torch.full((1, 2), 5.0, dtype=F64)
        p = env.params(zero)
        rate = lambda temperatures, u=u, p=p: env.dynamics(0.0, rod(temperatures), u, p)[..., :-2]
        # The equations are linear, so their Jacobian solves them.
        jacobian = torch.autograd.functional.jacobian(lambda v, f=rate: f(v[None])[0], zero[0])
        steady = torch.linalg.solve(jacobian, -rate(zero)[0])
        s = LENGTH * middles(cells)
        above = 5.0 / SECTION * torch.cosh(m * (s - LENGTH / 2)) / (14.9 * m * math.sinh(LENGTH / 2 * m))
        errors.append(float((steady - 20.0 - above).abs().max()))
        assert above.max() > 10 * above.min()
    assert errors[1] < 0.01 * above.max()
    assert all(math.log2(a / b) > 1.9 for a, b in itertools.pairwise(errors))


def test_no_temperature_leaves_the_range_of_start_and_surroundings():
    """The maximum principle: of the equations (no neighbour pushes away, and the rows sum to the loss) and of steps."""
    env, x = HeatRod(), wild(1)
    u = torch.zeros(1, 2, dtype=F64)
    f = lambda v: env.dynamics(0.0, rod(v[None]), u, env.params(x))[0, :-2]
    jacobian = torch.autograd.functional.jacobian(f, x[0, :-2])
    away = jacobian - torch.diag(torch.diagonal(jacobian))
    assert away.min() >= 0
    loss = torch.full((CELLS,), 4 * 10.0 / (0.02 * 2702.0 * 903.0), dtype=F64)
    assert torch.allclose(jacobian.sum(-1), -loss, rtol=0, atol=1e-11)
    x, u = wild(50), torch.zeros(50, 2, dtype=F64)
    highest, lowest = x[:, :-2].amax(-1), x[:, :-2].amin(-1)
    for _ in range(90):
        x, _ = env.step(x, u, env.params(x))
        assert (x[:, :-2].amax(-1) <= highest).all()
        assert (x[:, :-2].amin(-1) >= lowest).all()


def test_the_solver_is_of_second_order_and_stable_as_far_as_it_says():
    solver = RungeKuttaChebyshev(11)
    assert 0.64 * 11**2 < solver.limit < 0.66 * 11**2
    assert RungeKuttaChebyshev(5).limit == pytest.approx(0.653 * 25, rel=0.05)
    decay = lambda t, x, u, p: u * x
    one = torch.ones(1, 2000, dtype=F64)
    for part, stable in ((0.999, True), (1.1, False)):
        worst = solver.step(
            decay, 0.0, one, -torch.linspace(0, part * solver.limit, 2000, dtype=F64), None, 1.0
        )
        assert (worst.abs().max() <= 1.0 + 1e-12) == stable
    # A nonlinear problem with a time in it: x' = -x² cos t, x(0) = 1, x = 1 / (1 + sin t).
    f = lambda t, x, u, p: -(x**2) * math.cos(t)
    errors = []
    for steps in (20, 40, 80):
        x = torch.ones(1, 1, dtype=F64)
        for i in range(steps):
            x = solver.step(f, i / steps, x, None, None, 1 / steps)
        errors.append(abs(float(x) - 1 / (1 + math.sin(1.0))))
    assert all(math.log2(a / b) == pytest.approx(2.0, abs=0.15) for a, b in itertools.pairwise(errors))


def test_steps_agree_with_scipy_and_with_rk4_within_its_stability():
    env, p = HeatRod(), None
    x = env.reset(1, torch.Generator().manual_seed(0), F64)
    u = torch.tensor([[80.0, -40.0]], dtype=F64)
    p = env.params(x)
    f = lambda t, y: env.dynamics(0.0, torch.from_numpy(y)[None], u, p)[0].numpy()
    exact = torch.from_numpy(solve_ivp(f, (0.0, 20.0), x[0].numpy(), "LSODA", rtol=1e-10, atol=1e-9).y[:, -1])
    errors = []
    for steps in (20, 40, 80):
        y = x
        for _ in range(steps):
            y = env.solver.step(env.dynamics, 0.0, y, u, p, 20.0 / steps)
        errors.append(float((y[0] - exact).abs().max()))
    # Of temperatures that move by 40 K; the corner that a jump of the power leaves costs some of the order.
    assert errors[0] < 0.5
    assert errors[2] < 0.1 * errors[0]
    outer = 4 * 237.0 / (2702.0 * 903.0) * (CELLS / LENGTH) ** 2  # 62 1/s, what the docstring says
    for steps, stable in ((math.ceil(outer / 2.7), True), (int(outer / 2.9), False)):
        y = wild(1)
        for _ in range(4 * steps):
            y = RK4().step(env.dynamics, 0.0, y, u, p, 1.0 / steps)
        assert bool((y.abs() < 150).all()) == stable


def test_the_rod_is_the_same_from_both_sides_and_the_equations_are_linear():
    env, x = HeatRod(), wild(5)
    u = torch.tensor([[40.0, -10.0]], dtype=F64).expand(5, 2)
    y, cost = env.step(x, u, env.params(x))
    z, mirrored = env.step(torch.cat((x[:, :-2].flip(-1), x[:, -2:].flip(-1)), -1), u.flip(-1), env.params(x))
    assert torch.allclose(z[:, :-2], y[:, :-2].flip(-1), rtol=0, atol=1e-10)
    assert torch.allclose(cost, mirrored, rtol=1e-10)
    middle, _ = env.step((x + wild(5, 1)) / 2, 0.5 * u, env.params(x))
    other, _ = env.step(wild(5, 1), 0 * u, env.params(x))
    assert torch.allclose(middle, (y + other) / 2, rtol=0, atol=1e-10)


def test_the_rod_at_its_profile_costs_nothing_and_is_observed_by_segments():
    env = HeatRod()
    target = torch.tensor([[30.0, 50.0]], dtype=F64)
    x = torch.cat((profile(target, CELLS), target), -1)
    p, off = env.params(x), torch.zeros(1, 2, dtype=F64)
    assert float(env.cost(x, off, p)) == 0.0
    assert float(env.cost(x, off + MAX_POWER, p)) == pytest.approx(0.02)
    assert float(env.cost(torch.cat((x[:, :-2] + 10, target), -1), off, p)) == pytest.approx(1.0)
    assert env.observe(x)[0].tolist() == pytest.approx([32.0, 36.0, 40.0, 44.0, 48.0, 30.0, 50.0])
    # Holding it takes the conducted flux at the ends, as long as the loss is small.
    flux = 237.0 * SECTION * 20.0 / LENGTH
    loss = 10.0 * math.pi * 0.02 * LENGTH * 20.0
    held = torch.tensor([[0.5 * loss - flux, 0.5 * loss + flux]], dtype=F64)
    assert held.abs().max() < 0.2 * MAX_POWER
    for _ in range(90):
        x, _cost = env.step(x, held, p)
    assert (x[0, :-2] - profile(target, CELLS)).abs().max() < 1.5


def test_resets_are_smooth_profiles_within_the_box():
    x = HeatRod().reset(4000, torch.Generator().manual_seed(0), F64)
    temperature, target = x[:, :-2], x[:, -2:]
    assert 10.0 < temperature.min() < 15.0
    assert 65.0 < temperature.max() < 70.0
    assert (temperature[:, 1:] - temperature[:, :-1]).abs().max() < 1.0
    assert torch.allclose(temperature.mean(), torch.tensor(40.0, dtype=F64), atol=0.5)
    assert 30.0 <= target.min() < 30.1
    assert 49.9 < target.max() <= 50.0
    assert np.corrcoef(target.T)[0, 1] == pytest.approx(0.0, abs=0.05)


def test_the_control_with_the_highest_return_succeeds():
    """The criterion is one that the task's own reward leads to: linear dynamics and a quadratic cost in a box."""
    env = HeatRod()
    x = env.reset(16, torch.Generator().manual_seed(1), F64)
    p, steps = env.params(x), env.episode_steps

    def states(x, powers):
        result = [x]
        for u in powers.unbind(0):
            result.append(env.step(result[-1], u * MAX_POWER, p)[0])
        return torch.stack(result)

    def errors(states):
        return states[1:, :, :-2] - profile(states[1:, :, -2:], CELLS)

    inputs = torch.eye(2 * steps, dtype=F64).reshape(2 * steps, steps, 2).transpose(0, 1)
    still = errors(states(x, torch.zeros(steps, 16, 2, dtype=F64)))
    one = x[:1].expand(2 * steps, -1)
    response = errors(states(one, inputs)) - errors(states(one, torch.zeros_like(inputs)))
    hessian = torch.einsum("tbc,tdc->bd", response, response) / CELLS / 100 + 0.01 * torch.eye(2 * steps)
    gradient = torch.einsum("tnc,tbc->nb", still, response) / CELLS / 100
    # The accelerated projected gradient method of Beck and Teboulle, SIAM J. Imaging Sciences 2, 2009.
    powers = ahead = torch.zeros_like(gradient)
    step, t = 1 / torch.linalg.matrix_norm(hessian, 2), 1.0
    for _ in range(2000):
        following = (ahead - step * (ahead @ hessian + gradient)).clamp(-1, 1)
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        ahead, powers, t = following + (t - 1) / t_next * (following - powers), following, t_next
    best = states(x, powers.reshape(16, steps, 2).transpose(0, 1))
    assert env.success(best).all()
    # And no control within the box has a higher return: the projected gradient is zero.
    slope = powers @ hessian + gradient
    assert ((powers - slope).clamp(-1, 1) - powers).abs().max() < 1e-6
