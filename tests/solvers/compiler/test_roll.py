"""Similar rows become loops, with the values and gradients of the straight-line code."""

import pytest
import torch
from kernels import run

from solvers import solve
from solvers.compiler import roll
from solvers.compiler.differentiate import gradient
from solvers.compiler.ir import Graph, Place, Store
from solvers.compiler.slots import array_of
from solvers.compiler.trace import trace

F64 = torch.float64


def burgers(x):
    """Neighbours in a circle."""
    left, right = x.roll(1, -1), x.roll(-1, -1)
    return 0.3 * (right - 2 * x + left) - x * (right - left) + 0.1 * torch.sin(x)


def chain(x):
    """Ends that differ, numbers of their own in every row, a mask and a sum over all."""
    n = x.shape[-1] // 2
    place, velocity = x[..., :n], x[..., n:]
    wall = torch.zeros_like(place[..., :1])
    strain = torch.cat((wall, place * torch.linspace(1, 2, n, dtype=x.dtype), wall), -1)
    tension = strain[..., 1:] - strain[..., :-1]
    pulled = torch.where(place > 0.2, tension[..., 1:], 0.5 * tension[..., 1:]) - tension[..., :-1]
    drag = 0.01 * velocity.square().sum(-1, keepdim=True)
    return torch.cat((velocity, pulled - drag * velocity), -1)


def mixing(x):
    """Every row depends on all columns."""
    return torch.tanh(x @ torch.linspace(-1, 1, x.shape[-1] ** 2, dtype=x.dtype).reshape(x.shape[-1], -1))


@pytest.mark.parametrize(("function", "n"), [(burgers, 128), (chain, 80), (mixing, 40)])
def test_rolled_values_and_gradients(function, n, monkeypatch):
    exact = torch.sin(torch.arange(n, dtype=F64)).requires_grad_()
    right = function(exact)
    weights = torch.linspace(1, 2, n, dtype=F64)
    (by,) = torch.autograd.grad((weights * right).sum(), exact)
    lengths = []
    for start in (roll.ROLLED_FROM, 10**9):
        monkeypatch.setattr(roll, "ROLLED_FROM", start)
        g = Graph()
        inputs = [g.input("x", k) for k in range(n)]
        example = (torch.zeros(n, dtype=F64), array_of(inputs, (n,)))
        (outputs,) = trace(function, [example], g, lambda q: q.numpy().astype(object))
        found, _ = gradient(g, list(outputs), weights.tolist(), inputs)
        stores = [Store(Place("y", k), value) for k, value in enumerate([*outputs, *found])]
        got, text = run(g, stores, exact.detach().numpy(), 2 * n)
        lengths.append(text.count("\n"))
        assert torch.allclose(torch.from_numpy(got), torch.cat((right.detach(), by)), rtol=1e-10, atol=1e-12)
    assert lengths[0] < lengths[1] - 3 * n


def test_known_nodes_are_read_from_their_places():
    g = Graph()
    x = [g.input("x", k) for k in range(64)]
    expensive = [g.apply("sin", q) for q in x]
    outputs = [
        g.apply("mul", q, g.apply("add", e, g.apply("mul", e, e))) for q, e in zip(x, expensive, strict=True)
    ]
    stores = [Store(Place("y", k), value) for k, value in enumerate(outputs)]
    known = {e: Place("saved", k) for k, e in enumerate(expensive)}
    made, left = roll.rolled(g, stores, known)
    assert not left
    assert len({store.value.args[0] for store in made}) == 1
    (loop,) = {store.value.args[0] for store in made}
    assert {a.place.space for a in loop.args} == {"x", "saved"}
    assert loop.data.count == 64


def test_small_graphs_and_those_without_rows_stay_as_they_are():
    g = Graph()
    x = [g.input("x", k) for k in range(6)]
    few = [Store(Place("y", k), g.apply("sin", q)) for k, q in enumerate(x)]
    assert roll.rolled(g, few) == (few, {})
    value = x[0]
    for k in range(400):
        value = g.apply(("sin", "exp", "tanh")[k % 3], g.apply("add", value, x[k % 6]))
    deep = [Store(Place("y", 0), value)]
    assert roll.rolled(g, deep) == (deep, {})


def test_a_long_chain_of_dependent_rows_is_no_deep_recursion():
    g = Graph()
    rows = [g.input("x", k) for k in range(32)]
    for k in range(1500):
        rows = [g.apply("mul", 0.999 + 1e-6 * k, g.apply("sin", q)) for q in rows]
    made, _ = roll.rolled(g, [Store(Place("y", k), q) for k, q in enumerate(rows)])
    assert all(store.value.op == "result" for store in made)


def test_a_solve_of_many_states_equals_the_eager_one(caplog):
    def field(t, x, u, p):
        return p["nu"] * burgers(x) + torch.cos(t)[..., None] * p["own"][..., None]

    found = []
    for backend in ("eager", "native"):
        x0 = torch.sin(torch.arange(5 * 64, dtype=F64)).reshape(5, 64).requires_grad_()
        p = {
            "nu": torch.tensor(0.3, dtype=F64, requires_grad=True),
            "own": torch.linspace(-1, 1, 5, dtype=F64).requires_grad_(),
        }
        how = {"rtol": 1e-8, "atol": 1e-8, "adjoint": "checkpoint"}
        done = solve(field, x0, [0.0, 0.2], None, p, backend=backend, **how)
        found.append([done.xs, *torch.autograd.grad(done.xs.square().sum(), (x0, p["nu"], p["own"]))])
    assert not caplog.records
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8)
