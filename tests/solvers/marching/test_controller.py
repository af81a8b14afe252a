"""Step-size controllers of a user's own in :func:`solvers.solve`."""

import logging

import pytest
import torch
from stubs import F64, AdaptiveStub, CountedField, Script

from solvers import Controller, StepSizeController, make_solver, solve

ONE = torch.zeros(1, 1, dtype=F64)


class Halving:
    """Steps of an own choice: no base class and no ``max_step``; halved after a rejection, otherwise as long."""

    def __init__(self, tolerance):
        self.tolerance = tolerance

    def first(self, f, t, x, u, p, slope, span, order):
        return span

    def scaled_error(self, error, x, x_new):
        return error.abs().amax(-1) / self.tolerance

    def factor(self, error, before, order):
        return torch.where(error <= 1.0, 1.0, 0.5).to(error)


def turn(t, x, u, p):
    return torch.stack((x[..., 1], -p * x[..., 0]), -1)


OWN_ADAPTIVE = ["tsit5", "dopri5", "rodas5p"]


@pytest.mark.parametrize(("name", "adjoint"), [(n, a) for n in OWN_ADAPTIVE for a in make_solver(n).adjoints])
def test_an_own_controller_chooses_the_steps_of_the_solve_and_of_its_gradient(name, adjoint):
    p = torch.tensor(4.0, dtype=F64, requires_grad=True)
    x0 = torch.tensor([[1.0, 0.0]], dtype=F64)
    how = {"controller": Halving(1e-9), "solver": name, "adjoint": adjoint}
    done = solve(turn, x0, [0.0, 1.0], None, p, **how)
    assert done.xs[-1, 0, 0].item() == pytest.approx(torch.cos(torch.tensor(2.0, dtype=F64)).item(), abs=1e-7)
    (by_p,) = torch.autograd.grad(done.xs[-1, 0, 0], p)
    assert by_p.item() == pytest.approx(-torch.sin(torch.tensor(2.0, dtype=F64)).item() / 4, abs=1e-6)
    # All steps have one length, 2^-k: the first attempts are too long, the others are accepted.
    (accepted,), (rejected,) = done.statistics.accepted.tolist(), done.statistics.rejected.tolist()
    assert accepted == 2**rejected > 1


def test_a_script_decides_which_steps_are_accepted():
    method = AdaptiveStub()
    errors = [[2.0], [2.0], [0.5], [2.0], [0.5]]
    done = solve(CountedField(), ONE, [0.0, 0.5], solver=method, controller=Script(0.5, errors))
    assert done.statistics.rejected.tolist() == [3]
    assert [h for _, h in method.calls] == [[0.5], [0.25], [0.125], [0.125], *[[0.0625]] * 6]
    assert done.statistics.accepted.tolist() == [7]


def test_a_scaled_error_of_one_is_accepted_and_nan_is_not():
    method = AdaptiveStub()
    done = solve(CountedField(), ONE, [0.0, 1.0], solver=method, controller=Script(1.0, [[1.0]]))
    assert (done.statistics.accepted.item(), done.statistics.rejected.item()) == (1, 0)
    script = Script(1.0, [[float("nan")]])
    done = solve(CountedField(), ONE, [0.0, 1.0], solver=method, controller=script)
    assert (done.statistics.accepted.item(), done.statistics.rejected.item()) == (2, 1)
    assert script.asked_factor[0][0] == [float("inf")]


@pytest.mark.parametrize("wrong", [StepSizeController, Halving, object(), 1e-3, "pi"])
def test_what_is_no_controller_is_refused(wrong):
    with pytest.raises(
        TypeError, match=r"controller must be an object with the methods first, scaled_error, factor"
    ):
        solve(CountedField(), ONE, [0.0, 1.0], controller=wrong)


def test_an_own_controller_takes_no_tolerances():
    with pytest.raises(ValueError, match="rtol and atol belong to the controller"):
        solve(CountedField(), ONE, [0.0, 1.0], controller=Halving(1.0), rtol=1e-3)
    with pytest.raises(
        ValueError, match="dt asks for steps of fixed length, which controller cannot control"
    ):
        solve(CountedField(), ONE, [0.0, 1.0], controller=Halving(1.0), dt=0.1)


class Careful(StepSizeController):
    """Never lengthens a step."""

    def factor(self, error, before, order):
        return super().factor(error, before, order).clamp_max(1.0)


@pytest.mark.parametrize("controller", [Halving(1e-8), Careful(rtol=1e-8, atol=1e-8, first_step=0.01)])
def test_compiled_steps_are_not_those_of_an_own_controller(controller, caplog):
    """The kernel has the built-in controller only: another one falls back to the eager steps and says so."""
    x0, p = torch.tensor([[1.0, 0.0]], dtype=F64), torch.tensor(4.0, dtype=F64)
    with caplog.at_level(logging.DEBUG, logger="solvers"):
        compiled = solve(turn, x0, [0.0, 1.0], None, p, controller=controller, backend="native")
    assert (
        f"a step-size controller of another class ({type(controller).__name__}) has no kernel" in caplog.text
    )
    eager = solve(turn, x0, [0.0, 1.0], None, p, controller=controller)
    assert torch.equal(compiled.xs, eager.xs)
    assert torch.equal(compiled.statistics.accepted, eager.statistics.accepted)


def test_a_subclass_of_the_protocol_has_no_limit_of_the_step():
    class Plain(Controller):
        first, scaled_error, factor = Halving.first, Halving.scaled_error, Halving.factor
        tolerance = 1e-6

    assert Plain().max_step is None
    assert solve(CountedField(), ONE, [0.0, 1.0], controller=Plain()).statistics.accepted.tolist() == [1]
