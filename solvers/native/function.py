"""A torch function of every rollout's numbers as a kernel, for calls outside of a compiled rollout."""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.compiler.differentiate import gradient
from solvers.compiler.ir import Graph, Place, Store
from solvers.compiler.limits import check_lines
from solvers.compiler.print_cpp import Printer
from solvers.compiler.slots import array_of
from solvers.compiler.trace import NativeUnsupportedError, trace
from solvers.native import build
from solvers.native.traces import Key, kept
from solvers.native.units import divided

Function = Callable[[Tensor], Tensor]

_SPACES = {
    "x": "in.x[{index}]",
    "bar": "bar[{index}]",
    "result": "result[{index}]",
    "by_x": "by_x[{index}]",
}


class CompiledFunction(torch.autograd.Function):
    """The call of a kernel, with its gradient, which has no derivative of its own: to autograd it is a constant."""

    @staticmethod
    def forward(kernel: FunctionKernel, x: Tensor) -> Tensor:
        return kernel.values(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[FunctionKernel, Tensor], output: Tensor) -> None:
        ctx.kernel, x = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        return None, ctx.kernel.pulled(x, bar)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[None, int], kernel: FunctionKernel, x: Tensor) -> tuple[Tensor, int]:
        """All batches as one."""
        x = x.movedim(in_dims[1], 0)
        results = CompiledFunction.apply(kernel, x.reshape(-1, kernel.size))
        return results.reshape(*x.shape[:-1], kernel.results), 0


class FunctionKernel:
    """A function from ``[B, k]`` to ``[B, m]``, rollout by rollout, that holds no tensors.

    Args:
        function: what is compiled; operations on tensors of the batch size 1 are what it becomes.
        size: k.
        dtype: float32 or float64.
        known_as: all that its trace depends on, see :class:`.traces.Key`; it is traced once for all processes then.
        packages: where the function is defined.

    Raises:
        NativeUnsupportedError: it holds what cannot be compiled, or there is no compiler.
    """

    def __init__(
        self,
        function: Function,
        size: int,
        dtype: torch.dtype,
        known_as: Sequence[Any] | None = None,
        packages: tuple[str, ...] = (),
    ) -> None:
        self.size, self.dtype = size, dtype
        key = None if known_as is None else Key.of(("function", size, dtype, *known_as), packages)
        made = kept(
            key, lambda: dict(zip(("source", "results"), _source(function, size, dtype), strict=True))
        )
        assert made is not None
        self.results: int = made["results"]
        self._library = build.load(made["source"])

    def __call__(self, x: Float[Tensor, "batch k"]) -> Float[Tensor, "batch m"]:
        """The function of ``x``, differentiable once."""
        return CompiledFunction.apply(self, x)

    def values(self, x: Float[Tensor, "batch k"]) -> Float[Tensor, "batch m"]:
        """The function without a gradient."""
        columns = x.detach().t().contiguous()
        results = columns.new_empty(self.results, len(x))
        self._library.forward(ctypes.c_int64(len(x)), *map(_address, (columns, results)))
        return results.t()

    def pulled(self, x: Float[Tensor, "batch k"], bar: Float[Tensor, "batch m"]) -> Float[Tensor, "batch k"]:
        """The vector-Jacobian product."""
        columns, bars = (q.detach().t().contiguous() for q in (x, bar))
        by_x = torch.empty_like(columns)
        self._library.backward(ctypes.c_int64(len(x)), *map(_address, (columns, bars, by_x)))
        return by_x.t()


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _refuse(tensor: Tensor) -> Any:
    raise NativeUnsupportedError(f"the function holds a tensor of shape {tuple(tensor.shape)}")


@functools.cache
def _template() -> str:
    return build.with_headers(
        importlib.resources.files("solvers.native").joinpath("function.cpp").read_text()
    )


def _source(function: Function, size: int, dtype: torch.dtype) -> tuple[str, int]:
    """The kernel's C++, and the number of results."""
    graph = Graph()
    inputs = [graph.input("x", k) for k in range(size)]
    example = torch.ones(1, size, dtype=dtype)
    (result,) = trace(function, [(example, array_of(inputs, (1, size)))], graph, _refuse)
    results = list(result.reshape(-1))
    bars = [graph.input("bar", k) for k in range(len(results))]
    found, _ = gradient(graph, results, bars, inputs)
    forward = [Store(Place("result", k), value) for k, value in enumerate(results)]
    pulled = [Store(Place("by_x", k), term) for k, term in enumerate(found)]
    printer = Printer(graph, _SPACES)
    parts = [
        *printer.functions(store.value for store in (*forward, *pulled)),
        printer.function("field", (("V*", "result"),), forward),
        printer.function("field_vjp", (("const V*", "bar"), ("V*", "by_x")), pulled),
    ]
    check_lines(parts)
    head = (
        f"typedef {'double' if dtype == torch.float64 else 'float'} T;\n"
        f"constexpr int INPUTS = {size}, RESULTS = {len(results)};\n#define GRADIENT 1\n"
    )
    return divided(head + _template(), parts), len(results)
