"""``solve``: gradients by every adjoint, held controls, per-rollout steps, what it refuses."""

import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from solvers import SOLVERS, Event, StepSizeController, make_solver, solve

F64 = torch.float64
PAIRS = [(name, adjoint) for name in SOLVERS for adjoint in make_solver(name).adjoints]
OTHER_TORCHDIFFEQ = [n for n in SOLVERS if n.startswith("torchdiffeq.") and n != "torchdiffeq.dopri5"]
# Continuous adjoints of a fixed step approach the gradient with the step; they have a test of their own.
EXACT = [
    # Of the solvers that are torchdiffeq's, one here: what is ours is the same for all.
    pytest.param(name, adjoint, marks=[pytest.mark.slow] * (name in OTHER_TORCHDIFFEQ))
    for name, adjoint in PAIRS
    if adjoint != "adjoint" or make_solver(name).adaptive or name.endswith("rk4")
]


def field(t, x, u, p):
    """A driven pendulum with a control; order and gradients of every method show on it."""
    q, v = x.unbind(-1)
    return torch.stack((v, -p[0] * torch.sin(q) + u[..., 0] + p[1] * torch.cos(2 * torch.as_tensor(t))), -1)


def leaves():
    new = lambda v: torch.tensor(v, dtype=F64, requires_grad=True)
    return new([[1.0, 0.5], [0.3, -0.2]]), new([[0.4], [-1.0], [0.7]]), new([2.0, 0.3]), new(0.78)


def keywords(name, dt=0.05):
    """Steps of fixed length, or tolerances so tight that the steps' dependence on the inputs does not show."""
    solver = make_solver(name)
    if not solver.adaptive:
        tight = {"rtol": 1e-12, "atol": 1e-12} if "adams" in name else {}
        options = (
            {"max_iters": 100} if name in ("torchdiffeq.implicit_adams", "torchdiffeq.fixed_adams") else {}
        )
        return {"solver": make_solver(name, **options), "dt": dt, **tight}
    low_order = {"torchdiffeq.adaptive_heun": 1e-6, "torchdiffeq.fehlberg2": 1e-7, "torchdiffeq.bosh3": 1e-9}
    tolerance = low_order.get(name, 1e-11)
    return {"solver": solver, "rtol": tolerance, "atol": tolerance}


def run(name, adjoint, x0, u, p, end, dt=0.05, **more):
    """Outputs inside a hold, on a switch and at an end that is differentiable too."""
    ts = torch.cat((torch.tensor([0.0, 0.13, 0.5], dtype=F64), end[None]))
    return solve(
        field, x0, ts, u, p, control_times=[0.0, 0.25, 0.5], adjoint=adjoint, **{**keywords(name, dt), **more}
    ).xs


@pytest.fixture(scope="module")
def exact():
    """States and gradients to 1e-12, by the steps themselves."""
    x0, u, p, end = leaves()
    xs = run("dopri5", "backprop", x0, u, p, end, rtol=1e-13, atol=1e-13)
    return xs.detach(), torch.autograd.grad(weigh(xs), (x0, u, p, end))


def weigh(xs):
    return (xs * torch.linspace(1, 2, xs.numel(), dtype=F64).reshape(xs.shape)).sum()


@pytest.mark.parametrize(("name", "adjoint"), EXACT)
def test_gradcheck(name, adjoint):
    """By the initial state, the controls, the parameters and the end time."""
    loose = {"torchdiffeq.adaptive_heun": 1e-3, "torchdiffeq.fehlberg2": 1e-3, "torchdiffeq.bosh3": 1e-3}
    # At a fixed step the continuous adjoint differs from the discrete gradient by the method's error.
    tolerance = 1e-4 if adjoint == "adjoint" else loose.get(name, 1e-6)
    options = {"dt": 0.01} if adjoint == "adjoint" else {}

    # torchdiffeq interpolates between steps, and SciPy returns a fresh solution for every end: their
    # finite differences by the end time carry the solver's own error.
    assert torch.autograd.gradcheck(
        lambda *inputs: run(name, adjoint, *inputs, **options),
        leaves(),
        eps=1e-6,
        atol=tolerance,
        rtol=tolerance,
        fast_mode=True,
    )


