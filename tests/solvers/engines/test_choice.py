"""Which engine takes the steps of which problem, and which adjoint differentiates it by default."""

import pytest
import torch
from torch import nn

from solvers import Adjoint, Event, solve
from solvers.engines.eager import EqualSteps, RolloutSteps
from solvers.engines.native import NativeSteps
from solvers.engines.torchdiffeq import TorchdiffeqSteps
from solvers.ivp import ADJOINTS, adjoint_for, engine_for
from solvers.marching.arguments import checked_problem

DEFAULTS = {
    "solver": "tsit5", "dt": None, "rtol": None, "atol": None, "control_times": None, "events": (),
    "on_failure": "raise", "max_steps": None, "controller": None, "event_samples": 8, "max_events": 100,
}  # fmt: skip


class Own(Adjoint):
    def outputs(self, problem, track):
        return track.outputs


def decay(t, x, u, p):
    return -x


def chosen(adjoint=None, backend="eager", **options):
    x0 = torch.ones(2, 3, dtype=torch.float64)
    problem = checked_problem(decay, x0, [0.0, 1.0], None, None, **{**DEFAULTS, **options})
    rule = adjoint_for(problem, adjoint, backend)
    return type(engine_for(problem, rule, backend)), rule.name


FLOOR = Event(lambda t, x, u, p: x[..., 0] - 0.5)
FIXED = {"solver": "rk4", "dt": 0.25}


@pytest.mark.parametrize(
    ("options", "engine", "adjoint"),
    [
        ({}, RolloutSteps, "backprop"),
        (FIXED, EqualSteps, "backprop"),
        ({**FIXED, "solver": "sdirk3"}, EqualSteps, "implicit"),
        ({**FIXED, "solver": "tsit5"}, EqualSteps, "backprop"),
        ({**FIXED, "on_failure": "mark"}, RolloutSteps, "backprop"),
        ({**FIXED, "events": FLOOR}, RolloutSteps, "backprop"),
        ({**FIXED, "max_steps": 4}, EqualSteps, "backprop"),
        ({**FIXED, "max_steps": 3}, RolloutSteps, "backprop"),
        ({**FIXED, "adjoint": Own()}, RolloutSteps, "Own"),
        ({"solver": "torchdiffeq.rk4", "dt": 0.25}, TorchdiffeqSteps, "backprop"),
        ({"solver": "torchdiffeq.scipy_solver", "backend": "eager"}, TorchdiffeqSteps, "adjoint"),
        ({"backend": "native"}, NativeSteps, "checkpoint"),
        ({"backend": "native", "events": FLOOR}, RolloutSteps, "checkpoint"),
        ({**FIXED, "backend": "native"}, EqualSteps, "checkpoint"),
    ],
)
def test_the_engine_and_the_adjoint_of_a_problem(options, engine, adjoint):
    assert chosen(**options) == (engine, adjoint)


def test_the_adjoints_are_named_as_solve_names_them():
    assert list(ADJOINTS) == ["backprop", "implicit", "checkpoint", "adjoint"]


def test_an_adaptive_method_without_an_error_estimate_or_a_dense_output_is_told_so():
    from solvers import Attempt, Solver

    class Bare(Solver):
        order, adaptive, error_order = 1, True, 1
        error = None

        def step(self, f, t, x, u, p, dt):
            return x + torch.as_tensor(dt).unsqueeze(-1) * f(t, x, u, p)

        def attempt(self, f, t, x, u, p, dt, start_slope=None):
            return Attempt(self.step(f, t, x, u, p, dt), self.error)

    x0 = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(
        TypeError, match="solver 'Bare' calls itself adaptive, but its attempt returns no error"
    ):
        solve(decay, x0, [0.0, 1.0], solver=Bare())
    bare = Bare()
    bare.error = torch.zeros_like(x0)
    assert solve(decay, x0, [0.0, 1.0], solver=bare).ok.all()
    with pytest.raises(TypeError, match="solver 'Bare' has no dense output for the requested times"):
        solve(decay, x0, [0.0, 0.5, 1.0], solver=bare)


def test_a_module_is_differentiated_by_every_engine():
    """Its parameters are found in f itself."""
    torch.manual_seed(0)
    net = nn.Linear(3, 3).double()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, x, u, p):
            return torch.tanh(self.net(x))

    field, results = Field(), []
    for options in (
        {},
        {"adjoint": "checkpoint"},
        {"adjoint": "adjoint"},
        {"solver": "torchdiffeq.dopri5", "adjoint": "adjoint"},
        {"solver": "rk4", "dt": 0.01},
    ):
        tight = {} if "dt" in options else {"rtol": 1e-10, "atol": 1e-10}
        xs = solve(field, torch.ones(2, 3, dtype=torch.float64), [0.0, 1.0], **options, **tight).xs
        results.append(torch.autograd.grad(xs[-1].sum(), list(net.parameters())))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.allclose(one, two, rtol=1e-6, atol=1e-8)
