"""Compiled solves equal the eager ones; what cannot be compiled falls back and says why."""

import logging
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from solvers import solve
from solvers.compiler.ir import Graph
from solvers.compiler.trace import NativeUnsupportedError, trace
from solvers.native import adaptive, build

F64 = torch.float64
HOW = {"rtol": 1e-8, "atol": 1e-8, "adjoint": "checkpoint"}

try:
    build._toolchain()
except NativeUnsupportedError:
    pytest.skip("there is no C++ compiler", allow_module_level=True)


def oscillator(t, x, u, p):
    """Time, controls and parameters, shared and of every rollout, in one field."""
    q, v = x[..., 0], x[..., 1]
    drive = u["force"][..., 0] * torch.cos(3 * t) + u["bias"]
    return torch.stack((v, p["mu"] * (1 - q * q) * v - p["k"][0] * q - p["k"][1] * torch.sin(q) + drive), -1)


def oscillator_inputs(batch, dtype=F64):
    g = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=dtype).requires_grad_()
    x0 = torch.randn(batch, 2, generator=g, dtype=dtype).requires_grad_()
    u = {"force": rand(3, batch, 1), "bias": rand(3)}
    p = {"mu": rand(batch), "k": rand(2)}
    ts = torch.tensor([0.0, 0.31, 0.5, 0.9, 1.7, 2.0], dtype=dtype, requires_grad=True)
    switches = torch.tensor([0.0, 0.5, 1.2], dtype=dtype, requires_grad=True)
    return x0, u, p, ts, switches


@pytest.mark.parametrize("solver", ["tsit5", "dopri5"])
@pytest.mark.parametrize(("dtype", "accuracy"), [(F64, 1e-9), (torch.float32, 2e-3)])
@pytest.mark.parametrize("batch", [1, 7, 64, 65])
def test_states_and_all_gradients_equal_the_eager_ones(solver, dtype, accuracy, batch, caplog):
    tolerance = 1e-8 if dtype == F64 else 1e-4
    results = []
    for backend in ("eager", "native"):
        x0, u, p, ts, switches = oscillator_inputs(batch, dtype)
        done = solve(
            oscillator, x0, ts, u, p, control_times=switches, solver=solver, backend=backend, adjoint="checkpoint",
            rtol=tolerance, atol=tolerance,
        )  # fmt: skip
        weights = torch.linspace(1, 2, done.xs.numel(), dtype=dtype).reshape(done.xs.shape)
        inputs = (x0, u["force"], u["bias"], p["mu"], p["k"], ts, switches)
        results.append((done, torch.autograd.grad((weights * done.xs).sum(), inputs)))
    assert not caplog.records, "fell back to eager"
    (eager, by_eager), (native, by_native) = results
    assert torch.allclose(native.xs, eager.xs, rtol=accuracy, atol=accuracy)
    if dtype == F64:
        assert torch.equal(native.statistics.accepted, eager.statistics.accepted)
        assert torch.equal(native.statistics.rejected, eager.statistics.rejected)
    for got, right in zip(by_native, by_eager, strict=True):
        assert right.abs().max() > 0
        assert torch.allclose(got, right, rtol=accuracy, atol=accuracy * float(right.abs().max()))


def test_batched_equals_single_to_the_last_bit():
    def outcome(select):
        x0, u, p, ts, _ = oscillator_inputs(37)
        mine = {"force": u["force"][:, select], "bias": u["bias"]}
        done = solve(
            oscillator, x0[select], ts.detach(), mine, {"mu": p["mu"][select] * 20, "k": p["k"]}, backend="native",
            control_times=[0.0, 0.5, 1.2], **HOW,
        )  # fmt: skip
        return done.xs, torch.autograd.grad(done.xs.square().sum(), (x0, p["mu"]))

    xs, by = outcome(slice(None))
    for b in (0, 5, 36):
        alone, by_alone = outcome(slice(b, b + 1))
        assert torch.equal(alone[:, 0], xs[:, b])
        assert torch.equal(by_alone[0][b], by[0][b])
        assert torch.equal(by_alone[1][b], by[1][b])


def test_threads_change_no_bit():
    outcomes = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        x0, u, p, ts, _ = oscillator_inputs(200)
        done = solve(oscillator, x0, ts, u, p, control_times=[0.0, 0.5, 1.2], backend="native", **HOW)
        outcomes.append((done.xs, *torch.autograd.grad(done.xs.square().sum(), (x0, u["bias"], p["k"]))))
    torch.set_num_threads(before)
    for one, two in zip(*outcomes, strict=True):
        assert torch.equal(one, two)


