"""Adjoints of a user's own against the built-in ones, and what the loop asks of an adjoint."""

import gc
import logging
import weakref

import pytest
import torch

from solvers import (
    Adjoint,
    Backprop,
    Checkpoint,
    ContinuousAdjoint,
    Event,
    Outputs,
    SolveError,
    advance,
    attach_gradient,
    make_solver,
    solve,
)

F64 = torch.float64


class StoredSteps(Adjoint):
    """Stores every step and differentiates the stored steps, one after the other."""

    def outputs(self, problem, track):
        x, xs = problem.x0, list(track.outputs.xs)
        for stride in track.strides:
            x = problem.method.step(problem.f, stride.t, x, problem.held(stride.leg), problem.p, stride.h)
            xs[problem.grid.at_target[stride.leg]] = x
        return track.outputs._replace(xs=torch.stack([problem.x0, *xs[1:]]))


class StraightThrough(Adjoint):
    """The gradient of x(T) = x0."""

    def outputs(self, problem, track):
        return track.outputs._replace(xs=track.outputs.xs + (problem.x0 - problem.x0.detach()))


class LastSteps(Adjoint):
    """Backpropagation through the last steps only."""

    def __init__(self, count):
        self.count = count

    def outputs(self, problem, track):
        strides = track.strides[-self.count :]
        t, x = strides[0].t, strides[0].x
        for stride in strides:
            step = advance(problem, stride, t, x)
            t, x = step.t, step.x
        return track.outputs._replace(xs=torch.cat((track.outputs.xs[:-1], x.unsqueeze(0))))


class ByHand(Adjoint):
    """The gradient of ``x' = -p x`` from the formula ``x = x0 exp(-p (t - t0))``."""

    def outputs(self, problem, track):
        return Outputs(
            *attach_gradient(problem, track.outputs, self.backward_of(problem), [track.outputs.xs])
        )

    @staticmethod
    def backward_of(problem):
        def backward(kept, by_xs, by_times, by_states):
            (xs,) = kept
            age = (problem.ts - problem.ts[0]).detach().reshape(-1, 1, 1)
            rate = -problem.p.detach()
            by_ts = (by_xs * xs * rate).flatten(1).sum(1)
            by_p = (by_xs * xs * -age).sum()
            return (by_xs * torch.exp(rate * age)).sum(0), -by_ts.sum(), None, by_ts, by_p

        return backward


def pendulum(t, x, u, p):
    return torch.stack((x[..., 1], -p[0] * torch.sin(x[..., 0]) + p[1] * torch.cos(t)), -1)


def inputs():
    new = lambda v: torch.tensor(v, dtype=F64, requires_grad=True)
    return new([[1.0, 0.5], [0.3, -0.2], [2.0, 1.0]]), new([2.0, 0.3])


def gradients(adjoint, field=pendulum, ts=(0.0, 0.25, 1.0), **options):
    x0, p = inputs()
    xs = solve(field, x0, ts, None, p, adjoint=adjoint, **options).xs
    weights = torch.linspace(1, 2, xs.numel(), dtype=F64).reshape(xs.shape)
    return xs.detach(), *torch.autograd.grad((weights * xs).sum(), (x0, p), allow_unused=True)


EQUAL = [{"solver": name, "dt": 0.125} for name in ("rk4", "euler", "stormer_verlet", "sdirk3", "tsit5")]


@pytest.mark.parametrize("options", EQUAL, ids=lambda o: o["solver"])
def test_an_own_adjoint_has_the_gradient_of_the_recorded_steps(options):
    name = make_solver(options["solver"]).adjoints[0]
    for one, other in zip(gradients(StoredSteps(), **options), gradients(name, **options), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ts", "options"),
    [
        ([0.0, 1.0], {"solver": "tsit5"}),
        ([0.0, 1.0], {"solver": "rk4", "dt": 0.125}),
        ([0.0, 1.0], {"solver": "rodas5p"}),
        ([1.0, 0.0], {}),
        ([0.0, 1.0], {"events": Event(lambda t, x, u, p: x[..., 0] - 0.4, jump=lambda t, x, u, p: 0.5 * x)}),
    ],
    ids=["tsit5", "rk4", "rodas5p", "backwards", "events"],
)
def test_repeating_all_strides_is_backprop(ts, options):
    """By the parameters: adaptive steps, steps of fixed length, events and times that decrease."""
    results = []
    for adjoint in (LastSteps(10_000), "backprop"):
        x0, p = inputs()
        xs = solve(pendulum, x0, ts, None, p, adjoint=adjoint, **options).xs
        results.append((xs.detach(), *torch.autograd.grad(xs[-1].square().sum(), p)))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_truncating_backpropagation_leaves_out_the_steps_before():
    """Two steps of x' = -p x by Euler at h = 0.5: d/dp (1 - p h)^2 = -2 h (1 - p h); the last alone gives half."""
    p = torch.tensor(0.5, dtype=F64, requires_grad=True)
    got = {}
    for count in (1, 2):
        xs = solve(
            lambda t, x, u, p: -p * x, torch.ones(1, 1, dtype=F64), [0.0, 1.0], None, p, solver="euler", dt=0.5,
            adjoint=LastSteps(count),
        ).xs  # fmt: skip
        (got[count],) = torch.autograd.grad(xs[-1].sum(), p)
    assert got[2].item() == -0.75
    assert got[1].item() == -0.375


