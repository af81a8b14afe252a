"""Expressions with called functions and loops: values and gradients are torch's."""

import re

import pytest
import torch
from kernels import run

from solvers.compiler import print_cpp
from solvers.compiler.differentiate import gradient
from solvers.compiler.ir import Affine, Function, Graph, Place, Store, inputs_of
from solvers.compiler.print_cpp import Printer

F64 = torch.float64


def test_inputs_are_data():
    g = Graph()
    node = g.input("shared", 7, slot=3)
    assert node.place == Place("shared", 7, 3)
    assert node is g.input("shared", 7, 3)
    assert node is not g.input("shared", 3, 7)
    printer = Printer(g, {"shared": "w{slot}[{index}]", "vector": "v[{index}]"})
    assert printer.place(node.place) == "w3[7]"
    assert printer.place(Place("vector", Affine(4, 2))) == "v[4 + 2 * j]"
    assert printer.place(Place("vector", Affine(0))) == "v[j]"


def test_expressions_are_folded_shared_and_differentiated():
    g = Graph()
    x, y, bar = g.input("x", 0), g.input("x", 1), g.input("bar")
    product = g.apply("mul", x, y)
    assert g.apply("mul", y, x) is product
    assert g.apply("add", product, 0.0) is product
    assert g.apply("mul", 2.0, 3.0) == 6.0
    assert g.apply("neg", g.apply("neg", x)) is x
    (by_x, by_y), effects = gradient(g, [product], [bar], [x, y])
    assert by_x is g.apply("mul", bar, y)
    assert by_y is g.apply("mul", bar, x)
    assert effects == []
    printer = Printer(g, {"x": "x{index}", "bar": "bar", "gx": "gx"})
    text = printer.statements([Store(Place("gx"), by_x), Store(Place("gx"), 0.0, adds=True)])
    assert text.count("gx") == 1  # adding zero is no statement


def body(g, name, count, function):
    """A function of ``count`` parameters made by ``function(g, *parameters) -> results``."""
    parameters = g.parameters(count)
    return Function(name, parameters, function(g, *parameters))


def pendulum(g, q, v, k):
    """A step, and its energy."""
    rate = g.apply("neg", g.apply("mul", k, g.apply("sin", q)))
    following = g.apply("add", v, g.apply("mul", 0.1, rate))
    angle = g.apply("add", q, g.apply("mul", 0.1, following))
    return [angle, following, g.apply("mul", following, following)]


def torch_pendulum(q, v, k):
    following = v + 0.1 * (-k * torch.sin(q))
    return q + 0.1 * following, following, following * following


X = [0.3, -0.8, 1.1, 0.7, 1.9, -0.4]


def compare(build_results, torch_results, x=X):
    """Results of expressions of x and the gradient of their weighted sum against torch."""
    g = Graph()
    inputs = [g.input("x", k) for k in range(len(x))]
    outputs = build_results(g, inputs)
    weights = [0.5 + k for k in range(len(outputs))]
    found, _ = gradient(g, outputs, weights, inputs)
    count = len(outputs) + len(inputs)
    stores = [Store(Place("y", k), value) for k, value in enumerate([*outputs, *found])]
    got, text = run(g, stores, x, count)
    exact = torch.tensor(x, dtype=F64, requires_grad=True)
    right = torch.stack(list(torch_results(exact.unbind())))
    (by,) = torch.autograd.grad((right * torch.tensor(weights, dtype=F64)).sum(), exact)
    assert torch.allclose(torch.from_numpy(got), torch.cat((right.detach(), by)), rtol=1e-10, atol=1e-10)
    return text


def test_a_called_function_is_printed_and_differentiated_once():
    def build(g, x):
        f = body(g, "pendulum_step", 3, pendulum)
        state, energy = x[:2], 0.0
        for k in range(3):
            *state, term = g.call(f, [*state, x[2 + k]])
            energy = g.apply("add", energy, term)
        return [*state, energy]

    def right(x):
        q, v, energy = x[0], x[1], 0.0
        for k in range(3):
            q, v, term = torch_pendulum(q, v, x[2 + k])
            energy = energy + term
        return q, v, energy

    text = compare(build, right)
    assert text.count("static void pendulum_step(") == 1
    assert text.count("static void pendulum_step_vjp(") == 1
    assert text.count("pendulum_step_vjp(in, ") == 3


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_loop_with_a_carried_state(count):
    def build(g, x):
        f = body(g, "pendulum_step", 3, pendulum)
        calls = g.loop(f, x[:2], [[x[2 + k]] for k in range(count)])
        return [*calls[-1], *(call[2] for call in calls)]

    def right(x):
        q, v, terms = x[0], x[1], []
        for k in range(count):
            q, v, term = torch_pendulum(q, v, x[2 + k])
            terms.append(term)
        return q, v, terms[-1], *terms

    text = compare(build, right)
    assert text.count("pendulum_step_vjp(in, ") == 1  # in the body of the loop


