"""torchdiffeq behind our interface: nothing ignored, outputs as accurate as the steps, controls held."""

import math

import pytest
import torch
import torchdiffeq
from torchdiffeq._impl.odeint import SOLVERS as THEIRS

from solvers import SOLVERS, UnknownNameError, make_solver, solve

F64 = torch.float64
OURS = {name.removeprefix("torchdiffeq."): name for name in SOLVERS if name.startswith("torchdiffeq.")}


def turn(t, x, u, p):
    return torch.stack((x[..., 1], -x[..., 0]), -1)


def test_the_whole_menu_is_there():
    assert set(OURS) == set(THEIRS)


@pytest.mark.parametrize("method", sorted(OURS))
@pytest.mark.filterwarnings("error")
def test_options_are_known_to_torchdiffeq_or_refused(method):
    """torchdiffeq warns of an option it does not use; every one in our lists must be used."""
    values = {
        "norm": lambda x: x.abs().max(),
        "min_step": 1e-12,
        "max_step": 0.1,
        "first_step": 0.01,
        "step_t": torch.tensor([0.5], dtype=F64),
        "jump_t": torch.tensor([0.25], dtype=F64),
        "safety": 0.8,
        "ifactor": 5.0,
        "dfactor": 0.3,
        "max_num_steps": 10_000,
        "dtype": F64,
        "grid_constructor": lambda f, x, t: torch.linspace(float(t[0]), float(t[-1]), 201, dtype=F64),
        "interp": "linear",
        "perturb": False,
        "max_iters": 50,
        "max_order": 5,
        "solver": "LSODA",
    }
    solver = make_solver(OURS[method])
    options = {name: values[name] for name in solver.option_names}
    how = {} if solver.adaptive else {"dt": 0.01}
    done = solve(
        turn,
        torch.tensor([[1.0, 0.0]], dtype=F64),
        [0.0, 1.0],
        solver=make_solver(OURS[method], **options),
        **how,
    )
    assert done.xs[-1, 0, 0].item() == pytest.approx(math.cos(1.0), abs=2e-2)
    with pytest.raises(ValueError, match=f"torchdiffeq's {method} has no option rtoll; it has: .*"):
        make_solver(OURS[method], rtoll=1e-3)


def test_options_arrive():
    x0 = torch.tensor([[1.0, 0.0]], dtype=F64)
    free = solve(turn, x0, [0.0, 1.0], solver="torchdiffeq.dopri5")
    short = solve(turn, x0, [0.0, 1.0], solver=make_solver("torchdiffeq.dopri5", max_step=0.01))
    assert short.statistics.accepted.item() >= 100 > free.statistics.accepted.item()
    loose = make_solver("torchdiffeq.dopri5", adjoint_rtol=1e-1, adjoint_atol=1e-1)
    gradients = []
    for solver in (loose, "torchdiffeq.dopri5"):
        x = x0.clone().requires_grad_()
        end = solve(turn, x, [0.0, 6.0], solver=solver, rtol=1e-10, atol=1e-10, adjoint="adjoint").xs[-1]
        gradients.append(torch.autograd.grad(end.sum(), x)[0])
    right = torch.tensor([[math.cos(6.0) - math.sin(6.0), math.cos(6.0) + math.sin(6.0)]], dtype=F64)
    assert (gradients[1] - right).abs().max() < 1e-8 < (gradients[0] - right).abs().max()


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "rk4", "implicit_adams"])
def test_outputs_between_steps_are_as_accurate_as_the_end(method):
    ts = torch.tensor([0.0, 0.1234, 0.5, 0.777, 1.0], dtype=F64)
    name = OURS[method]
    how = {"rtol": 1e-9, "atol": 1e-9} if make_solver(name).adaptive else {"dt": 0.01}
    xs = solve(turn, torch.tensor([[1.0, 0.0]], dtype=F64), ts, solver=name, **how).xs
    errors = (xs[:, 0, 0] - torch.cos(ts)).abs()
    assert errors[1:-1].max() < max(5 * errors[-1], 1e-9)


def test_it_is_torchdiffeq_that_solves():
    x0 = torch.tensor([[1.0, 0.0], [0.3, 0.4]], dtype=F64)
    direct = torchdiffeq.odeint(
        lambda t, x: turn(t, x, None, None), x0, torch.tensor([0.0, 2.0], dtype=F64), method="dopri8", rtol=1e-5,
        atol=1e-5, options={"step_t": torch.tensor([2.0], dtype=F64)},
    )  # fmt: skip
    assert torch.equal(
        solve(turn, x0, [0.0, 2.0], solver="torchdiffeq.dopri8", rtol=1e-5, atol=1e-5).xs, direct
    )


def test_the_scipy_methods_are_reached():
    stiff = lambda t, x, u, p: -1000.0 * (x - math.cos(t))
    x0 = torch.zeros(1, 1, dtype=F64)
    calls = {}
    for method in ("LSODA", "Radau", "BDF", "RK45", "DOP853"):
        done = solve(stiff, x0, [0.0, 2.0], solver=make_solver("torchdiffeq.scipy_solver", solver=method))
        assert done.xs[-1].item() == pytest.approx(math.cos(2.0), abs=2e-3)
        calls[method] = done.statistics.evaluations
    assert calls["Radau"] < calls["RK45"] / 3


def test_an_option_that_scipy_would_ignore_is_refused():
    with pytest.raises(ValueError, match="SciPy's RK45 has no min_step"):
        make_solver("torchdiffeq.scipy_solver", solver="RK45", min_step=1e-6)


def test_a_mistyped_name_is_answered():
    with pytest.raises(UnknownNameError, match=r"did you mean 'torchdiffeq\.dopri8'|did you mean 'dopri5'"):
        make_solver("torchdiffeq.dopr8")