@pytest.mark.parametrize(("name", "adjoint"), [pair for pair in PAIRS if pair[1] == "adjoint"])
def test_continuous_adjoints_converge_to_the_gradient(name, adjoint, exact):
    if make_solver(name).adaptive:
        pytest.skip("covered by gradcheck")
    order = make_solver(name).order
    errors, steps = [], ((0.02, 0.01, 0.005) if order < 4 else (0.0625, 0.03125, 0.015625))
    for dt in steps:
        inputs = leaves()
        got = torch.autograd.grad(weigh(run(name, adjoint, *inputs, dt=dt)), inputs)
        errors.append(max(float((g - e).abs().max()) for g, e in zip(got, exact[1], strict=True)))
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope > order - 0.5
    assert errors[-1] < 0.2


@pytest.mark.parametrize("name", ["tsit5", "dopri5", "rodas5p"])
def test_adjoints_agree(name, exact):
    for adjoint in make_solver(name).adjoints:
        inputs = leaves()
        xs = run(name, adjoint, *inputs)
        assert torch.allclose(xs, exact[0], atol=1e-9)
        for got, right in zip(torch.autograd.grad(weigh(xs), inputs), exact[1], strict=True):
            assert torch.allclose(got, right, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["rk4", "sdirk3", "stormer_verlet", "tsit5", "rodas5p"])
@pytest.mark.parametrize("per_rollout", [False, True])
def test_checkpoint_is_the_gradient_of_the_recorded_steps(name, per_rollout):
    """To rounding: both differentiate the same discrete solution."""
    gradients = []
    for adjoint in (make_solver(name).adjoints[0], "checkpoint"):
        inputs = leaves()
        more = {"on_failure": "mark"} if per_rollout else {"dt": 0.05, "solver": name}
        if not per_rollout and make_solver(name).adaptive:
            more = {"rtol": None, "atol": None, **more}
        gradients.append(torch.autograd.grad(weigh(run(name, adjoint, *inputs, **more)), inputs))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


def test_gradients_by_the_start_and_by_the_switching_times():
    def end_state(start, switch, adjoint):
        ts = torch.stack((start, torch.tensor(0.31, dtype=F64), torch.tensor(0.9, dtype=F64)))
        times = torch.stack((torch.tensor(-1.0, dtype=F64), switch))
        u = torch.tensor([[0.5], [-2.0]], dtype=F64)
        p = torch.tensor([2.0, 0.3], dtype=F64)
        x0 = torch.tensor([[1.0, 0.5]], dtype=F64)
        return solve(field, x0, ts, u, p, control_times=times, rtol=1e-11, atol=1e-11, adjoint=adjoint).xs

    inputs = [torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.05, 0.4)]
    for adjoint in ("backprop", "checkpoint", "adjoint"):
        assert torch.autograd.gradcheck(
            lambda a, b, adjoint=adjoint: end_state(a, b, adjoint), inputs, atol=1e-6
        )


@pytest.mark.parametrize("name", ["tsit5", "rk4", "sdirk3", "rodas5p", "torchdiffeq.dopri5"])
def test_a_switch_at_an_output_has_the_gradient_of_the_switch(name):
    """x' = u - x: the end depends on when the control switches, the output in between on when it is read."""
    for adjoint in make_solver(name).adjoints:
        c = torch.tensor([-1.0, 0.4], dtype=F64, requires_grad=True)
        ts = torch.tensor([0.0, 0.4, 1.0], dtype=F64, requires_grad=True)
        u = torch.tensor([1.0, 2.0], dtype=F64)
        x0 = torch.tensor([[1.5], [2.0]], dtype=F64)
        how = {**keywords(name, 0.005), "control_times": c, "adjoint": adjoint}
        xs = solve(lambda t, x, u, p: u - x, x0, ts, u, **how).xs
        by_c, by_ts = torch.autograd.grad(3 * xs[1].sum() + xs[2].sum(), (c, ts))
        # closed form: x(0.4) = 1 + (x0 - 1) e^-0.4, x(1) = 2 + (x(0.4) - 2) e^-0.6
        rate = -(x0 - 1).sum() * math.exp(-0.4)
        last = -sum(1 + (v - 1) * math.exp(-0.4) - 2 for v in (1.5, 2.0)) * math.exp(-0.6)
        tolerance = 1e-6 if adjoint != "adjoint" or name != "sdirk3" else 1e-4
        assert by_c[1].item() == pytest.approx(2 * (1 - 2) * math.exp(-0.6), abs=tolerance), adjoint
        assert by_ts[1].item() == pytest.approx(3 * rate.item(), abs=tolerance), adjoint
        assert by_ts[2].item() == pytest.approx(last, abs=tolerance), adjoint