# Every operation with a rule, at points where it is smooth.
OPERATIONS = {
    "add": lambda a, b: torch.add(a, b, alpha=2.5),
    "sub": lambda a, b: torch.sub(a, b, alpha=0.5),
    "rsub": lambda a, b: 3 - a,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "reciprocal": lambda a, b: torch.reciprocal(b),
    "neg": lambda a, b: -a,
    "powers": lambda a, b: a**2 + b**3 + b**-2 + b**0.5 + a.square(),
    "pow of a tensor": lambda a, b: b**a,
    "pow with a real exponent": lambda a, b: b**1.7,
    "number to a power": lambda a, b: 2.0**a,
    "sqrt": lambda a, b: torch.sqrt(b) + torch.rsqrt(b),
    "sine": lambda a, b: torch.sin(a) + torch.cos(b) + torch.tan(0.3 * a),
    "exp": lambda a, b: torch.exp(0.5 * a) + torch.log(b),
    "hyperbolic": lambda a, b: torch.tanh(a) + torch.sinh(0.3 * a) + torch.cosh(0.3 * b),
    "atan": lambda a, b: torch.atan(a),
    "sigmoid": lambda a, b: torch.sigmoid(a) + torch.nn.functional.silu(b),
    "relu": lambda a, b: torch.relu(a) + torch.relu(-b),
    "abs": lambda a, b: torch.abs(a) + torch.sign(a) * b,
    "extremes": lambda a, b: torch.maximum(a, b) + torch.minimum(a, 0.3 * b),
    "clamp": lambda a, b: a.clamp(-0.4, 0.4) + b.clamp_min(1.0) + a.clamp(max=0.1),
    "where": lambda a, b: torch.where((a > 0) & ~(b < 1), a * b, a - b) + (a > 0) * b,
    "reductions": lambda a, b: torch.stack((a, b, a * b), -1).sum(-1) + torch.stack((a, b), -1).mean(-1),
    "matrix": lambda a, b: (torch.stack((a, b), -1) @ torch.tensor([[0.3, -1.0], [0.5, 0.2]], dtype=F64)).sum(
        -1
    ),
    "shapes": lambda a, b: (
        torch.cat((a[..., None], b.unsqueeze(-1)), -1).transpose(-1, -2).mT[..., 1:].squeeze(-1) * a
    ),
    "split": lambda a, b: sum(torch.stack((a, b, a), -1).split([1, 2], -1)[1].unbind(-1)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_and_its_gradient(name, caplog):
    operation = OPERATIONS[name]

    def field(t, x, u, p):
        a, b = x[..., 0], 1.2 + 0.5 * torch.sin(x[..., 1])
        return torch.stack((0.2 * operation(a, b), -p * x[..., 0]), -1)

    gradients = []
    for backend in ("eager", "native"):
        x0 = torch.linspace(-1, 1, 22, dtype=F64).reshape(11, 2).clone().requires_grad_()
        p = torch.tensor(0.7, dtype=F64, requires_grad=True)
        # So short that no rollout crosses a kink, where the choice of steps hangs on the last bit.
        done = solve(field, x0, [0.0, 0.01], None, p, backend=backend, **HOW)
        gradients.append((done.xs, *torch.autograd.grad(done.xs.square().sum(), (x0, p))))
    assert not caplog.records
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-11, atol=1e-11)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(F64)

    def forward(self, t, x, u, p):
        return self.net(x) - x


@pytest.mark.parametrize("batch", [(5,), (2, 3), ()])
def test_a_neural_field_and_its_weights(batch, caplog):
    torch.manual_seed(0)
    net = Field()
    gradients = []
    for backend in ("eager", "native"):
        x0 = (
            torch.linspace(-1, 1, 3 * math.prod(batch), dtype=F64).reshape(*batch, 3).clone().requires_grad_()
        )
        done = solve(net, x0, [0.0, 1.0], backend=backend, **HOW)
        gradients.append((done.xs, *torch.autograd.grad(done.xs.square().sum(), (x0, *net.parameters()))))
    assert not caplog.records
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-7, atol=1e-8)


def test_new_values_are_used_and_new_numbers_trace_anew():
    x0 = torch.ones(2, 1, dtype=F64)
    scale = torch.tensor(1.0, dtype=F64)

    def rate(c):
        return lambda t, x, u, p: -c * scale * p * x

    value = lambda c, p: solve(rate(c), x0, [0.0, 1.0], None, p, backend="native", **HOW).xs[-1, 0, 0].item()
    assert value(1.0, torch.tensor(1.0, dtype=F64)) == pytest.approx(math.exp(-1), rel=1e-6)
    assert value(2.0, torch.tensor(1.0, dtype=F64)) == pytest.approx(math.exp(-2), rel=1e-6)
    assert value(2.0, torch.tensor(0.5, dtype=F64)) == pytest.approx(math.exp(-1), rel=1e-6)
    assert value(2.0, 0.25) == pytest.approx(math.exp(-0.5), rel=1e-6)
    scale.fill_(3.0)
    assert value(2.0, 0.25) == pytest.approx(math.exp(-1.5), rel=1e-6)


