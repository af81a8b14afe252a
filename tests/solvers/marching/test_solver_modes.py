"""Solves in torch's modes: inference, no_grad, autocast; fields that differentiate an energy, draw or keep state."""

import pytest
import torch
from torch import nn

from solvers import SOLVERS, Event, make_solver, solve

F64 = torch.float64
OURS = [name for name in SOLVERS if not name.startswith("torchdiffeq.")]


def steps(name, dt=0.1, tolerance=1e-4):
    return {"rtol": tolerance, "atol": tolerance} if make_solver(name).adaptive else {"dt": dt}


def pendulum(t, x, u, p):
    return torch.stack((x[..., 1], u[..., 0] - p["g"] * torch.sin(x[..., 0])), -1)


def inputs():
    x0 = torch.tensor([[1.0, 0.5], [0.3, -0.2], [0.1, 0.1]], dtype=F64)
    u = torch.tensor([[0.4], [-1.0]], dtype=F64)
    return x0, torch.tensor([0.0, 0.1, 0.2], dtype=F64), u, {"g": torch.tensor(2.0, dtype=F64)}


LIFT = Event(lambda t, x, u, p: x[..., 1] + 0.5, lambda t, x, u, p: x + 0.1)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_inference_mode_and_inference_tensors_change_no_number(name):
    def run(x0, ts, u, p):
        times = torch.tensor([0.0, 0.1], dtype=F64)
        ours = [{"events": LIFT}, {"on_failure": "mark"}] if name in OURS else []
        for more in ({}, {"adjoint": make_solver(name).adjoints[-1]}, *ours):
            yield solve(pendulum, x0, ts, u, p, control_times=times, solver=name, **steps(name), **more).xs
        yield make_solver(name).step(pendulum, 0.0, x0, u[0], p, 0.1)

    wanted = list(run(*inputs()))
    with torch.inference_mode():
        within, made_within = list(run(*inputs())), inputs()
    with torch.no_grad():
        without_gradient = list(run(*inputs()))
    outside = list(run(*made_within))
    for right, *others in zip(wanted, within, without_gradient, outside, strict=True):
        assert all(torch.equal(right, other) for other in others)


@pytest.mark.parametrize("name", ["tsit5", "dopri5", "rodas5p"])
def test_inference_mode_with_times_of_their_own_and_in_the_native_back_end(name):
    def run(backend="eager", rows=True):
        x0, ts, u, p = inputs()
        ts = ts.unsqueeze(1).expand(-1, 3) * torch.tensor([1.0, 2.0, 0.5], dtype=F64) if rows else ts
        return solve(pendulum, x0, ts, u[0], p, solver=name, backend=backend, events=LIFT if rows else ()).xs

    for how in ({}, {"backend": "native", "rows": False}):
        wanted = run(**how)
        with torch.inference_mode():
            assert torch.equal(run(**how), wanted)


@pytest.mark.parametrize("name", ["tsit5", "rodas5p", "sdirk3", "torchdiffeq.dopri5"])
def test_captured_inference_tensors_and_modules(name):
    with torch.inference_mode():
        torch.manual_seed(0)
        net = nn.Linear(2, 2, dtype=F64)
        inside = solve(
            lambda t, x, u, p: torch.tanh(net(x)), inputs()[0], [0.0, 1.0], solver=name, **steps(name)
        )
    copy = nn.Linear(2, 2, dtype=F64)
    with torch.no_grad():
        copy.weight.copy_(net.weight)
        copy.bias.copy_(net.bias)
        wanted = solve(
            lambda t, x, u, p: torch.tanh(copy(x)), inputs()[0], [0.0, 1.0], solver=name, **steps(name)
        )
    assert torch.equal(inside.xs, wanted.xs)


def test_a_gradient_with_inference_tensors_as_constants():
    with torch.inference_mode():
        x0, ts, u, _ = inputs()
    gradients = []
    for x0_, ts_, u_ in ((x0, ts, u), inputs()[:3]):
        p = {"g": torch.tensor(2.0, dtype=F64, requires_grad=True)}
        gradients.append(torch.autograd.grad(solve(pendulum, x0_, ts_, u_[0], p).xs.sum(), p["g"])[0])
    assert torch.equal(*gradients)