@pytest.mark.parametrize("options", [{}, {"solver": "rk4", "dt": 0.125}, {"on_failure": "mark"}])
def test_a_straight_through_gradient(options):
    xs, by_x0, by_p = gradients(StraightThrough(), **options)
    weights = torch.linspace(1, 2, xs.numel(), dtype=F64).reshape(xs.shape)
    assert torch.allclose(by_x0, weights.sum(0))
    assert by_p is None
    assert torch.allclose(xs, gradients("backprop", **options)[0], rtol=1e-14)


# Gradients by hand.


def decay(t, x, u, p):
    return -p * x


def solved_by_hand(x0, p, end, **options):
    ts = torch.stack((torch.zeros((), dtype=F64), 0.3 * end.detach(), end))
    tight = {"rtol": 1e-11, "atol": 1e-11}
    return solve(decay, x0, ts, None, p, adjoint=ByHand(), **(options or tight))


def test_a_gradient_by_hand_is_checked_against_differences():
    x0, p, end = (torch.tensor(v, dtype=F64, requires_grad=True) for v in ([[1.0], [2.0]], 0.7, 0.9))
    assert torch.autograd.gradcheck(lambda x0, p: solved_by_hand(x0, p, end.detach()).xs, (x0, p), atol=1e-6)
    (by_end,) = torch.autograd.grad(solved_by_hand(x0, p, end).xs[-1].sum(), end)
    assert by_end.item() == pytest.approx(-0.7 * 3.0 * torch.exp(-p * end).item(), abs=1e-9)


def test_a_gradient_by_hand_has_no_second_derivative():
    x0, p, end = (
        torch.ones(1, 1, dtype=F64),
        torch.tensor(0.7, dtype=F64, requires_grad=True),
        torch.tensor(1.0),
    )
    with pytest.raises(RuntimeError, match="create_graph=True asks for second derivatives"):
        torch.autograd.grad(solved_by_hand(x0, p, end.to(F64)).xs[-1].sum(), p, create_graph=True)


def test_changing_a_kept_tensor_in_place_is_an_error():
    """The states that the caller gets are the ones that are kept."""
    x0, p, end = (
        torch.ones(1, 1, dtype=F64),
        torch.tensor(0.7, dtype=F64, requires_grad=True),
        torch.tensor(1.0),
    )
    xs = solved_by_hand(x0, p, end.to(F64)).xs
    loss = xs[-1].sum()
    with torch.no_grad():
        xs.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint", "adjoint", ByHand(), LastSteps(2)])
@pytest.mark.parametrize("options", [{}, {"solver": "rk4", "dt": 0.25}])
def test_a_solution_is_freed_without_the_garbage_collector(adjoint, options):
    """No tensor holds on to its own graph."""
    p = torch.tensor(0.7, dtype=F64, requires_grad=True)
    gc.disable()
    try:
        node = solve(decay, torch.ones(1, 1, dtype=F64), [0.0, 1.0], None, p, adjoint=adjoint, **options).xs
        gone = weakref.ref(node)
        del node
        assert gone() is None
    finally:
        gc.enable()


# What is asked of an adjoint, and when.


class Spy(Backprop):
    """Backprop that writes down what it is called with."""

    def __init__(self):
        self.calls = []

    def check(self, problem):
        self.calls.append(("check", problem.f.calls))

    def outputs(self, problem, track):
        self.calls.append(("outputs", len(track.strides), track.strides[0].x is not None))
        return super().outputs(problem, track)


class EqualSpy(Spy):
    def outputs(self, problem, track):
        return super().outputs(problem, track)

    def equal_steps(self, problem):
        self.calls.append(("equal_steps", len(problem.grid.controls)))
        return super().equal_steps(problem)


def test_an_adjoint_is_called_once_where_a_gradient_is_wanted_and_not_elsewhere():
    x0, p = inputs()
    spy = Spy()
    done = solve(pendulum, x0, [0.0, 1.0], None, p, adjoint=spy)
    attempts = int((done.statistics.accepted + done.statistics.rejected).max())
    assert spy.calls == [("check", 0), ("outputs", attempts, False)]
    with torch.no_grad():
        solve(pendulum, x0, [0.0, 1.0], None, p, adjoint=spy)
    solve(pendulum, x0.detach(), [0.0, 1.0], None, p.detach(), adjoint=spy)
    assert spy.calls[2:] == [("check", 0)] * 2


def test_an_adjoint_takes_equal_steps_itself_only_if_it_says_how():
    x0, p = inputs()
    for spy, expected in ((Spy(), ("outputs", 4, False)), (EqualSpy(), ("equal_steps", 4))):
        solve(pendulum, x0, [0.0, 1.0], None, p, adjoint=spy, solver="rk4", dt=0.25)
        assert spy.calls == [("check", 0), expected]
    spy = EqualSpy()
    solve(pendulum, x0, [0.0, 1.0], None, p, adjoint=spy, solver="rk4", dt=0.25, on_failure="mark")
    assert spy.calls == [("check", 0), ("outputs", 4, False)]


