"""A compiled function of the rows of an array, without gradient."""

from __future__ import annotations

import ctypes
import importlib.resources
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solvers.compiler.ir import Function, Graph, Node, Place, Store, in_order
from solvers.compiler.limits import INLINE, check_lines
from solvers.compiler.print_cpp import Printer
from solvers.compiler.slots import Slots, array_of
from solvers.compiler.trace import NativeUnsupportedError, Tracer
from solvers.native import build

_SPACES = {
    "row": "in.row[{index}]",
    "shared": "splat(in.shared[{slot}][{index}])",
    "out": "out[{index}]",
}


class RowFunction:
    """``function`` for every row: from ``[rows, sum(sizes)]`` to ``[rows, width]``, both contiguous.

    Args:
        function: from tensors ``[1, size]``, one for each of ``sizes``, to tensors of one row each, which stand side
            by side in the result; booleans become 0 and 1.  Its first argument is a function that it may wrap around
            another one, which is then called in C++ instead of being written out: see :meth:`_Outliner.__call__`.
            Floating-point tensors that it holds are read at every call, all else is compiled in.
        sizes: the numbers of a row that each argument takes.
        dtype: float32 or float64.

    Raises:
        NativeUnsupportedError: it has no C++, or there is no compiler.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], sizes: Sequence[int], dtype: torch.dtype
    ) -> None:
        graph = Graph()
        slots = Slots(graph, (), "the function holds a tensor that requires a gradient", gradient=False)

        def captured(tensor: Tensor) -> np.ndarray:
            slot = slots.captured(tensor.detach() if tensor.requires_grad else tensor)
            return slots.array(slot, tuple(tensor.shape)) if isinstance(slot, int) else slot

        tracer = Tracer(graph, captured)
        arguments, at = [], 0
        for size in sizes:
            nodes = [graph.input("row", at + j) for j in range(size)]
            arguments.append(tracer.bind(torch.ones(1, size, dtype=dtype), array_of(nodes, (1, size))))
            at += size
        try:
            with torch.no_grad(), tracer:
                results = [_number(tracer, q, dtype) for q in function(_Outliner(graph, tracer), *arguments)]
        except NativeUnsupportedError:
            raise
        except Exception as error:
            raise NativeUnsupportedError(f"the function could not be traced: {error}") from error
        values = [
            q if isinstance(q, Node) else float(q) for r in results for q in tracer.array(r).reshape(-1)
        ]
        printer = Printer(graph, _SPACES)
        stores = [Store(Place("out", k), value) for k, value in enumerate(values)]
        body = [*printer.functions(values), printer.function("compute", (("V*", "out"),), stores)]
        check_lines(body)
        template = importlib.resources.files("solvers.native").joinpath("rows.cpp").read_text()
        head = f"typedef {'double' if dtype == torch.float64 else 'float'} T;\n"
        head += f"constexpr int ROW = {at}, OUT = {len(values)};\n"
        source = head + build.with_headers(template).replace("// EMITTED", "\n".join(body), 1)
        self._run = build.load(source).compute_rows
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        self._run.restype = ctypes.c_int
        self._dtype = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
        self.sizes, self.width = (at, len(values)), len(values)
        self._shared = [slot.source for slot in slots.slots]
        if any(q.dtype != dtype for q in self._shared):
            raise NativeUnsupportedError("the function holds tensors of several precisions")

    def bound(self, given: NDArray[Any], out: NDArray[Any]) -> Callable[[], bool]:
        """A call without arguments that computes ``out [rows, width]`` from ``given`` ``[rows, sum(sizes)]``.

        It returns whether all numbers in both are finite, and less than 1e30 in size.
        """
        for array, width in zip((given, out), self.sizes, strict=True):
            if (
                array.shape != (len(given), width)
                or not array.flags.c_contiguous
                or array.dtype != self._dtype
            ):
                raise ValueError(f"an array [{len(given)}, {width}] of {self._dtype} is needed")
        run, rows, shared = self._run, len(given), self._shared
        addresses = (ctypes.c_void_p * max(1, len(shared)))()
        start, end = given.ctypes.data, out.ctypes.data

        def call() -> bool:
            assert given is not None  # they have to live as long as this
            assert out is not None
            for k, tensor in enumerate(shared):
                addresses[k] = tensor.data_ptr()
            return bool(run(start, end, addresses, rows))

        return call


def _number(tracer: Tracer, value: Tensor, dtype: torch.dtype) -> Tensor:
    """What stands for a result; for a mask, which is no number in C++, 1 and 0."""
    if value.dtype != torch.bool or not any(isinstance(q, Node) for q in tracer.array(value).flat):
        return value.to(dtype)
    return torch.where(value, torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))


class _Outliner:
    """Makes functions that are called in C++ instead of being written out at each of their calls."""

    def __init__(self, graph: Graph, tracer: Tracer) -> None:
        self._graph, self._tracer, self._count = graph, tracer, 0

    def __call__(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same function of leading tensors or numbers; further arguments are the same at every call.

        What it computes may depend on the shapes of the tensors, not on their values.  A small one is left as it is.
        """
        known: dict[Any, Function | None] = {}

        def called(*arguments: Any) -> Tensor:
            tracer = self._tracer
            leading = [q for q in arguments if isinstance(q, (Tensor, float, int))]
            rest = arguments[len(leading) :]
            shapes = tuple(q.shape if isinstance(q, Tensor) else torch.Size() for q in leading)
            key = (shapes, tuple(map(id, rest)))
            if key not in known:
                with tracer.paused():
                    known[key] = self._traced(function, leading, rest)
            made = known[key]
            if made is None:
                return function(*arguments)
            given: list[Any] = []
            for q in leading:
                given += [*tracer.array(q).reshape(-1)] if isinstance(q, Tensor) else [float(q)]
            with tracer.paused():
                result = torch.zeros(self._shape[made])
                result = result.to(next(q for q in leading if isinstance(q, Tensor)))
            return tracer.bind(result, array_of(self._graph.call(made, given), tuple(result.shape)))

        self._shape: dict[Function, tuple[int, ...]] = {}
        return called

    def _traced(
        self, function: Callable[..., Tensor], leading: list[Any], rest: tuple[Any, ...]
    ) -> Function | None:
        like = next(q for q in leading if isinstance(q, Tensor))
        nodes = self._graph.parameters(sum(q.numel() if isinstance(q, Tensor) else 1 for q in leading))
        inner = Tracer(self._graph, self._tracer.array)
        examples, at = [], 0
        for q in leading:
            example = q.clone() if isinstance(q, Tensor) else torch.tensor(float(q)).to(like)
            part = nodes[at : at + example.numel()]
            examples.append(inner.bind(example, array_of(part, tuple(example.shape))))
            at += example.numel()
        with inner:
            result = function(*examples, *rest)
        values = list(inner.array(result).reshape(-1))
        if len(in_order(values)) <= INLINE:
            return None
        self._count += 1
        made = Function(f"called{self._count}", nodes, values)
        self._shape[made] = tuple(result.shape)
        return made