def test_a_changed_attribute_of_a_methods_object_is_seen():
    class Decay:
        rate = 1.0

        def field(self, t, x, u, p):
            return -self.rate * x

    decay = Decay()
    for rate in (1.0, 2.0):
        decay.rate = rate
        end = solve(decay.field, torch.ones(1, 1, dtype=F64), [0.0, 1.0], backend="native").xs[-1]
        assert end.item() == pytest.approx(math.exp(-rate), abs=1e-5)


def test_a_shared_leaf_as_long_as_the_batch_is_told_from_one_a_rollout():
    x0 = torch.ones(3, 1, dtype=F64)
    p = torch.tensor([1.0, 2.0, 3.0], dtype=F64, requires_grad=True)
    for f, right in (
        (lambda t, x, u, p: -p[2] * x, [math.exp(-3)] * 3),
        (lambda t, x, u, p: -p.unsqueeze(-1) * x, [math.exp(-1), math.exp(-2), math.exp(-3)]),
    ):
        xs = solve(f, x0, [0.0, 1.0], None, p, backend="native", **HOW).xs[-1, :, 0]
        assert xs.tolist() == pytest.approx(right, rel=1e-6)
        (by_p,) = torch.autograd.grad(xs.sum(), p)
        assert by_p.sum().item() == pytest.approx(-sum(right), rel=1e-6)


@pytest.mark.parametrize(
    ("field", "why"),
    [
        (lambda t, x, u, p: torch.fft.fft(x).real, "no C\\+\\+ for the operation"),
        (lambda t, x, u, p: -x if float(x.sum()) > 0 else x, "decides what is computed"),
        (lambda t, x, u, p: -x + 0.1 * x.mean(0), "differs from f .*does f mix rollouts"),
    ],
)
def test_what_has_no_translation_falls_back_and_says_why_once(field, why, caplog):
    x0 = torch.linspace(0.5, 1, 4, dtype=F64).reshape(2, 2)
    with caplog.at_level(logging.WARNING, "solvers"):
        for _ in range(2):
            done = solve(field, x0, [0.0, 1.0], backend="native")
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert re.search(why, caplog.records[0].message)
    assert torch.equal(done.xs, solve(field, x0, [0.0, 1.0], adjoint="checkpoint").xs)


def test_libraries_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path))
    build._load.cache_clear()
    adaptive._kernels.clear()
    f = lambda t, x, u, p: -1.5 * x
    solve(f, torch.ones(1, 1, dtype=F64), [0.0, 1.0], backend="native")
    (library,) = tmp_path.iterdir()
    made = library.stat().st_mtime_ns
    build._load.cache_clear()
    adaptive._kernels.clear()
    solve(f, torch.ones(1, 1, dtype=F64), [0.0, 1.0], backend="native")
    assert [p.stat().st_mtime_ns for p in tmp_path.iterdir()] == [made]


def test_a_second_solve_takes_the_kernel_from_memory():
    seen = []

    def field(t, x, u, p):
        seen.append(1)
        return -x

    x0 = torch.ones(3, 1, dtype=F64)
    solve(field, x0, [0.0, 1.0], backend="native")
    before = len(seen)
    solve(field, x0 * 2, [0.0, 2.0], backend="native", rtol=1e-4)
    assert len(seen) == before


def test_the_same_field_gives_the_same_source(monkeypatch):
    sources = []
    monkeypatch.setattr(
        build,
        "load",
        lambda source: (
            sources.append(source) or (_ for _ in ()).throw(NativeUnsupportedError("only looking"))
        ),
    )
    x0, u, p, ts, _ = oscillator_inputs(5)
    for _ in range(2):
        adaptive._kernels.clear()
        solve(oscillator, x0, ts, {"force": u["force"][0], "bias": u["bias"][0]}, p, backend="native")
    assert sources[0] == sources[1]


def test_interpretation_equals_the_function():
    def function(x):
        return torch.stack((x[0] * 2 + x[1], x.sum() / 4.0))

    example = (torch.zeros(2, dtype=F64), np.array([3.0, 5.0], dtype=object))
    (result,) = trace(function, [example], Graph(), lambda q: q.numpy())
    assert result.tolist() == [11.0, 2.0]