@pytest.mark.parametrize(
    "how",
    [
        {"adjoint": "checkpoint"},
        {"adjoint": "adjoint"},
        {"backend": "native"},
        {"solver": "sdirk3", "dt": 0.1},
        {"events": Event(lambda t, x, u, p: x[..., 0] - 0.5 * p)},
    ],
)
def test_second_derivatives_where_there_are_none_are_an_error(how):
    p = torch.tensor(1.0, dtype=F64, requires_grad=True)
    end = solve(lambda t, x, u, p: -p * x, torch.ones(1, 1, dtype=F64), [0.0, 1.0], None, p, **how).xs[-1]
    with pytest.raises(RuntimeError, match="only adjoint='backprop'"):
        torch.autograd.grad(end.sum(), p, create_graph=True)


def test_controls_are_held_and_no_step_crosses_a_switch():
    """x' = u has the exact solution that any step gets right, unless it looks across a switch."""
    u, times = torch.tensor([[1.0], [-3.0], [10.0]], dtype=F64), [0.0, 0.3, 0.35]
    for name in SOLVERS:
        if make_solver(name).velocity_form:
            continue
        seen = []

        def rate(t, x, u, p, seen=seen):
            seen.append((float(torch.as_tensor(t).detach().max()), float(u[0])))
            return u.expand_as(x)

        xs = solve(
            rate, torch.zeros(2, 1, dtype=F64), [0.0, 0.3, 1.0], u, control_times=times, **keywords(name)
        ).xs
        # implicit Adams and SciPy stop at a tolerance
        assert xs[1, :, 0].tolist() == pytest.approx([0.3] * 2, rel=1e-7), name
        assert xs[2, :, 0].tolist() == pytest.approx([0.3 - 0.15 + 6.5] * 2, rel=1e-7), name
        for t, value in seen:
            held = 1.0 if t < 0.3 else -3.0 if t < 0.35 else 10.0
            on_switch = min(abs(t - 0.3), abs(t - 0.35)) < 1e-9
            overshoot = "torchdiffeq" in name  # its steps end beyond the leg, under the leg's control
            assert value == held or on_switch or overshoot, (name, t, value)


