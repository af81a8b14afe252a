"""Functions whose results are added to a vector: shared in kernels, and left out where nothing would be added."""

import math

import pytest
import torch

from solvers.compiler.contributions import Call, add_contributions
from solvers.compiler.fixed_point import fixed_point
from solvers.compiler.ir import Graph
from solvers.compiler.slots import array_of
from solvers.compiler.trace import NativeUnsupportedError, Tracer
from solvers.native.function import FunctionKernel

VECTORS = 3
LANES = 8  # of float64, at most


def bump(item, k):
    """Two terms, the second twice."""
    term = torch.sin(k * item["a"]) * item["b"]
    return [term, 0.0], k * item["b"] * term


def bumped(packed):
    """Three calls, of which two are alike; one of four entries gets nothing, one a constant only."""
    a, b, c, on = packed.unbind(-1)
    calls = [
        Call(bump, ({"a": b, "b": c}, 0.5), [0, 1, 2]),
        Call(bump, ({"a": c, "b": a}, 0.7), [2, 1, 0]),
        Call(bump, ({"a": a, "b": on}, 1.0), [0, 1, 2]),
        Call(lambda x: [2.5, x * x], (a,), [3, 2]),
    ]
    total = add_contributions([a, 0.0, c * b, 1.0], calls)
    assert total[1] == 0.0
    assert total[3] == 3.5
    return torch.stack((total[0], total[2]), -1)


def pressed(x, on):
    return [on * torch.sin(x) * torch.exp(x), on * x]


def guarded(packed):
    """What is added where ``on`` is zero is zero, too, so that it does not matter whether it is computed."""
    a, b, c, on = packed.unbind(-1)
    calls = [Call(pressed, (x, on), [0, 1], on) for x in (b, c)]
    return torch.stack(add_contributions([a * b, c], calls), -1)


@pytest.fixture
def packed():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(VECTORS * LANES, 4, generator=generator, dtype=torch.float64)


def functions(function, packed):
    """The C++ functions that a trace of ``function`` makes."""
    graph = Graph()
    nodes = [graph.input("x", k) for k in range(packed.shape[1])]
    tracer = Tracer(graph, captured=lambda tensor: pytest.fail(f"captured {tensor}"))
    x = tracer.bind(packed[:1].clone(), array_of(nodes, (1, packed.shape[1])))
    with torch.no_grad(), tracer:
        function(x)
    return [compiled for compiled, _ in graph.contributing.values()]


@pytest.mark.parametrize("function", [bumped, guarded])
def test_a_kernel_has_the_values_and_gradients_of_torch(function, packed):
    kernel = FunctionKernel(function, 4, torch.float64)
    packed[LANES : 2 * LANES, 3] = 0.0
    x, y = packed.clone().requires_grad_(), packed.clone().requires_grad_()
    ours, theirs = kernel(x), function(y)
    assert torch.allclose(ours, theirs, rtol=1e-13, atol=1e-13)
    weights = torch.linspace(-1, 2, ours.numel(), dtype=ours.dtype).view_as(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    # Derivatives by the number that decides are zero where it is zero.
    wanted = 4 if function is bumped else 3
    assert torch.allclose(x.grad[:, :wanted], y.grad[:, :wanted], rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(kernel, packed[:5].requires_grad_())


def test_calls_that_are_alike_share_a_function(packed):
    # 1.0 is built in, 0.5 and 0.7 are passed; one more is the lambda.
    assert len(functions(bumped, packed)) == 3
    assert len(functions(guarded, packed)) == 1


@pytest.mark.parametrize("together", [False, True], ids=["each call", "all calls together"])
def test_a_vector_in_which_all_are_zero_leaves_the_function_out(packed, together):
    def function(packed):
        a, on = packed[..., 0], packed[..., 3]
        # The 1 is added whether or not `on` is zero, so that it tells what was called.
        call = Call(lambda a, on: [a * a + 1.0], (a, on), [0], None if together else on)
        return torch.stack(add_contributions([a], [call], on if together else None), -1)

    kernel = FunctionKernel(function, 4, torch.float64)
    packed[:, 3] = 0.0
    packed[LANES, 3] = 2.0  # in the second vector, whatever the number of lanes
    x = packed.clone().requires_grad_()
    result = kernel(x)[:, 0]
    left_out = torch.ones(len(packed), dtype=torch.bool)
    left_out[LANES : 2 * LANES] = False
    a = packed[:, 0]
    assert torch.equal(result[left_out], a[left_out])
    assert math.isclose(float(result[LANES].detach()), float(a[LANES] + a[LANES] ** 2 + 1.0), rel_tol=1e-14)
    result.sum().backward()
    assert torch.equal(x.grad[left_out, 0], torch.ones(int(left_out.sum()), dtype=torch.float64))
    assert math.isclose(float(x.grad[LANES, 0]), 1.0 + 2.0 * float(a[LANES]), rel_tol=1e-14)


def test_within_a_fixed_point(packed):
    """The state that a loop settles in and its derivatives, with a call in every step."""

    def half(old, a, on):
        return [0.5 * (old + a * on / old)]

    def function(packed):
        def step(x, given):
            a, _, _, on = given.unbind(-1)
            old = x[..., 0]
            (new,) = add_contributions([0.0], [Call(half, (old, a, on), [0], on)])
            moving = torch.where((new - old).abs() > 1e-12 * new.abs(), 1.0, 0.0)
            return new[..., None], moving

        return fixed_point(step, torch.ones_like(packed[..., :1]), packed, 40)

    kernel = FunctionKernel(function, 4, torch.float64)
    x = (packed.abs() + 0.1).requires_grad_()
    result = kernel(x)[:, 0]
    product = (x[:, 0] * x[:, 3]).detach()
    assert torch.allclose(result, product.sqrt(), rtol=1e-12)
    result.sum().backward()
    assert torch.allclose(x.grad[:, 0], (0.5 * x[:, 3] / product.sqrt()).detach(), rtol=1e-10)


def test_derivatives_of_calls_within_calls(packed):
    def inner(x, y):
        return [x * y]

    def outer(x, y):
        return add_contributions([x, 0.0], [Call(inner, (x, y), [1]), Call(inner, (y, y), [1])])

    def function(packed):
        a, b, c, d = packed.unbind(-1)
        return torch.stack(
            add_contributions([a, 0.0], [Call(outer, (b, c), [0, 1]), Call(outer, (c, d), [1, 0])]), -1
        )

    kernel = FunctionKernel(function, 4, torch.float64)
    a, b, c, d = packed.unbind(-1)
    assert torch.allclose(
        kernel(packed), torch.stack((a + b + c * d + d * d, b * c + c * c + c), -1), rtol=1e-13
    )
    assert torch.autograd.gradcheck(kernel, packed[:5].requires_grad_())


def test_only_if_has_to_be_an_argument(packed):
    def function(packed):
        a, on = packed[..., 0], packed[..., 3]
        return torch.stack(add_contributions([a], [Call(lambda a: [a], (a,), [0], on)]), -1)

    with pytest.raises(ValueError, match="only_if has to be one of"):
        functions(function, packed)


def test_a_function_that_uses_a_tensor_of_its_own_is_refused(packed):
    weight = torch.tensor([2.0], dtype=torch.float64)

    def function(packed):
        a = packed[..., 0]
        return torch.stack(add_contributions([a], [Call(lambda a: [a * weight], (a,), [0])]), -1)

    with pytest.raises(NativeUnsupportedError, match="a tensor that is not one of its arguments"):
        functions(function, packed)