def test_an_inherited_way_to_take_equal_steps_is_not_another_adjoints():
    assert Backprop.takes_equal_steps
    assert not Spy.takes_equal_steps
    assert EqualSpy.takes_equal_steps
    assert (Backprop.name, Spy.name) == ("backprop", "Spy")


def test_a_failure_is_found_before_the_adjoint_is_asked():
    x0, p = torch.tensor([[1.0], [3.0]], dtype=F64), torch.tensor(1.0, dtype=F64, requires_grad=True)
    grow = lambda t, x, u, p: p * x**2
    spy = Spy()
    with pytest.raises(SolveError):
        solve(grow, x0, [0.0, 0.5], None, p, adjoint=spy)
    assert spy.calls == [("check", 0)]
    done = solve(grow, x0, [0.0, 0.5], None, p, adjoint=LastSteps(10_000), on_failure="mark")
    (by_p,) = torch.autograd.grad(done.xs[-1, done.ok].sum(), p)
    assert done.ok.tolist() == [True, False]
    assert by_p.item() == pytest.approx(2.0, rel=1e-5)  # x = x0 / (1 - p x0 t), by rollout 0 alone


def test_an_adjoint_may_refuse_a_problem():
    class Forwards(StoredSteps):
        def check(self, problem):
            if problem.sign < 0:
                raise ValueError(f"{self.name} goes forwards in time")

    x0, p = inputs()
    with pytest.raises(ValueError, match="Forwards goes forwards in time"):
        solve(pendulum, x0, [1.0, 0.0], None, p, adjoint=Forwards())
    assert solve(pendulum, x0, [0.0, 1.0], None, p, adjoint=Forwards(), solver="rk4", dt=0.5).ok.all()


# Which objects are taken.


@pytest.mark.parametrize("made", [Backprop(), Checkpoint(), ContinuousAdjoint()], ids=lambda a: a.name)
@pytest.mark.parametrize("options", [{}, {"solver": "rk4", "dt": 0.125}, {"solver": "torchdiffeq.dopri5"}])
def test_an_object_of_a_built_in_adjoint_is_its_name(made, options):
    if made.name not in make_solver(options.get("solver", "tsit5")).adjoints:
        with pytest.raises(ValueError, match="it can by: backprop, adjoint"):
            gradients(made, **options)
        return
    for one, other in zip(gradients(made, **options), gradients(made.name, **options), strict=True):
        assert torch.equal(one, other)


def test_methods_and_back_ends_with_gradients_of_their_own_refuse_others(caplog):
    x0, p = inputs()
    with pytest.raises(ValueError, match=r"'torchdiffeq\.dopri5' cannot be .* it can by: backprop, adjoint"):
        solve(pendulum, x0, [0.0, 1.0], None, p, solver="torchdiffeq.dopri5", adjoint=StoredSteps())
    for adjoint in (StoredSteps(), Backprop(), ContinuousAdjoint()):
        with pytest.raises(ValueError, match="backend='native' is differentiated by 'checkpoint'"):
            solve(pendulum, x0, [0.0, 1.0], None, p, adjoint=adjoint, backend="native")
    with caplog.at_level(logging.WARNING):
        solve(pendulum, x0, [0.0, 1.0], None, p, adjoint=Checkpoint(), backend="native", solver="rk4", dt=0.5)


@pytest.mark.parametrize("wrong", [StoredSteps, "StoredSteps", 3, object()])
def test_what_is_no_adjoint_is_refused(wrong):
    with pytest.raises(ValueError, match=r"cannot be differentiated by adjoint=.*it can by: backprop"):
        gradients(wrong)


def test_a_captured_tensor_is_refused_unless_the_adjoint_sees_it():
    weight = torch.tensor(2.0, dtype=F64, requires_grad=True)
    field = lambda t, x, u, p: -weight * x
    run = lambda adjoint: solve(
        field, torch.ones(1, 1, dtype=F64), [0.0, 1.0], adjoint=adjoint, solver="rk4", dt=0.01
    )
    with pytest.raises(ValueError, match="adjoint='StoredSteps' would lose its gradient"):
        run(StoredSteps())

    class Recorded(StoredSteps):
        sees_captured = True

    (by_weight,) = torch.autograd.grad(run(Recorded()).xs[-1].sum(), weight)
    assert by_weight.item() == pytest.approx(-torch.exp(torch.tensor(-2.0, dtype=F64)).item(), rel=1e-6)


def test_a_field_that_draws_numbers_is_refused_where_an_adjoint_computes_steps_again():
    noisy = lambda t, x, u, p: x * torch.rand(())
    x0 = torch.ones(1, 1, requires_grad=True)
    with pytest.raises(ValueError, match="adjoint='StoredSteps' computes steps again"):
        solve(noisy, x0, [0.0, 1.0], adjoint=StoredSteps(), solver="rk4", dt=0.5)