def energy(z, p):
    return (0.5 * z[..., 1] ** 2 - p * torch.cos(z[..., 0])).sum()


def rotated(slope):
    return torch.stack((slope[..., 1], -slope[..., 0]), -1)


def by_local_leaf(t, x, u, p):
    """The state itself where it has a graph, a leaf of its own otherwise."""
    with torch.enable_grad():
        z = x if x.requires_grad else x.detach().requires_grad_()
        return rotated(torch.autograd.grad(energy(z, p), z, create_graph=True)[0])


def without_enable_grad(t, x, u, p):
    return rotated(torch.autograd.grad(energy(x, p), x, create_graph=True)[0])


def by_functorch(t, x, u, p):
    return rotated(torch.func.grad(energy)(x, p))


def in_closed_form(t, x, u, p):
    return torch.stack((x[..., 1], -p * torch.sin(x[..., 0])), -1)


HAMILTONIAN = [by_local_leaf, without_enable_grad, by_functorch]


@pytest.mark.parametrize("f", HAMILTONIAN)
@pytest.mark.parametrize(
    "name", ["rk4", "tsit5", "sdirk3", "rodas5p", "stormer_verlet", "torchdiffeq.dopri5"]
)
def test_a_field_that_differentiates_an_energy(f, name):
    for adjoint in make_solver(name).adjoints:
        results = []
        for field in (in_closed_form, f):
            x0 = inputs()[0].requires_grad_()
            p = torch.tensor(2.0, dtype=F64, requires_grad=True)
            xs = solve(field, x0, [0.0, 0.1, 0.2], None, p, solver=name, adjoint=adjoint, **steps(name)).xs
            # by p alone too: then no state at the start has a graph
            only = solve(
                field, inputs()[0], [0.0, 0.2], None, p, solver=name, adjoint=adjoint, **steps(name)
            ).xs
            gradients = (
                *torch.autograd.grad(xs.square().sum(), (x0, p)),
                *torch.autograd.grad(only.sum(), p),
            )
            results.append((xs.detach(), *gradients))
        for right, got in zip(*results, strict=True):
            assert torch.allclose(got, right, rtol=1e-6, atol=1e-8), adjoint
    with torch.inference_mode():
        p = torch.tensor(2.0, dtype=F64)
        xs = solve(f, inputs()[0], [0.0, 0.1, 0.2], None, p, solver=name, **steps(name)).xs
    assert torch.allclose(xs, results[0][0], rtol=1e-8)


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint", "adjoint"])
@pytest.mark.parametrize("name", ["rk4", "tsit5"])
def test_a_leaf_made_inside_of_f_is_no_captured_tensor(name, adjoint):
    """The energy's leaf is made at every evaluation; a parameter in a closure existed before and is captured."""

    def f(t, x, u, p):
        z = x.detach().requires_grad_()
        return rotated(torch.autograd.grad(energy(z, p), z, create_graph=True)[0])

    p = torch.tensor(2.0, dtype=F64, requires_grad=True)
    gradients = []
    for one in ("backprop", adjoint):
        xs = solve(
            f, inputs()[0], [0.0, 1.0], None, p, solver=name, adjoint=one, **steps(name, tolerance=1e-9)
        ).xs
        gradients.append(torch.autograd.grad(xs.sum(), p)[0])
    assert torch.allclose(*gradients, rtol=1e-3 if name == "rk4" else 1e-6)
    captured = lambda t, x, u, _: f(t, x, u, p)
    if adjoint == "backprop":
        xs = solve(
            captured, inputs()[0], [0.0, 1.0], solver=name, adjoint=adjoint, **steps(name, tolerance=1e-9)
        ).xs
        assert torch.allclose(torch.autograd.grad(xs.sum(), p)[0], gradients[0])
    else:
        with pytest.raises(ValueError, match="neither in u nor in p"):
            solve(captured, inputs()[0], [0.0, 1.0], solver=name, adjoint=adjoint, **steps(name))


