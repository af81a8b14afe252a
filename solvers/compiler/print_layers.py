"""Layers as C++: the struct of a network, which calls the functions of ``layers.h``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from solvers.compiler.differentiate import gradient
from solvers.compiler.ir import Affine, Node, Place, Store
from solvers.compiler.layers import Linear, Map, Network, Norm
from solvers.compiler.print_cpp import Printer

SPACES = {
    "stored": "act[{index} * NV]",
    "by_stored": "bar[{index} * NV]",
    "activation": "act[({index}) * NV + c]",
    "by_activation": "bar[({index}) * NV + c]",
    "feature": "b{slot}",
    "bar_out": "bar_out",
    "vector": "splat(shared[{slot}][{index}])",
    "by_vector": "by_shared[{index}]",
    "returning": "return",
}
"""The places of layers; ``j`` is the feature, ``c`` the vector of rollouts."""


@dataclass
class NetworkPrinter:
    """Prints a network.

    Attributes:
        wanted: where the vectors of slots gather their gradients, by slot.
        gathered: where the weights of products do, by product: a C++ constant, empty if it is not wanted.
        gradient: whether to print the backward pass.
    """

    network: Network
    printer: Printer
    wanted: Mapping[int, int]
    gradient: bool
    gathered: dict[int, str] = field(default_factory=dict)

    heads: ClassVar[dict[str, str]] = {
        "prologue": "inline void prologue(const In& in, V* act)",
        "forward": "void forward(const T* const* shared, V* act, int nv)",
        "results": "inline void results(const V* act, V* raw)",
        "seed": "inline void seed(const V* by_raw, V* bar)",
        "backward": "void backward(const T* const* shared, const V* act, V* bar, V* by_shared, int nv)",
        "weights": "void weights(const V* act, const V* bar, int nv, V* turned, V* by_shared)",
        "prologue_vjp": "inline void prologue_vjp(const In& in, const V* bar, V* by_x)",
    }

    def to_cpp(self, prologue_vjp: Sequence[Store]) -> str:
        """The struct; ``prologue_vjp`` is what the prologue's gradient is stored to."""
        network, buffers = self.network, self.network.buffers
        written = {buffer for buffer, _ in network.raw}
        forward = [self._forward(op) for op in network.operations]
        backward = [self._backward(op, written) for op in reversed(network.operations)]
        # Of products whose result is used: the others have no cotangent.
        weights = [self._weights(op) for op in reversed(network.linears()) if op.target in written]
        places = [buffers[b].offset + j for b, j in network.raw]
        numbers = {feature: k for k, feature in enumerate(network.raw)}
        seeds = [
            f"    bar[{buffers[b].offset + j} * NV] = "
            + (f"by_raw[{numbers[b, j]}];" if (b, j) in numbers else "V{};")
            for b in sorted({b for b, _ in network.raw})
            for j in range(buffers[b].width)
        ]
        methods = {
            "prologue": [self.printer.statements(network.prologue())],
            "forward": forward,
            "results": [f"    raw[{i}] = act[{place} * NV];" for i, place in enumerate(places)],
        }
        if self.gradient:
            methods |= {
                "seed": seeds,
                "backward": backward,
                "weights": weights,
                "prologue_vjp": [self.printer.statements(prologue_vjp)],
            }
        body = "\n".join(
            f"  static {self.heads[name]} {{\n{chr(10).join(lines)}\n  }}" for name, lines in methods.items()
        )
        return f"struct {network.name} {{\n  static constexpr int WIDTH = {network.width};\n{body}\n}};"

    def _at(self, buffer: int, array: str = "act") -> str:
        return f"{array} + {self.network.buffers[buffer].offset} * NV"

    def _width(self, buffer: int) -> int:
        return self.network.buffers[buffer].width

    def _finish(self, op: Linear) -> str:
        """The expression applied to a sum before it is stored."""
        bias = "" if op.bias is None else f" + splat(shared[{op.bias}][j])"
        maps = [m for m in self.network.operations if isinstance(m, Map)]
        fused = next((m for m in maps if m.fused and m.target == op.target), None)
        if fused is None:
            return f"[&](int j, V sum) {{ return sum{bias}; }}"
        code = self.printer.statements([Store(Place("returning"), fused.expression)])
        feature = self.printer.place(Place("feature", None, fused.sources[0]))
        return f"[&](int j, V sum) {{ const V {feature} = sum{bias};\n{code} }}"

    def _forward(self, op: Linear | Map | Norm) -> str:
        match op:
            case Linear():
                return (
                    f"    product<false>(shared[{op.weight}], {op.row}, {op.column}, {self._width(op.source)}, "
                    f"{self._at(op.source)}, {self._at(op.target)}, {self._width(op.target)}, nv, "
                    f"{self._finish(op)});"
                )
            case Norm():
                width = self._width(op.source)
                return f"    standardise({self._at(op.source)}, {self._at(op.target)}, {width}, nv, T({op.eps!r}));"
            case Map(fused=True):
                return ""
        code = self.printer.statements([Store(self._feature_of(op.target), op.expression)])
        return self._loop(op.target, self._reads(op) + code)

    def _feature_of(self, buffer: int, space: str = "activation") -> Place:
        """The feature at hand of a buffer."""
        return Place(space, Affine(self.network.buffers[buffer].offset))

    def _reads(self, op: Map) -> str:
        return "".join(
            f"    const V {self.printer.place(self.network.leaf(s).place)} = "
            f"{self.printer.place(self._feature_of(s))};\n"
            for s in op.sources
        )

    def _loop(self, buffer: int, body: str) -> str:
        return (
            f"    for (int j = 0; j < {self._width(buffer)}; j++)\n"
            f"      for (int c = 0; c < nv; c++) {{\n{body}\n      }}"
        )

    def _backward(self, op: Linear | Map | Norm, written: set[int]) -> str:
        """From the cotangent of the target to those of the sources, which are set first and added to later."""
        if op.target not in written:
            return ""  # it is not used
        match op:
            case Linear():
                add = op.source in written
                written.add(op.source)
                return (
                    f"    product<{str(add).lower()}>(shared[{op.weight}], {op.column}, {op.row}, "
                    f"{self._width(op.target)}, {self._at(op.target, 'bar')}, {self._at(op.source, 'bar')}, "
                    f"{self._width(op.source)}, nv, [](int, V sum) {{ return sum; }});"
                )
            case Norm():
                add = op.source in written
                written.add(op.source)
                return (
                    f"    standardise_vjp<{str(add).lower()}>({self._at(op.source)}, {self._at(op.target)}, "
                    f"{self._at(op.target, 'bar')}, {self._at(op.source, 'bar')}, {self._width(op.source)}, nv, "
                    f"T({op.eps!r}));"
                )
        return self._backward_of_map(op, written)

    def _backward_of_map(self, op: Map, written: set[int]) -> str:
        network, expression = self.network, op.expression
        if not isinstance(expression, Node):
            return ""
        leaves = [network.leaf(s) for s in op.sources]
        vectors = [v for v in network.vectors_below(expression) if v.place.slot in self.wanted]
        bar = network.graph.input("bar_out")
        gradients, _ = gradient(network.graph, [expression], [bar], [*leaves, *vectors])
        stores = []
        for s, term in zip(op.sources, gradients, strict=False):
            place = op.target if op.fused else s
            adds = s in written and not op.fused
            written.add(s)
            stores.append(Store(self._feature_of(place, "by_activation"), term, adds))
        for v, term in zip(vectors, gradients[len(leaves) :], strict=True):
            step = v.place.index.step if isinstance(v.place.index, Affine) else 0
            stores.append(Store(Place("by_vector", Affine(self.wanted[v.place.slot], step)), term, adds=True))
        known = {} if expression in leaves else {expression: self._feature_of(op.target)}
        reads = "" if op.fused else self._reads(op)
        given = f"    const V bar_out = {self.printer.place(self._feature_of(op.target, 'by_activation'))};\n"
        return self._loop(op.target, reads + given + self.printer.statements(stores, known))

    def _weights(self, op: Linear) -> str:
        lines = []
        if gathered := self.gathered.get(op.target):
            turned = str(self._bar_turned(op)).lower()
            lines.append(
                f"    outer<{turned}>({self._at(op.target, 'bar')}, {self._at(op.source)}, "
                f"{self._width(op.target)}, {self._width(op.source)}, nv, turned, by_shared + {gathered});"
            )
        if op.bias is not None and op.bias in self.wanted:
            lines.append(
                f"    add_sums({self._at(op.target, 'bar')}, nv, by_shared + {self.wanted[op.bias]}, "
                f"{self._width(op.target)});"
            )
        return "\n".join(lines)

    def _bar_turned(self, op: Linear) -> bool:
        """Whether the cotangent is the wider of the product's two sides."""
        return self._width(op.target) > self._width(op.source)

    def room(self, op: Linear) -> str:
        """C++ for the number of vectors in which the gradient of a product's matrix gathers."""
        sides = self._width(op.source), self._width(op.target)
        return f"{min(sides)} * vectors_for({max(sides)})"

    def spread(self, op: Linear) -> str:
        """C++ that adds what has gathered to the gradient of a product's matrix, ``to``."""
        rows, columns = self._width(op.target), self._width(op.source)
        narrow, wide = ("k", "j") if self._bar_turned(op) else ("j", "k")
        across = f"vectors_for({max(rows, columns)})"
        return (
            f"  if (T* to = by[{op.weight}])\n    for (int j = 0; j < {rows}; j++)\n"
            f"      for (int k = 0; k < {columns}; k++)\n"
            f"        to[g * SIZES[{op.weight}] + j * {op.row} + k * {op.column}] += "
            f"gathered[{self.gathered[op.target]} + {narrow} * {across} + {wide} / LANES][{wide} % LANES];"
        )
