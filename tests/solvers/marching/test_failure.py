"""Failures name the time, the rollouts, the step and the remedy; marked, they leave the others alone."""

import re

import pytest
import torch

from solvers import Failure, SolveError, make_solver, solve

F64 = torch.float64


def blow_up(t, x, u, p):
    """x' = p x² ends at t = 1 / (p x0)."""
    return p.unsqueeze(-1) * x**2


X0 = torch.ones(4, 1, dtype=F64)
RATES = torch.tensor([0.1, 2.0, 0.2, 4.0], dtype=F64)


@pytest.mark.parametrize("name", ["tsit5", "dopri5", "rodas5p"])
def test_a_step_that_underflows(name):
    with pytest.raises(SolveError) as caught:
        solve(blow_up, X0, [0.0, 1.0], None, RATES, solver=name)
    message = str(caught.value)
    # The first failure ends the solve.  Rollouts 1 and 3 blow up at 0.5 and 0.25; the others do not.
    assert re.search(r"\(number 1\): t = 0\.5|\(numbers 1, 3\).* t = 0\.5|\(number 3\): t = 0\.25", message)
    assert re.search(r"last step size \d\.?\d*e-1\d", message)
    assert "stiff method" in message
    assert "on_failure='mark'" in message
    assert caught.value.status[[0, 2]].tolist() == [Failure.NONE] * 2
    assert set(caught.value.status[[1, 3]].tolist()) <= {0, Failure.STEP_UNDERFLOW, Failure.NOT_FINITE}
    assert caught.value.status.any()


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_marked_failures_leave_the_others_alone(backend):
    rates = RATES.clone().requires_grad_()
    done = solve(
        blow_up,
        X0,
        [0.0, 0.2, 0.9, 1.0],
        None,
        rates,
        on_failure="mark",
        adjoint="checkpoint",
        backend=backend,
    )
    assert done.ok.tolist() == [True, False, True, False]
    exact = 1 / (1 - 0.9 * RATES[[0, 2]])
    assert torch.allclose(done.xs[2, [0, 2], 0], exact, atol=1e-5)
    assert torch.isfinite(done.xs[1]).all()  # before the failure the states are known
    assert torch.isnan(done.xs[2:, [1, 3]]).all()
    (by_rates,) = torch.autograd.grad(done.xs[-1, done.ok].sum(), rates)
    right = 1 / (1 - RATES[[0, 2]]) ** 2
    assert torch.allclose(by_rates[[0, 2]], right, atol=1e-4)
    assert by_rates[[1, 3]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "how", [{}, {"adjoint": "checkpoint"}, {"adjoint": "adjoint"}, {"backend": "native"}]
)
def test_a_shared_parameter_gets_no_gradient_from_failed_rollouts(how):
    """A square root of a negative number in one rollout must not make the others' gradient NaN."""
    p = torch.tensor(0.5, dtype=F64, requires_grad=True)
    x0 = torch.tensor([[4.0], [0.01], [9.0]], dtype=F64)

    def drain(t, x, u, p):
        return -p * torch.sqrt(x) - 0.3

    done = solve(drain, x0, [0.0, 1.0], None, p, on_failure="mark", rtol=1e-9, atol=1e-9, **how)
    assert done.status.tolist() == [0, Failure.NOT_FINITE, 0]
    (by_p,) = torch.autograd.grad(done.xs[-1, done.ok].sum(), p)
    (alone,) = torch.autograd.grad(
        solve(drain, x0[[0, 2]], [0.0, 1.0], None, p, rtol=1e-9, atol=1e-9).xs[-1].sum(), p
    )
    assert torch.allclose(by_p, alone, rtol=1e-9)


@pytest.mark.parametrize("name", ["rk4", "semi_implicit_euler", "backward_euler", "tsit5"])
def test_a_nan_from_the_field(name):
    def broken(t, x, u, p):
        late = torch.as_tensor(t) > 0.5
        v = x[..., 1] + 0 * x[..., 0]
        return torch.stack((v, torch.where(late & (x[..., 0] > 1.5), torch.nan, -x[..., 0])), -1)

    x0 = torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=F64)
    how = {} if make_solver(name).adaptive else {"dt": 0.1}
    with pytest.raises(SolveError, match=r"1 of 2 rollouts \(number 1\)") as caught:
        solve(broken, x0, [0.0, 1.0], solver=name, **how)
    assert "t = 0.5" in str(caught.value) or "t = 0.6" in str(caught.value) or "t = 0.4" in str(caught.value)
    done = solve(broken, x0, [0.0, 1.0], solver=name, on_failure="mark", **how)
    assert done.ok.tolist() == [True, False]
    assert torch.isfinite(done.xs[:, 0]).all()


def test_a_field_written_for_one_time_fails_as_clearly():
    """At equal steps t is a scalar, which multiplies a whole state; finding the failure must not change that."""
    f = lambda t, x, u, p: torch.cos(t) * x**2
    x0 = torch.tensor([[0.1, 0.2, 0.1], [0.1, 0.1, 3.0]], dtype=F64)
    with pytest.raises(SolveError, match=r"1 of 2 rollouts \(number 1\): t = "):
        solve(f, x0, [0.0, 1.5], solver="rk4", dt=0.01)