@pytest.mark.parametrize("name", ["tsit5", "dopri5", "rodas5p", "rk4", "sdirk3"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_rollout_does_not_depend_on_its_neighbours(name, dtype):
    """Batched equals single to the last bit, states, gradients and steps, next to a stiff rollout too."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(37, 3, generator=g, dtype=dtype)
    rates = torch.rand(37, generator=g, dtype=dtype)

    def coupled(t, x, u, p):
        a, b, c = x.unbind(-1)
        return torch.stack((b * c, -a * c, -p * (c - torch.sin(a)) + torch.cos(t)), -1)

    tolerance = 1e-7 if dtype == F64 else 1e-4
    rates[5] = 300.0 if make_solver(name).adaptive or name == "sdirk3" else 30.0
    how = (
        {"dt": 0.01, "on_failure": "mark"}
        if not make_solver(name).adaptive
        else {"rtol": tolerance, "atol": tolerance}
    )

    def solved(x0, rates):
        x0, rates = x0.clone().requires_grad_(), rates.clone().requires_grad_()
        done = solve(coupled, x0, [0.0, 0.4, 1.0], None, rates, solver=name, adjoint="checkpoint", **how)
        by = torch.autograd.grad((done.xs[1:] ** 2).sum(), (x0, rates))
        return done.xs, *by, done.statistics.accepted

    together = solved(x0, rates)
    for b in (0, 4, 5, 6, 36):
        alone = solved(x0[b : b + 1], rates[b : b + 1])
        assert torch.equal(together[0][:, b], alone[0][:, 0])
        assert torch.equal(together[1][b], alone[1][0])
        assert torch.equal(together[2][b], alone[2][0])
        assert together[3][b] == alone[3][0]
    if make_solver(name).adaptive and name != "rodas5p":
        assert together[3][5] > 2 * together[3][4]


def test_every_rollout_takes_its_own_steps():
    rates = torch.tensor([1.0, 100.0], dtype=F64)
    done = solve(lambda t, x, u, p: -p[..., None] * x, torch.ones(2, 1, dtype=F64), [0.0, 1.0], None, rates)
    assert torch.allclose(done.xs[-1, :, 0], torch.exp(-rates), atol=1e-6)
    assert done.statistics.accepted[1] > 3 * done.statistics.accepted[0]


def test_times_of_their_own_for_every_rollout():
    ends = torch.tensor([0.5, 2.0, 1.0], dtype=F64, requires_grad=True)
    for adjoint in ("backprop", "checkpoint", "adjoint"):
        ts = torch.stack((torch.zeros(3, dtype=F64), 0.3 * ends, ends))
        done = solve(
            lambda t, x, u, p: -x, torch.ones(3, 1, dtype=F64), ts, rtol=1e-10, atol=1e-10, adjoint=adjoint
        )
        assert torch.allclose(done.xs[..., 0], torch.exp(-ts), atol=1e-8)
        (by_ends,) = torch.autograd.grad(done.xs[1:].sum(), ends)
        assert torch.allclose(by_ends, -0.3 * torch.exp(-0.3 * ends) - torch.exp(-ends), atol=1e-7)


@pytest.mark.parametrize("name", ["tsit5", "dopri5", "rodas5p"])
def test_dense_outputs_are_as_accurate_as_the_steps_and_do_not_change_them(name):
    ts = torch.linspace(0, 5, 301, dtype=F64)
    decay = lambda t, x, u, p: torch.stack((x[..., 1], -x[..., 0]), -1)
    x0 = torch.tensor([[1.0, 0.0], [3.0, 1.0]], dtype=F64)
    many = solve(decay, x0, ts, solver=name, rtol=1e-8, atol=1e-8)
    two = solve(decay, x0, [0.0, 5.0], solver=name, rtol=1e-8, atol=1e-8)
    assert torch.equal(many.statistics.accepted, two.statistics.accepted)
    assert torch.equal(many.xs[-1], two.xs[-1])
    assert many.statistics.evaluations == two.statistics.evaluations
    right = torch.stack((torch.cos(ts), -torch.sin(ts)), -1)
    assert (many.xs[:, 0] - right).abs().max() < 3e-7


@pytest.mark.parametrize("name", ["tsit5", "rk4", "sdirk3", "torchdiffeq.dopri5"])
def test_backwards_in_time_undoes_forwards(name):
    x0, u, p, _ = leaves()
    how = {**keywords(name, 0.005), "control_times": [0.0, 0.25, 0.5]}
    there = solve(field, x0, [0.0, 0.3, 0.8], u, p, **how).xs
    back = solve(field, there[-1], [0.8, 0.3, 0.0], u, p, **how).xs
    assert torch.allclose(back, there.flip(0), atol=1e-6)
    (by_x0,) = torch.autograd.grad(back[-1].sum(), x0)
    assert torch.allclose(by_x0, torch.ones_like(x0), atol=1e-4)


def test_one_call_with_a_lambda():
    end = solve(lambda t, x, u, p: -x, torch.ones(3, 1), [0.0, 1.0]).xs[-1]
    assert end[:, 0].tolist() == pytest.approx([math.exp(-1)] * 3, abs=1e-4)


def test_a_state_without_a_batch():
    done = solve(lambda t, x, u, p: -x, torch.ones(2, dtype=F64), [0.0, 1.0])
    assert done.xs.shape == (2, 2)
    assert done.status.shape == ()
    assert done.xs[-1].tolist() == pytest.approx([math.exp(-1)] * 2, abs=1e-5)


def test_a_batch_of_two_dimensions():
    x0 = torch.rand(2, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    done = solve(
        lambda t, x, u, p: -x * p, x0, [0.0, 0.5, 1.0], None, torch.tensor(2.0), adjoint="checkpoint"
    )
    assert torch.allclose(done.xs[-1], x0 * math.exp(-2), atol=1e-5)
    assert done.statistics.accepted.shape == (2, 3)
    (by_x0,) = torch.autograd.grad(done.xs[-1].sum(), x0)
    assert torch.allclose(by_x0, torch.full_like(x0, math.exp(-2)), atol=1e-5)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=F64)

    def forward(self, t, x, u, p):
        return torch.tanh(self.layer(x))


@pytest.mark.parametrize(
    ("how", "name"),
    [("f", "tsit5"), ("method", "tsit5"), ("p", "tsit5"), ("f", "rk4"), ("f", "torchdiffeq.dopri5")],
)
def test_parameters_of_modules_are_found(how, name):
    torch.manual_seed(0)
    net = Network()
    x0 = torch.tensor([[0.5, -0.3], [1.0, 2.0]], dtype=F64)
    f = {"f": net, "method": net.forward, "p": lambda t, x, u, p: p(t, x, u, None)}[how]
    gradients = []
    for adjoint in make_solver(name).adjoints:
        end = solve(
            f, x0, [0.0, 1.0], None, net if how == "p" else None, adjoint=adjoint, **keywords(name)
        ).xs[-1]
        gradients.append(torch.autograd.grad(end.sum(), tuple(net.parameters())))
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            assert a.abs().max() > 0
            assert torch.allclose(a, b, atol=1e-6)


def test_parameters_in_a_tree():
    x0 = torch.ones(2, 1, dtype=F64)
    p = {
        "rate": torch.tensor(1.0, dtype=F64, requires_grad=True),
        "name": "decay",
        "more": [torch.tensor(2.0, dtype=F64)],
    }
    for adjoint in ("backprop", "checkpoint", "adjoint"):
        end = solve(
            lambda t, x, u, p: -p["rate"] * p["more"][0] * x, x0, [0.0, 1.0], None, p, adjoint=adjoint
        ).xs[-1]
        (by_rate,) = torch.autograd.grad(end.sum(), p["rate"])
        assert by_rate.item() == pytest.approx(-2 * 2 * math.exp(-2), abs=1e-5)


@pytest.mark.parametrize("name", ["tsit5", "rk4"])
@pytest.mark.parametrize("adjoint", ["checkpoint", "adjoint"])
def test_a_captured_tensor_is_refused_where_its_gradient_would_be_lost(name, adjoint):
    rate = torch.tensor(2.0, dtype=F64, requires_grad=True)
    f = lambda t, x, u, p: -rate * x
    x0 = torch.ones(1, 1, dtype=F64)
    end = solve(f, x0, [0.0, 1.0], **keywords(name)).xs[-1]
    assert torch.autograd.grad(end.sum(), rate)[0].item() == pytest.approx(-math.exp(-2), abs=1e-5)
    with pytest.raises(ValueError, match="neither in u nor in p"):
        solve(f, x0, [0.0, 1.0], adjoint=adjoint, **keywords(name))


def test_second_derivatives_by_backprop():
    x0 = torch.tensor([[0.7]], dtype=F64, requires_grad=True)
    p = torch.tensor(1.3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda x0, p: solve(lambda t, x, u, p: -p * x**2, x0, [0.0, 0.5], None, p, solver="rk4", dt=0.1).xs,
        (x0, p),
    )


def test_statistics_count_what_was_done():
    calls = 0

    def f(t, x, u, p):
        nonlocal calls
        calls += 1
        return -x

    done = solve(f, torch.ones(4, 1, dtype=F64), [0.0, 1.0], solver="rk4", dt=0.1)
    assert done.statistics.evaluations == 40 == calls - 1  # one more looks at f beforehand
    assert done.statistics.accepted.tolist() == [10] * 4
    # x' = x^9 forces rejections just before it blows up.
    controller = StepSizeController(first_step=0.1)
    done = solve(lambda t, x, u, p: x**9, torch.ones(1, 1, dtype=F64), [0.0, 0.1249], controller=controller)
    accepted, rejected = int(done.statistics.accepted), int(done.statistics.rejected)
    assert rejected >= 1
    # one slope at the start, then six an attempt
    assert done.statistics.evaluations == 1 + 6 * (accepted + rejected)


def test_the_controller_is_obeyed():
    x0 = torch.ones(1, 1, dtype=F64)
    slow = solve(lambda t, x, u, p: -x, x0, [0.0, 1.0], controller=StepSizeController(max_step=0.01))
    assert slow.statistics.accepted >= 100
    tight = solve(lambda t, x, u, p: -x, x0, [0.0, 1.0], rtol=1e-12, atol=1e-12)
    loose = solve(lambda t, x, u, p: -x, x0, [0.0, 1.0], rtol=1e-4, atol=1e-4)
    assert (tight.xs[-1] - math.exp(-1)).abs() < 1e-11
    assert tight.statistics.accepted > 5 * loose.statistics.accepted


def test_times_in_a_list_are_doubles():
    end = 0.1  # not a float32
    done = solve(lambda t, x, u, p: torch.ones_like(x), torch.zeros(1, 1, dtype=F64), [0.0, end])
    assert done.xs[-1].item() == pytest.approx(end, rel=1e-14)
    assert done.ts.tolist() == [0.0, end]


ONE = torch.ones(2, 1, dtype=F64)
DECAY = lambda t, x, u, p: -x


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x0": [1.0]}, TypeError, "x0 must be a tensor"),
        ({"x0": torch.ones(2, 1, dtype=torch.int64)}, TypeError, "float32 or float64, got torch.int64"),
        ({"x0": torch.ones(2, 1, dtype=torch.bfloat16)}, TypeError, "got torch.bfloat16"),
        ({"x0": torch.ones(0, 1)}, ValueError, "at least one entry"),
        ({"x0": torch.tensor([[float("nan")]])}, ValueError, "x0 holds values that are not finite"),
        ({"ts": [0.0]}, ValueError, "at least 2 times"),
        ({"ts": 1.0}, ValueError, "at least 2 times"),
        ({"ts": "soon"}, TypeError, "ts must be"),
        ({"ts": [0.0, 1.0, 1.0]}, ValueError, r"strictly increasing or strictly decreasing .* \[0, 1, 1\]"),
        ({"ts": [0.0, float("inf")]}, ValueError, "not finite"),
        ({"ts": torch.zeros(2, 3)}, ValueError, r"\[T, 2\]"),
        ({"solver": "tist5"}, ValueError, "did you mean 'tsit5'"),
        ({"solver": 3}, TypeError, "solver must be a name or a Solver, got int"),
        ({"adjoint": "implicit"}, ValueError, "it can by: backprop, checkpoint, adjoint"),
        ({"solver": "sdirk3", "adjoint": "backprop", "dt": 0.1}, ValueError, "it can by: implicit"),
        ({"solver": "rk4"}, ValueError, "takes steps of fixed length: give dt"),
        ({"solver": "rk4", "dt": 0.0}, ValueError, "dt must be a positive number, got 0.0"),
        ({"solver": "rk4", "dt": 0.1, "rtol": 1e-3}, ValueError, "rtol cannot control"),
        ({"rtol": -1.0}, ValueError, "rtol must be a number >= 0, got -1.0"),
        ({"rtol": 0.0, "atol": 0.0}, ValueError, "both 0"),
        ({"rtol": 1e-3, "controller": StepSizeController()}, ValueError, "belong to the controller"),
        ({"events": lambda t, x, u, p: x}, TypeError, "solvers.Event objects"),
        ({"f": lambda t, x: x}, TypeError, r"f must take four arguments \(t, x, u, p\): too many"),
        ({"solver": "rk45"}, ValueError, "did you mean 'rk4'"),
        ({"f": 3}, TypeError, "f must be a function"),
        ({"f": lambda t, x, u, p: x.mul_(-1)}, ValueError, "f changes x in place"),
        ({"dt": "0.1"}, ValueError, "dt must be a positive number, got '0.1'"),
        ({"dt": 1e-300}, ValueError, "makes 1e.300 steps"),
        ({"ts": [0.0, torch.tensor(1.0, requires_grad=True)]}, TypeError, "torch.stack"),
        ({"max_steps": 2.5}, ValueError, "max_steps = 2.5: must be a whole number of at least 1"),
        ({"event_samples": 0}, ValueError, "event_samples = 0: must be a whole number of at least 1"),
        ({"on_failure": "ignore"}, ValueError, "'raise' or 'mark', got 'ignore'"),
        ({"max_steps": 0}, ValueError, "max_steps = 0: must be a whole number of at least 1"),
        ({"backend": "cuda"}, ValueError, "'eager' or 'native', got 'cuda'"),
        ({"backend": "native", "adjoint": "backprop"}, ValueError, "differentiated by 'checkpoint'"),
        ({"events": [lambda t, x, u, p: x]}, TypeError, "solvers.Event objects"),
        (
            {"events": Event(lambda t, x, u, p: x[..., 0]), "adjoint": "adjoint"},
            ValueError,
            "use 'checkpoint'",
        ),
        ({"control_times": [0.5]}, ValueError, "after the earliest time 0"),
        ({"control_times": [0.0, 0.5]}, ValueError, "each of 2 control_times.* got NoneType"),
        ({"control_times": [0.0, 0.5], "u": torch.ones(3, 1)}, ValueError, "each of 2 control_times"),
        ({"control_times": [0.5, 0.0], "u": torch.ones(2, 1)}, ValueError, "strictly increasing"),
        ({"f": lambda t, x, u, p: x[..., 0]}, ValueError, r"shape \(2, 1\), got \(2,\)"),
        ({"f": lambda t, x, u, p: 1.0}, TypeError, "f must return a tensor"),
        ({"f": lambda t, x, u, p: x.float()}, ValueError, "got torch.float32"),
        ({"f": lambda t, x, u, p: x * t}, ValueError, r"t is \(2,\), a time for every rollout"),
        (
            {"x0": torch.ones(3, 3), "f": lambda t, x, u, p: x * t, "solver": "sdirk3", "dt": 0.1},
            ValueError,
            "unsqueeze",
        ),
        ({"x0": torch.ones(3, 3), "f": lambda t, x, u, p: x * t}, ValueError, r"t.unsqueeze\(-1\)"),
        ({"solver": "stormer_verlet", "dt": 0.1}, ValueError, "odd n"),
        ({"solver": "stormer_verlet", "dt": 0.1, "x0": torch.ones(1, 2)}, ValueError, "another dq/dt"),
        ({"solver": "torchdiffeq.dopri5", "dt": 0.1}, ValueError, "chooses its own steps"),
        (
            {"solver": "torchdiffeq.dopri5", "max_steps": 9},
            ValueError,
            "max_steps do not apply to torchdiffeq",
        ),
        ({"solver": "torchdiffeq.rk4", "dt": 0.1, "rtol": 1.0}, ValueError, "rtol cannot control"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    f, x0, ts = arguments.pop("f", DECAY), arguments.pop("x0", ONE), arguments.pop("ts", [0.0, 1.0])
    with pytest.raises(error, match=message):
        solve(f, x0, ts, **arguments)


def test_numbers_of_numpy_are_numbers_and_bools_are_not():
    plain = solve(DECAY, ONE, [0.0, 1.0], max_steps=500, max_events=3, event_samples=4, rtol=1e-5, atol=1e-7)
    numbers = {"max_steps": np.int32(500), "max_events": np.int64(3), "event_samples": np.uint8(4)}
    done = solve(DECAY, ONE, [0.0, 1.0], rtol=np.float64(1e-5), atol=np.array(1e-7)[()], **numbers)
    assert torch.equal(done.xs, plain.xs)
    controller = StepSizeController(first_step=np.float32(0.25), max_step=np.int64(1), safety=np.float64(0.8))
    assert (controller.first_step, type(controller.max_step), controller.safety) == (0.25, float, 0.8)
    fixed = solve(DECAY, ONE, [0.0, 1.0], solver=make_solver("rkc", stages=np.int64(4)), dt=np.float32(0.125))
    assert torch.equal(
        fixed.xs, solve(DECAY, ONE, [0.0, 1.0], solver=make_solver("rkc", stages=4), dt=0.125).xs
    )
    assert (
        make_solver(
            "sdirk3", newton_iterations=np.int8(7), newton_tolerance=np.float64(1e-6)
        ).newton_iterations
        == 7
    )
    options = make_solver("torchdiffeq.dopri5", max_num_steps=np.int64(99), safety=np.float64(0.8)).options
    assert [type(value) for value in options.values()] == [int, float]
    for name in ("max_steps", "max_events", "event_samples", "rtol", "atol", "dt"):
        for value in (True, np.True_, "1", float("nan")):
            with pytest.raises(ValueError, match=f"^{name} (= .*: )?must be .*"):
                solve(DECAY, ONE, [0.0, 1.0], **{name: value})
    for make in (
        lambda: StepSizeController(rtol=True),
        lambda: StepSizeController(max_step=True),
        lambda: StepSizeController(safety=True),
        lambda: make_solver("rkc", stages=True),
        lambda: make_solver("rkc", stages=3.0),
        lambda: make_solver("sdirk3", newton_iterations=True),
        lambda: make_solver("sdirk3", newton_tolerance=True),
        lambda: make_solver("torchdiffeq.dopri5", max_num_steps=True),
        lambda: make_solver("torchdiffeq.dopri5", first_step="soon"),
        lambda: Event(lambda t, x, u, p: x, direction=True),
    ):
        with pytest.raises(ValueError, match=r"(got|=) (True|3\.0|'soon')"):
            make()


def test_what_a_solve_gives_and_takes_has_a_short_repr():
    done = solve(DECAY, ONE, [0.0, 1.0], solver="rk4", dt=0.5)
    assert repr(done) == (
        "Solution(xs [2, 2, 1] float64, t from 0 to 1, 2 of 2 rollouts succeeded,\n"
        "         Statistics(evaluations=8, accepted=2, rejected=0))"
    )
    for name in SOLVERS:
        text = repr(make_solver(name))
        assert len(text) < 120
        assert f"order {make_solver(name).order}" in text
    assert repr(make_solver("rkc", stages=7)).startswith("RungeKuttaChebyshev(order 2, stages=7")
    assert repr(make_solver("torchdiffeq.rk4")) == "torchdiffeq.rk4(order 4)"
    assert repr(make_solver("tsit5").tableau).startswith(
        "ButcherTableau('tsit5', explicit, order 5, 7 stages"
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize("how", [{}, {"solver": "rk4", "dt": 0.1}, {"adjoint": "checkpoint"}])
def test_an_error_in_the_users_field_names_its_place(how):
    def f(t, x, u, p):
        return -p["rat"] * x

    with pytest.raises(KeyError, match="rat") as caught:
        solve(f, ONE, [0.0, 1.0], None, {"rate": 1.0}, **how)
    line = f.__code__.co_firstlineno + 1
    assert caught.value.__notes__ == [
        f"raised by the vector field f, in {__file__}:{line}",
        "p has the names: rate",
    ]


MEMORY = """
    import resource, sys
    import torch
    from solvers import solve
    torch.set_num_threads(1)
    peak = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
    f = lambda t, x, u, p: -p * torch.sin(x)
    def gradient(batch, steps):
        x0 = torch.rand(batch, 4, dtype=torch.float64, requires_grad=True)
        p = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        x = solve(f, x0, [0.0, 1.0], None, p, solver="rk4", dt=1.0 / steps, adjoint="{adjoint}").xs[-1]
        torch.autograd.grad(x.sum(), (x0, p))
    gradient({batch}, 20)
    before = peak()
    gradient({batch}, {steps})
    print((peak() - before) / ({steps} * {batch} * 4 * 8))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_the_memory_of_checkpoint_is_the_states_alone():
    """Peak above the start over the size of the states, horizon 10,000, forward and backward together."""

    def measured(adjoint, steps):
        script = textwrap.dedent(MEMORY.format(adjoint=adjoint, batch=500, steps=steps))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert measured("checkpoint", 10_000) < 1.5
    assert measured("backprop", 1_000) > 5