def test_a_loop_over_rows_with_invariant_and_constant_arguments():
    weights = [0.5, -1.25, 2.0, 3.5]

    def row(g, a, b, c, w):
        return [g.apply("mul", w, g.apply("tanh", g.apply("add", g.apply("mul", a, b), c)))]

    def build(g, x):
        f = body(g, "weighted", 4, row)
        # Neighbours, every entry in another order, one for all, a number.
        items = [[x[k], x[(3 * k) % 5], x[5], weights[k]] for k in range(4)]
        return [result for (result,) in g.loop(f, [], items)]

    def right(x):
        return [weights[k] * torch.tanh(x[k] * x[(3 * k) % 5] + x[5]) for k in range(4)]

    compare(build, right)


def test_a_loop_in_a_called_function_and_a_call_in_a_loop():
    def build(g, x):
        f = body(g, "pendulum_step", 3, pendulum)

        def two_steps(g, q, v, k):
            first = g.call(f, [q, v, k])
            return g.loop(f, first[:2], [[k], [g.apply("mul", 2.0, k)]])[-1]

        outer = body(g, "three_steps", 3, two_steps)
        calls = g.loop(outer, x[:2], [[x[2]], [x[3]]])
        return g.call(outer, [*calls[-1][:2], x[4]])

    def right(x):
        q, v = x[:2]
        for k in (x[2], x[3], x[4]):
            for factor in (1.0, 1.0, 2.0):
                q, v, term = torch_pendulum(q, v, factor * k)
        return q, v, term

    compare(build, right)


@pytest.mark.parametrize("looped", [False, True])
def test_gradients_by_inputs_that_a_body_reads_itself_are_gathered(looped):
    """Also where no argument of a call has a gradient, so that its results are not used."""
    g = Graph()
    x = [g.input("x", k) for k in range(3)]
    f = body(g, "scaled", 1, lambda g, a: [g.apply("mul", g.apply("sin", x[2]), g.apply("exp", a))])
    values = [[0.25], [0.5]] if looped else [[0.25]]
    outputs = [r for call in (g.loop(f, [], values) if looped else [g.call(f, values[0])]) for r in call]
    assert inputs_of(outputs) == {x[2]}
    _, effects = gradient(g, outputs, [x[0]] * len(outputs), x[:1], {x[2]: Place("added", 0)})
    got, _ = run(g, effects, X[:3], 1)
    exact = (
        X[0]
        * torch.cos(torch.tensor(X[2], dtype=F64))
        * sum(torch.tensor(v[0], dtype=F64).exp() for v in values)
    )
    assert got[0] == pytest.approx(float(exact), rel=1e-12)


def test_wrong_numbers_of_arguments_are_errors():
    g = Graph()
    f = body(g, "pendulum_step", 3, pendulum)
    with pytest.raises(ValueError, match="pendulum_step takes 3 arguments, 2 are given"):
        g.call(f, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"takes 1 arguments in each of at least one call; given \[1, 2\]"):
        g.loop(f, [1.0, 2.0], [[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"given \[\]"):
        g.loop(f, [1.0, 2.0], [])


def test_long_bodies_are_split_without_a_change_of_values(monkeypatch):
    def build(g, x):
        f = body(g, "pendulum_step", 3, pendulum)
        values = list(x)
        for k in range(60):
            a, b = values[-1], values[(7 * k) % len(values)]
            larger = g.apply("where", g.apply("gt", a, b), g.apply("sin", a), g.apply("cos", b))
            values.append(g.apply("add", g.apply("mul", 0.3, larger), g.apply("sin", b)))
            if k % 20 == 0:
                values += g.call(f, [a, b, larger])
        return values[-5:]

    def right(x):
        values = list(x)
        for k in range(60):
            a, b = values[-1], values[(7 * k) % len(values)]
            larger = torch.where(a > b, torch.sin(a), torch.cos(b))
            values.append(0.3 * larger + torch.sin(b))
            if k % 20 == 0:
                values += torch_pendulum(a, b, larger)
        return values[-5:]

    whole = compare(build, right)
    monkeypatch.setattr(print_cpp, "PART", 40)
    parted = compare(build, right)
    assert "numbers_part0" not in whole
    assert "numbers_part3" in parted


def test_loops_hide_no_array_of_a_called_function():
    """What a function keeps for its vector-Jacobian product goes to the array k."""
    g = Graph()
    rows = g.parameters(40)
    for number in range(12):  # long enough to be made a loop
        rows = [g.apply("mul", g.apply("sin", x), g.apply("add", x, 2.0 + number)) for x in rows]
    stores = [Store(Place("kept", k * k), row) for k, row in enumerate(rows)]  # places that no formula gives
    text = Printer(g, {}).function("f", [("const V*", "a"), ("V*", "k")], stores, inline=False)
    assert re.search(r" k\[\w+\[\w+\]\] = ", text), text
    assert not {"a", "r", "k", "s"} & set(re.findall(r"for \(int (\w+) = 0", text))