def test_a_field_that_is_nan_from_the_start():
    with pytest.raises(
        SolveError,
        match=r"NaN or infinite for 3 of 3 rollouts \(numbers 0, 1, 2\): the first of them at t = 0",
    ):
        solve(lambda t, x, u, p: x / 0 - x / 0, torch.ones(3, 1, dtype=F64), [0.0, 1.0])


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_too_many_steps(backend):
    stiff = lambda t, x, u, p: -1e6 * (x - torch.cos(t).unsqueeze(-1))
    with pytest.raises(SolveError, match=r"max_steps was reached .* for 2 of 2 .* use solver='rodas5p'"):
        solve(stiff, torch.zeros(2, 1, dtype=F64), [0.0, 10.0], max_steps=500, backend=backend)
    done = solve(stiff, torch.zeros(2, 1, dtype=F64), [0.0, 10.0], max_steps=500, solver="rodas5p")
    assert done.xs[-1, :, 0].tolist() == pytest.approx([torch.cos(torch.tensor(10.0)).item()] * 2, abs=1e-5)


def test_steps_of_fixed_length_can_be_too_many_too():
    with pytest.raises(SolveError, match="max_steps was reached"):
        solve(lambda t, x, u, p: -x, torch.ones(1, 1), [0.0, 1.0], solver="rk4", dt=0.01, max_steps=99)
    assert solve(
        lambda t, x, u, p: -x, torch.ones(1, 1), [0.0, 1.0], solver="rk4", dt=0.01, max_steps=100
    ).ok.all()


def test_newton_that_does_not_converge():
    """x = 1 + dt x² has no real solution for dt > 1/4."""
    f = lambda t, x, u, p: p.unsqueeze(-1) * x**2
    p = torch.tensor([0.1, 1.0], dtype=F64)
    with pytest.raises(
        SolveError, match=r"Newton.* 1 of 2 rollouts \(number 1\): t = 0, step size 0.5.*smaller dt"
    ):
        solve(f, torch.ones(2, 1, dtype=F64), [0.0, 1.0], None, p, solver="backward_euler", dt=0.5)
    with pytest.raises(SolveError, match="Newton"):
        make_solver("backward_euler").step(f, 0.0, torch.ones(2, 1, dtype=F64), None, p, 0.5)
    done = solve(
        f,
        torch.ones(2, 1, dtype=F64),
        [0.0, 1.0],
        None,
        p,
        solver="backward_euler",
        dt=0.5,
        on_failure="mark",
    )
    assert done.status.tolist() == [Failure.NONE, Failure.NEWTON]


def test_newton_options_are_checked():
    with pytest.raises(ValueError, match="newton_iterations = 0: must be a whole number of at least 1"):
        make_solver("sdirk3", newton_iterations=0)
    with pytest.raises(ValueError, match="newton_tolerance must be positive, got -1"):
        make_solver("sdirk3", newton_tolerance=-1)


def test_a_backward_solve_that_fails_says_that_it_was_the_backward_one():
    """Strong damping forgets the past: backwards it explodes."""
    x0 = torch.ones(2, 1, dtype=F64, requires_grad=True)
    end = solve(lambda t, x, u, p: -20 * x**3 - 500 * x, x0, [0.0, 1.0], adjoint="adjoint").xs[-1]
    with pytest.raises(SolveError, match=r"in the backward solve of adjoint='adjoint'.*adjoint='checkpoint'"):
        torch.autograd.grad((end * 1e3).sum(), x0)


def test_many_rollouts_are_counted_and_not_listed():
    with pytest.raises(SolveError) as caught:
        solve(lambda t, x, u, p: x / 0 - x / 0, torch.ones(10, 20, 1, dtype=F64), [0.0, 1.0])
    assert "200 of 200 rollouts (numbers (0, 0), (0, 1)" in str(caught.value)
    assert "…" in str(caught.value)


@pytest.mark.parametrize("name", ["torchdiffeq.dopri5", "torchdiffeq.scipy_solver", "torchdiffeq.rk4"])
def test_torchdiffeq_failures_are_the_batchs(name):
    how = {"dt": 0.01} if name.endswith("rk4") else {}
    with pytest.raises(
        SolveError, match=r"torchdiffeq's .* failed (near t = 0\.2|before t = 1).* All 4 rollouts share"
    ):
        solve(blow_up, X0, [0.0, 1.0], None, RATES, solver=name, **how)
    done = solve(blow_up, X0, [0.0, 1.0], None, RATES, solver=name, on_failure="mark", **how)
    assert not done.ok.any()
    assert torch.equal(done.xs[0], X0)
    assert torch.isnan(done.xs[1:]).all()


@pytest.mark.skipif(not hasattr(Exception, "add_note"), reason="errors have notes from Python 3.11 on")
def test_an_error_of_a_field_is_placed_in_the_users_file_and_never_in_ours():
    """Backwards in time f is called through a function of ours; torch.add has no file of its own."""

    def wrong(t, x, u, p):
        return x + p["gain"]

    for ts in ([0.0, 1.0], [1.0, 0.0]):
        with pytest.raises(KeyError) as caught:
            solve(wrong, X0, ts, None, {"rate": 1.0})
        assert caught.value.__notes__[0].startswith(f"raised by the vector field f, in {__file__}:")
        assert caught.value.__notes__[1:] == ["p has the names: rate"]
        with pytest.raises(TypeError) as caught:
            solve(torch.add, X0, ts)
        assert getattr(caught.value, "__notes__", []) == []
