"""Layers as CUDA: the struct of a network, which calls the functions of ``solvers/cuda/block_layers.h``.

As :mod:`solvers.compiler.print_layers`, but a network works on a whole block of rollouts at a time, whose threads share
every product; what it calls are sequences of phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from solvers.compiler.differentiate import gradient
from solvers.compiler.ir import Affine, Node, Place, Store
from solvers.compiler.layers import Linear, Map, Norm
from solvers.compiler.print_layers import SPACES as LAYER_SPACES
from solvers.compiler.print_layers import NetworkPrinter

SPACES = {**LAYER_SPACES, "by_vector": "scratch[({index}) * NV + c]"}

_ALIGNED = 4


@dataclass
class BlockNetworkPrinter(NetworkPrinter):
    """Prints a network for a block.

    Attributes:
        staged: whether the block has a copy of the weights, in rows that can be read four numbers at a time.
    """

    staged: bool = False

    heads: ClassVar[dict[str, str]] = {
        "prologue": "inline void prologue(const In& in, V* act)",
        "forward": "__forceinline__ void forward(const T* const* shared, const T* weights, V* act)",
        "results": "inline void results(const V* act, V* raw)",
        "seed": "inline void seed(const V* by_raw, V* bar)",
        "backward": (
            "__forceinline__ void backward(const T* const* shared, const T* weights, const V* act, V* bar, T* sums, "
            "T* scratch, T* partial)"
        ),
        "weights": "__forceinline__ void weights(const V* act, const V* bar, T* sums, T* partial)",
        "prologue_vjp": "inline void prologue_vjp(const In& in, const V* bar, V* by_x)",
    }

    def to_cpp(self, prologue_vjp: Sequence[Store]) -> str:
        """The struct; ``prologue_vjp`` is what the prologue's gradient is stored to."""
        lines, at = [], 0
        self._offsets: dict[int, int] = {}
        for op in self.network.linears() if self.staged else ():
            rows, columns = self._width(op.target), self._width(op.source)
            self._offsets[op.target] = at
            lines.append(
                f"    stage_matrix<{rows}, {columns}, {op.row}, {op.column}, {_stride(columns)}>"
                f"(shared[{op.weight}], weights + {at});"
            )
            at += rows * _stride(columns)
        stage = "  static __forceinline__ void stage(const T* const* shared, T* weights) {\n"
        return super().to_cpp(prologue_vjp)[:-2] + stage + "\n".join(lines) + "\n  }\n};"

    def staged_size(self) -> int:
        """Numbers in the block's copy of the weights."""
        return sum(self._width(op.target) * _stride(self._width(op.source)) for op in self.network.linears())

    def scratch(self) -> int:
        """Rows of ``scratch`` that the backward pass uses."""
        maps = [op for op in self.network.operations if isinstance(op, Map)]
        wanted = [op for op in maps if any(v.place.slot in self.wanted for v in self._vectors(op))]
        return max((self._width(op.target) for op in wanted), default=0)

    def _vectors(self, op: Map) -> list[Node]:
        return self.network.vectors_below(op.expression) if isinstance(op.expression, Node) else []

    def _matrix(self, op: Linear, turned: bool) -> tuple[str, str]:
        """Template arguments for the matrix of a product or its transpose, and where it is."""
        if self.staged:
            row, column = _stride(self._width(op.source)), 1
            at = f"weights + {self._offsets[op.target]}"
        else:
            row, column, at = op.row, op.column, f"shared[{op.weight}]"
        rows, columns = self._width(op.target), self._width(op.source)
        if turned:
            row, column, rows, columns = column, row, columns, rows
        return f"{rows}, {columns}, {row}, {column}, {str(self.staged).lower()}", at

    def _forward(self, op: Linear | Map | Norm) -> str:
        match op:
            case Linear():
                arguments, at = self._matrix(op, turned=False)
                return (
                    f"    product<false, {arguments}>({at}, {self._at(op.source)}, {self._at(op.target)}, "
                    f"{self._finish(op)});"
                )
            case Norm():
                width = self._width(op.source)
                return (
                    f"    standardise({self._at(op.source)}, {self._at(op.target)}, {width}, T({op.eps!r}));"
                )
        return super()._forward(op)

    def _backward(self, op: Linear | Map | Norm, written: set[int]) -> str:
        if op.target not in written or isinstance(op, Map):
            return super()._backward(op, written)
        adds = str(op.source in written).lower()
        written.add(op.source)
        source, target = self._at(op.source, "bar"), self._at(op.target, "bar")
        if isinstance(op, Linear):
            arguments, at = self._matrix(op, turned=True)
            return f"    product<{adds}, {arguments}>({at}, {target}, {source}, [](int, V sum) {{ return sum; }});"
        return (
            f"    standardise_vjp<{adds}>({self._at(op.source)}, {self._at(op.target)}, {target}, {source}, "
            f"{self._width(op.source)}, T({op.eps!r}));"
        )

    def _loop(self, buffer: int, body: str) -> str:
        whole, here = f"{self._width(buffer)} * ROLLOUTS", "const int j = i / ROLLOUTS, c = i % ROLLOUTS;"
        return f"    PHASE for (int i = c; i < {whole}; i += THREADS) {{\n      {here}\n{body}\n    }}"

    def _backward_of_map(self, op: Map, written: set[int]) -> str:
        """First what held vectors receive, for the cotangent of the target may be overwritten after that."""
        wanted, self.wanted = self.wanted, {}
        rest = super()._backward_of_map(op, written)
        self.wanted = wanted
        return "\n".join([*(self._by_vector(op, v) for v in self._wanted_vectors(op)), rest])

    def _wanted_vectors(self, op: Map) -> list[Node]:
        return [v for v in self._vectors(op) if v.place.slot in self.wanted]

    def _by_vector(self, op: Map, vector: Node) -> str:
        graph, expression = self.network.graph, op.expression
        assert isinstance(expression, Node)
        (term,), _ = gradient(graph, [expression], [graph.input("bar_out")], [vector])
        known = {expression: self._feature_of(op.target)}
        if any(expression is self.network.leaf(s) for s in op.sources):
            known = {}
        reads = "" if op.fused else self._reads(op)
        given = f"    const V bar_out = {self.printer.place(self._feature_of(op.target, 'by_activation'))};\n"
        stores = [Store(Place("by_vector", Affine(0)), term)]
        each = self._loop(op.target, reads + given + self.printer.statements(stores, known))
        index = vector.place.index
        add = "add_sums" if isinstance(index, Affine) and index.step else "add_all"
        width, to = self._width(op.target), self.wanted[vector.place.slot]
        return f"{each}\n    {add}<{width}>(scratch, sums + {to}, partial);"

    def _weights(self, op: Linear) -> str:
        lines = []
        rows, columns = self._width(op.target), self._width(op.source)
        if gathered := self.gathered.get(op.target):
            lines.append(
                f"    outer<{rows}, {columns}>({self._at(op.target, 'bar')}, {self._at(op.source)}, sums + {gathered});"
            )
        if op.bias is not None and op.bias in self.wanted:
            lines.append(
                f"    add_sums<{rows}>({self._at(op.target, 'bar')}, sums + {self.wanted[op.bias]}, partial);"
            )
        return "\n".join(lines)

    def room(self, op: Linear) -> str:
        """The numbers in which the gradient of a product's matrix gathers."""
        return str(self._width(op.target) * self._width(op.source))

    def spread(self, op: Linear) -> str:
        """CUDA that adds what has gathered to the gradient of a product's matrix, ``to``."""
        rows, columns = self._width(op.target), self._width(op.source)
        return (
            f"  if (T* to = by[{op.weight}])\n"
            f"    PHASE for (int i = c; i < {rows * columns}; i += THREADS)\n"
            f"      to[g * SIZES[{op.weight}] + i / {columns} * {op.row} + i % {columns} * {op.column}] += "
            f"sums[{self.gathered[op.target]} + i];"
        )


def _stride(columns: int) -> int:
    """Numbers from one row of a staged matrix to the next: of neighbouring rows, four begin in different banks."""
    padded = -(-columns // _ALIGNED) * _ALIGNED
    return padded if padded % (2 * _ALIGNED) else padded + _ALIGNED
