"""Steps repeated until they settle: values, early exit, and the gradient of the settled state."""

import pytest
import torch

from solvers.compiler.fixed_point import fixed_point
from solvers.compiler.structure import structure_only
from solvers.native.function import FunctionKernel

MOST = 40


def root(packed):
    """``[sqrt(a), sqrt(a) b]`` by Newton steps for ``a, b [B]``."""

    def step(x, given):
        (old,), (a, _) = x.unbind(-1), given.unbind(-1)
        # A full Newton step, whose derivative with respect to x vanishes at the root.
        new = 0.5 * (old + a / old)
        moving = torch.where((new - old).abs() > 1e-12 * new.abs(), 1.0, 0.0)
        return new[..., None], moving

    start = torch.ones_like(packed[..., :1])
    (x,) = fixed_point(step, start, packed, MOST).unbind(-1)
    return torch.stack((x, x * packed[..., 1]), -1)


@pytest.fixture(scope="module")
def kernel():
    return FunctionKernel(root, 2, torch.float64)


@pytest.fixture
def packed():
    return torch.rand(37, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 9 + 0.1


@pytest.mark.parametrize("compiled", [False, True])
def test_value_and_implicit_gradient(kernel, packed, compiled):
    function = kernel if compiled else root
    x = packed.clone().requires_grad_()
    result = function(x)
    assert torch.allclose(result[:, 0], packed[:, 0].sqrt(), rtol=1e-12)
    (gradient,) = torch.autograd.grad(result[:, 1].sum(), x)
    assert torch.allclose(gradient[:, 0], 0.5 * packed[:, 1] / packed[:, 0].sqrt(), rtol=1e-12)
    assert torch.allclose(gradient[:, 1], packed[:, 0].sqrt(), rtol=1e-12)


def test_gradcheck_of_the_kernel(kernel, packed):
    assert torch.autograd.gradcheck(kernel, packed[:5].requires_grad_())


def test_it_stops_as_soon_as_all_have_settled():
    calls = []

    def step(x, given):
        calls.append(1)
        return given, torch.where((x - given).abs().amax(-1) > 0, 1.0, 0.0)

    fixed_point(step, torch.zeros(3, 2), torch.ones(3, 2), MOST)
    assert len(calls) == 2


def test_at_most_so_many_steps():
    calls = []

    def step(x, given):
        calls.append(1)
        return x + given, torch.ones(len(x))

    assert fixed_point(step, torch.zeros(3, 2), torch.ones(3, 2), 7).eq(7).all()
    assert len(calls) == 7


def test_a_kernel_does_not_repeat_a_settled_vector_and_not_more_often_than_allowed():
    def counting(packed):
        def step(x, given):
            following = x + 1.0
            return following, torch.where(following[..., 0] < given[..., 0], 1.0, 0.0)

        return fixed_point(step, torch.zeros_like(packed), packed, 9)

    kernel = FunctionKernel(counting, 1, torch.float64)
    # All rollouts of a vector go on until the last has settled; here every vector has equal ones.
    for wanted, found in ((3.0, 3.0), (1.0, 1.0), (20.0, 9.0)):
        assert kernel(torch.full((16, 1), wanted, dtype=torch.float64)).eq(found).all()


def test_vmap_of_a_kernel(kernel, packed):
    stacked = torch.stack((packed, packed.flip(0)))
    assert torch.equal(torch.func.vmap(kernel)(stacked)[1], kernel(packed.flip(0)))


def test_autograd_knows_of_no_second_derivative(kernel, packed):
    x = packed.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kernel(x).sum(), x, create_graph=True)
    assert not gradient.requires_grad


def test_where_only_structure_matters_one_step_is_made():
    steps = []

    def step(x, given):
        steps.append(len(steps))
        return 0.5 * (x + given / x), torch.ones(len(x))  # never settled

    given = torch.tensor([[4.0]], requires_grad=True)
    with structure_only():
        found = fixed_point(step, torch.ones(1, 1), given, 30)
    assert len(steps) == 1
    assert torch.autograd.grad(found.sum(), given)[0].item() == 0.5
    fixed_point(step, torch.ones(1, 1), given, 30)
    assert len(steps) > 30
