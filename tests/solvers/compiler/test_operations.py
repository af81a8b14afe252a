"""The tables of operations: an operation from outside of the package, and agreement with the C++ headers."""

import subprocess
import sys

import pytest
import torch

from solvers import solve
from solvers.compiler.operations import OPERATIONS, Operation
from solvers.compiler.rules import ELEMENTWISE, RULES, register

F64 = torch.float64

_library = torch.library.Library("outside_of_solvers", "DEF")
_library.define("cube(Tensor a) -> Tensor")
_library.impl("cube", lambda a: a * a * a, "CompositeExplicitAutograd")
torch.library.register_autograd(
    "outside_of_solvers::cube",
    lambda ctx, bar: 3 * ctx.saved_tensors[0] ** 2 * bar,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    lib=_library,
)
CUBE = torch.ops.outside_of_solvers.cube


@pytest.fixture
def _registered():
    register(
        CUBE,
        "cube_from_outside",
        Operation(
            cpp=lambda a: f"{a} * {a} * {a}",
            derivative=lambda g, bar, out, a: (
                g.apply("mul", bar, g.apply("mul", 3.0, g.apply("mul", a, a))),
            ),
            fold=lambda a: a**3,
        ),
    )
    yield
    del OPERATIONS["cube_from_outside"], RULES[CUBE]
    ELEMENTWISE.remove(CUBE)


@pytest.mark.usefixtures("_registered")
def test_an_operation_from_outside(caplog):
    def field(t, x, u, p):
        return -p * CUBE(x + 0.1) + CUBE(torch.full_like(x, 0.5))

    found = []
    for backend in ("eager", "native"):
        x0 = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2).clone().requires_grad_()
        p = torch.tensor(0.7, dtype=F64, requires_grad=True)
        done = solve(
            field, x0, [0.0, 0.3], None, p, backend=backend, adjoint="checkpoint", rtol=1e-9, atol=1e-9
        )
        found.append((done.xs, *torch.autograd.grad(done.xs.square().sum(), (x0, p))))
    assert not caplog.records
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-10)


def test_without_being_registered_it_has_no_cpp(caplog):
    solve(lambda t, x, u, p: -CUBE(x), torch.ones(2, 1, dtype=F64), [0.0, 0.1], backend="native")
    assert "no C++ for the operation outside_of_solvers.cube" in caplog.text


@pytest.mark.usefixtures("_registered")
def test_names_are_taken_once():
    with pytest.raises(ValueError, match="there is an operation 'cube_from_outside' already"):
        register(CUBE, "cube_from_outside", OPERATIONS["cube_from_outside"])


def test_the_package_knows_no_operation_of_another():
    """In a process that has loaded nothing else."""
    code = (
        "from solvers.compiler.operations import OPERATIONS; from solvers.compiler.rules import RULES\n"
        "print([name for name in OPERATIONS if 'clip' in name], {str(packet).split('.')[0] for packet in RULES})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] {'aten'}\n"