class Noisy(nn.Module):
    """A field with dropout, batch statistics or a counter; a submodule, as networks have them."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        extra = {"dropout": nn.Dropout(0.2), "batch norm": nn.BatchNorm1d(2, dtype=F64), "counter": Counter()}
        self.net = nn.Sequential(nn.Linear(2, 2, dtype=F64), nn.Tanh(), extra[kind])

    def forward(self, t, x, u, p):
        return self.net(x)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=F64))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return x * (1 + 0.1 * self.calls)


GENERATOR = torch.Generator()
RECOMPUTING = [
    {"solver": "rk4", "dt": 0.25, "adjoint": "checkpoint"},
    {"solver": "rk4", "dt": 0.25, "adjoint": "adjoint"},
    {"solver": "rk4", "dt": 0.25, "on_failure": "mark"},
    {"solver": "rk4", "dt": 0.25, "events": LIFT},
    {"solver": "sdirk3", "dt": 0.25},
    {"solver": "rodas5p", "dt": 0.25},
    {"solver": "tsit5"},
    {"solver": "tsit5", "adjoint": "adjoint"},
    {"solver": "tsit5", "backend": "native"},
    {"solver": "torchdiffeq.dopri5", "adjoint": "adjoint"},
]
X0 = inputs()[0]
CAUSES = {
    "dropout": r"draws from torch's random generator.*\.eval\(\)",
    "batch norm": r"updates the buffer 'net\.2\.(running_mean|num_batches_tracked)'",
    "counter": r"updates the buffer '.*calls'",
}


@pytest.mark.parametrize("how", RECOMPUTING, ids=str)
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("kind", list(CAUSES))
def test_a_field_whose_steps_cannot_be_computed_again_is_refused(kind, gradient, how):
    """As f, in p, and in a closure; random state and buffers are as they were."""
    f = Noisy(kind)
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in f.state_dict().items()}
    for field, p in (
        (f, None),
        (lambda t, x, u, p: p(t, x, u, p), f),
        (lambda t, x, u, p: f(t, x, u, p), None),
    ):
        with torch.set_grad_enabled(gradient), pytest.raises(ValueError, match=CAUSES[kind]):
            solve(field, X0, [0.0, 1.0], None, p, **how)
        assert torch.equal(torch.get_rng_state(), before)
        for name, value in f.state_dict().items():
            assert torch.equal(value, state[name]), name
    assert solve(f.eval(), X0, [0.0, 1.0], **how).ok.all()


@pytest.mark.parametrize(
    ("f", "cause"),
    [
        (lambda t, x, u, p: x + torch.randn_like(x), "draws from torch's random generator"),
        (lambda t, x, u, p: x + torch.randn(2, generator=GENERATOR), "draws from a torch.Generator"),
        (lambda t, x, u, p, state=[0]: x * _grown(state), "another value"),
    ],
)
def test_other_fields_that_are_no_functions_are_refused(f, cause):
    state = GENERATOR.get_state()
    with pytest.raises(ValueError, match=cause):
        solve(f, X0, [0.0, 1.0])
    assert torch.equal(GENERATOR.get_state(), state)


def _grown(state):
    state[0] += 1
    return float(state[0])


def test_a_random_jump_of_an_event_is_refused():
    event = Event(lambda t, x, u, p: x[..., 1], lambda t, x, u, p: x * torch.rand_like(x))
    with pytest.raises(ValueError, match="an event draws from torch's random generator"):
        solve(in_closed_form, X0, [0.0, 1.0], None, 2.0, events=event)


@pytest.mark.parametrize("kind", list(CAUSES))
@pytest.mark.parametrize("name", ["rk4", "heun", "rkc", "torchdiffeq.rk4"])
def test_where_every_step_is_computed_once_the_gradient_is_that_of_the_value(name, kind):
    """The same seed gives the same value with and without a gradient, and finite differences agree."""

    def value(change, gradient):
        f = Noisy(kind)
        with torch.no_grad():
            f.net[0].weight[0, 0] += change
        torch.manual_seed(5)
        with torch.set_grad_enabled(gradient):
            return f, solve(f, X0, [0.0, 1.0], solver=name, dt=0.25).xs[-1].square().sum()

    f, loss = value(0.0, True)
    assert torch.equal(loss.detach(), value(0.0, False)[1])
    (by_weight,) = torch.autograd.grad(loss, f.net[0].weight)
    difference = (value(1e-6, False)[1] - value(-1e-6, False)[1]) / 2e-6
    assert by_weight[0, 0].item() == pytest.approx(difference.item(), abs=1e-7)


def test_the_look_at_f_moves_neither_the_random_state_nor_buffers():
    """One Euler step draws once: the noise is what the seed gives first."""
    torch.manual_seed(3)
    first = torch.randn(3, 2, dtype=F64)
    torch.manual_seed(3)
    xs = solve(lambda t, x, u, p: torch.randn_like(x), X0, [0.0, 1.0], solver="euler", dt=1.0).xs
    assert torch.allclose(xs[-1], X0 + first)
    f = Noisy("counter")
    solve(f, X0, [0.0, 1.0], solver="euler", dt=0.25)
    assert f.net[2].calls == 4


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["rk4", "tsit5", "sdirk3", "rodas5p"])
def test_the_backward_pass_repeats_steps_under_the_forward_autocast(name, inside):
    """In bfloat16, checkpoint gives backprop's gradient to the last bits, whether backward is called inside or not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    f = lambda t, x, u, p: p(x).to(x.dtype)
    solver = make_solver(name, newton_tolerance=2e-2) if name == "sdirk3" else name

    def gradients(adjoint, autocast=True):
        x0 = X0.float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            how = steps(name, tolerance=1e-2)
            xs = solve(f, x0, [0.0, 0.5, 1.0], None, net, solver=solver, adjoint=adjoint, **how).xs
            if inside:
                return torch.autograd.grad(xs.square().sum(), (x0, *net.parameters()))
        return torch.autograd.grad(xs.square().sum(), (x0, *net.parameters()))

    exact = gradients(None, autocast=False)
    backprop = gradients(None)
    assert not all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(exact, backprop, strict=True))
    for adjoint, accuracy in (("checkpoint", 1e-5), ("adjoint", 5e-2)):
        if adjoint in make_solver(name).adjoints:
            for right, got in zip(backprop, gradients(adjoint), strict=True):
                assert torch.allclose(got, right, rtol=accuracy, atol=accuracy * float(right.abs().max()))


@pytest.mark.parametrize("name", ["rk4", "tsit5", "torchdiffeq.rk4"])
def test_the_continuous_adjoint_evaluates_f_under_the_forward_autocast(name):
    seen = set()

    def f(t, x, u, p):
        seen.add((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return (x @ p).to(x.dtype)

    p = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        how = steps(name, tolerance=1e-2)
        xs = solve(f, X0.float(), [0.0, 1.0], None, p, solver=name, adjoint="adjoint", **how).xs
    torch.autograd.grad(xs.sum(), p)
    assert seen == {(True, torch.bfloat16)}


def test_a_backward_pass_inside_autocast_of_a_forward_pass_outside_of_it():
    seen = set()

    def f(t, x, u, p):
        seen.add(torch.is_autocast_enabled("cpu"))
        return x @ p

    p = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    xs = solve(f, X0.float(), [0.0, 1.0], None, p, adjoint="checkpoint").xs
    with torch.autocast("cpu", torch.bfloat16):
        torch.autograd.grad(xs.sum(), p)
    assert seen == {False}


def test_native_leaves_autocast_to_eager(caplog):
    f = lambda t, x, u, p: (x @ p).to(x.dtype)
    p = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    with torch.autocast("cpu", torch.bfloat16):
        eager = solve(f, X0.float(), [0.0, 1.0], None, p, rtol=1e-2, atol=1e-2, adjoint="checkpoint").xs
        native = solve(f, X0.float(), [0.0, 1.0], None, p, rtol=1e-2, atol=1e-2, backend="native").xs
    assert torch.equal(eager, native)
