"""Networks as layers over blocks of rollouts: recognised while a module is traced, printed as C++.

A module is split into scalar expressions before its layers (observation, normalisation), the layers, and scalar
expressions after them (noise, squash).  A layer works on *features*, a buffer of ``width`` vectors; everything
elementwise between two matrix products becomes one loop over features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from solvers.compiler.expressions import Graph, Node, in_order, to_cpp
from solvers.compiler.rules import ELEMENTWISE, RULES, NoRuleError

aten = torch.ops.aten

_SMALL = 32
"""Matrices of at most so many numbers are written out as scalar expressions."""


@dataclass(frozen=True)
class Held:
    """A tensor that a function holds: ``slot`` of the kernel's shared inputs."""

    graph: Graph
    slot: int
    shape: tuple[int, ...]
    turned: bool = False

    def array(self) -> np.ndarray:
        """Its numbers as nodes."""
        stored = self.shape[::-1] if self.turned else self.shape
        nodes = [self.graph.input(shared_input(self.slot, j)) for j in range(int(np.prod(stored)))]
        array = np.empty(len(nodes), dtype=object)
        array[:] = nodes
        return array.reshape(stored).T if self.turned else array.reshape(stored)


def shared_input(slot: int, j: int | str) -> str:
    """The C++ name of number ``j`` of a shared input, for scalar expressions."""
    return f"splat(in.shared[{slot}][{j}])"


@dataclass(frozen=True, eq=False)
class Features:
    """``width`` numbers of every rollout, each ``expression`` of the same feature of buffers."""

    width: int
    expression: Node | float

    @property
    def shape(self) -> tuple[int, int]:
        return 1, self.width


@dataclass
class Buffer:
    """Room for ``width`` features; ``stored`` holds the scalar expressions that fill it, for an input."""

    width: int
    offset: int = 0
    stored: list[Node | float] | None = None


@dataclass
class Linear:
    """``out[j] = sum_k w[j, k] in[k] + bias[j]``; ``row`` and ``column`` are the strides of w."""

    source: int
    target: int
    weight: int
    row: int
    column: int
    bias: int | None
    gathered: str = ""
    """The offset of the gradient of w among the accumulators of a group, a C++ constant; empty if not required."""


@dataclass
class Map:
    """``out = expression`` of the same feature of ``sources`` and of held vectors."""

    sources: list[int]
    target: int
    expression: Node | float
    fused: bool = False
    """Computed as the sums of the matrix product before it are stored, in the same buffer."""


@dataclass
class Norm:
    """``out = (in - mean) / sqrt(variance + eps)`` over the features."""

    source: int
    target: int
    eps: float


@dataclass
class Network:
    """The traced network and its C++.  ``name`` is that of the C++ struct."""

    name: str
    graph: Graph
    more_rules: Mapping[Any, Callable[..., Any]]
    """Of scalar expressions, beside those of ``solvers.compiler.rules``."""
    operations: list[Linear | Map | Norm] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    raw: dict[tuple[int, int], Node] = field(default_factory=dict)
    """The features that scalar expressions read, by buffer and feature."""

    def __post_init__(self) -> None:
        self._leaves: dict[Node, int] = {}
        self._vectors: dict[Node, int] = {}
        self._made: dict[Node, int] = {}
        self.rules = self._rules()

    # ---- while tracing

    def _rules(self) -> dict[Any, Callable[..., Any]]:
        """The rules of scalar expressions, with those of layers in front."""
        own: dict[Any, Callable[..., Any]] = {
            aten.t: self._turn,
            aten.transpose: self._turn,
            aten.permute: self._turn,
            aten.mm: self._product,
        }
        own[aten.addmm] = lambda bias, a, w, beta=1, alpha=1: self._product(a, w, bias, beta * alpha)
        own[aten.native_layer_norm] = self._norm
        own |= dict.fromkeys((aten.view, aten._unsafe_view, aten.reshape), self._same)
        found = {
            packet: self._wrap(packet, own.get(packet), rule)
            for packet, rule in {**RULES, **self.more_rules}.items()
        }
        return found | {
            packet: self._wrap(packet, rule, None) for packet, rule in own.items() if packet not in found
        }

    def _wrap(
        self, packet: Any, layer: Callable[..., Any] | None, scalar: Callable[..., Any] | None
    ) -> Callable[..., Any]:
        def rule(graph: Graph, *args: Any, **kwargs: Any) -> Any:
            every = [*_flat(args), *_flat(kwargs.values())]
            if layer is not None and any(isinstance(a, (Features, Held)) for a in every):
                result = layer(*args, **kwargs)
                if result is not None:
                    return result
            widths = {a.width for a in every if isinstance(a, Features)}
            if packet in ELEMENTWISE and len(widths) == 1:
                (width,) = widths
                each = [self._feature(a, width) for a in args]
                if all(a is not None for a, given in zip(each, args, strict=True) if given is not None):
                    named = {k: self._feature(a, width) for k, a in kwargs.items()}
                    return Features(width, RULES[packet](graph, *each, **named).item())
            if scalar is None:
                raise NoRuleError("of these arguments")
            return scalar(
                graph, *map(self._scalars, args), **{k: self._scalars(a) for k, a in kwargs.items()}
            )

        return rule

    def _feature(self, value: Any, width: int) -> Any:
        """``value`` at one feature, None if it has no such meaning."""
        if isinstance(value, Features):
            return np.array([[value.expression]], dtype=object)
        if isinstance(value, Held):
            size = int(np.prod(value.shape))
            if size not in (1, width) or value.shape[-1:] not in ((), (1,), (width,)):
                return None
            leaf = self.graph.input(f"splat(shared[{value.slot}][{'j' if size > 1 else 0}])")
            self._vectors[leaf] = value.slot
            return np.array([[leaf]], dtype=object)
        if isinstance(value, np.ndarray):
            return value.reshape(1, 1) if value.size == 1 and not isinstance(value.item(), Node) else None
        return value

    def _scalars(self, value: Any) -> Any:
        if isinstance(value, Held):
            return value.array()
        if isinstance(value, (list, tuple)):
            return [self._scalars(v) for v in value]
        if not isinstance(value, Features):
            return value
        buffer = self._buffer(value)
        nodes = np.empty((1, value.width), dtype=object)
        for j in range(value.width):
            if (buffer, j) not in self.raw:
                self.raw[buffer, j] = self.graph.input(f"in.raw[{len(self.raw)}]")
            nodes[0, j] = self.raw[buffer, j]
        return nodes

    def _buffer(self, value: Features) -> int:
        """The buffer that holds these features."""
        expression = value.expression
        if isinstance(expression, Node) and expression in self._leaves:
            return self._leaves[expression]
        if isinstance(expression, Node) and expression in self._made:
            return self._made[expression]
        below = in_order([expression]) if isinstance(expression, Node) else []
        sources = sorted({self._leaves[node] for node in below if node in self._leaves})
        target = self._new(value.width)
        self.operations.append(Map(sources, target, expression))
        if isinstance(expression, Node):
            self._made[expression] = target
        return target

    def _new(self, width: int, stored: list[Node | float] | None = None) -> int:
        self.buffers.append(Buffer(width, stored=stored))
        return len(self.buffers) - 1

    def _features(self, buffer: int) -> Features:
        leaf = self.graph.input(f"b{buffer}")
        self._leaves[leaf] = buffer
        return Features(self.buffers[buffer].width, leaf)

    def _turn(self, value: Any, *dims: Any) -> Any:
        if not isinstance(value, Held) or len(value.shape) != 2:
            return None
        if len(dims) == 1 and [d % 2 for d in dims[0]] == [0, 1]:
            return value
        return Held(value.graph, value.slot, value.shape[::-1], not value.turned)

    def _same(self, value: Any, shape: Sequence[int], *_: Any) -> Any:
        if isinstance(value, Features) and tuple(shape) in ((1, value.width), (-1, value.width)):
            return value
        return None

    def _product(self, a: Any, w: Any, bias: Any = None, factor: float = 1) -> Any:
        if not isinstance(w, Held) or factor != 1 or isinstance(a, Held):
            return None
        if not isinstance(a, Features):
            if w.shape[0] * w.shape[1] <= _SMALL:
                return None
            stored = list(a.reshape(-1))
            if any(n.name.startswith("in.raw") for n in in_order([s for s in stored if isinstance(s, Node)])):
                raise NoRuleError("a layer after scalar operations on the results of a layer")
            source = self._new(w.shape[0], stored)
        else:
            source = self._buffer(a)
        target = self._new(w.shape[1])
        # w is [in, out]: out[j] sums over k of w[k, j], at j * row + k * column.
        row, column = (w.shape[0], 1) if w.turned else (1, w.shape[1])
        vector = isinstance(bias, Held) and bias.shape == (w.shape[1],)
        self.operations.append(Linear(source, target, w.slot, row, column, bias.slot if vector else None))
        result = self._features(target)
        if bias is None or vector:
            return result
        return self.rules[aten.add](self.graph, result, bias)

    def _norm(self, a: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
        if not isinstance(a, Features):
            if not isinstance(a, np.ndarray):
                return None
            a = self._features(self._new(a.size, list(a.reshape(-1))))
        if list(shape) != [a.width]:
            return None
        source, target = self._buffer(a), self._new(a.width)
        self.operations.append(Norm(source, target, eps))
        result = self._features(target)
        if weight is not None:
            result = self.rules[aten.mul](self.graph, result, weight)
        if bias is not None:
            result = self.rules[aten.add](self.graph, result, bias)
        unused = np.full((1, 1), np.nan, dtype=object)  # mean and deviation, for torch's own backward pass
        return [result, unused, unused]

    def scalars(self, value: Any) -> np.ndarray:
        """A traced result as an array of nodes."""
        return np.asarray(self._scalars(value), dtype=object)

    # ---- afterwards

    def settle(self) -> None:
        """Fuse maps into the products before them and lay out the buffers."""
        users: dict[int, int] = {}
        for buffer, _ in self.raw:
            users[buffer] = 99  # scalar expressions read it
        for op in self.operations:
            for source in op.sources if isinstance(op, Map) else [op.source]:
                users[source] = users.get(source, 0) + 1
        made_by = {op.target: op for op in self.operations}
        for op in self.operations:
            if not isinstance(op, Map) or len(op.sources) != 1 or users[op.sources[0]] != 1:
                continue
            before = made_by.get(op.sources[0])
            if isinstance(before, Linear) and not self._reads_its_source(op):
                self.buffers[op.sources[0]].width, op.fused, before.target = 0, True, op.target
        offset = 0
        for room in self.buffers:
            room.offset, offset = offset, offset + room.width
        self.width = offset

    def _reads_its_source(self, op: Map) -> bool:
        """Whether backward needs more than the result."""
        expression = op.expression
        if not isinstance(expression, Node):
            return False
        leaf, bar = self.graph.input(f"b{op.sources[0]}"), self.graph.input("bar_out")
        leaves = [leaf, *(v for v in self._vectors if v in in_order([expression]))]
        gradients = self.graph.gradient([expression], [bar], leaves)
        needed = in_order([g for g in gradients if isinstance(g, Node)], stop={expression})
        return leaf in needed and leaf is not expression

    def prologue(self) -> list[tuple[str, Node | float]]:
        """The expressions that fill the inputs, by C++ name."""
        return [
            (f"act[{(buffer.offset + j)} * NV] =", node)
            for buffer in self.buffers
            for j, node in enumerate(buffer.stored or ())
        ]

    def cotangents(self) -> list[Node]:
        """The names, in the order of ``prologue``, of its results' cotangents."""
        return [
            self.graph.input(f"bar[{buffer.offset + j} * NV]")
            for buffer in self.buffers
            for j in range(len(buffer.stored or ()))
        ]

    def to_cpp(
        self,
        prologue_vjp: Sequence[tuple[str, Node | float]],
        wanted: Mapping[int, int],
        gradient: bool,
    ) -> str:
        """The struct.

        Args:
            prologue_vjp: results of the prologue's gradient.
            wanted: where the vectors of slots gather their gradients, by slot.
            gradient: whether to print the backward pass.
        """
        forward, backward, weights = [], [], []
        written = {buffer for buffer, _ in self.raw}
        for op in self.operations:
            forward.append(self._forward(op))
        for op in reversed(self.operations):
            backward.append(self._backward(op, written, wanted))
            if isinstance(op, Linear):
                weights.append(self._weights(op, wanted))
        places = [self.buffers[b].offset + j for b, j in self.raw]
        outputs = sorted({b for b, _ in self.raw})
        seeds = [
            f"bar[{self.buffers[b].offset + j} * NV] = "
            + (f"by_raw[{list(self.raw).index((b, j))}];" if (b, j) in self.raw else "V{};")
            for b in outputs
            for j in range(self.buffers[b].width)
        ]
        methods = {
            "inline void prologue(const In& in, V* act)": [to_cpp(self.prologue())],
            "void forward(const T* const* shared, V* act, int nv)": forward,
            "inline void results(const V* act, V* raw)": [
                f"    raw[{i}] = act[{place} * NV];" for i, place in enumerate(places)
            ],
        }
        if gradient:
            methods |= {
                "inline void seed(const V* by_raw, V* bar)": ["    " + line for line in seeds],
                "void backward(const T* const* shared, const V* act, V* bar, V* by_shared, int nv)": backward,
                "void weights(const V* act, const V* bar, int nv, V* turned, V* by_shared)": weights,
                "inline void prologue_vjp(const In& in, const V* bar, V* by_x)": [to_cpp(prologue_vjp)],
            }
        body = "\n".join(
            f"  static {head} {{\n{chr(10).join(lines)}\n  }}" for head, lines in methods.items()
        )
        return f"struct {self.name} {{\n  static constexpr int WIDTH = {self.width};\n{body}\n}};"

    def _at(self, buffer: int, array: str = "act") -> str:
        return f"{array} + {self.buffers[buffer].offset} * NV"

    def _finish(self, op: Linear) -> str:
        """The expression applied to a sum before it is stored."""
        bias = "" if op.bias is None else f" + splat(shared[{op.bias}][j])"
        fused = next(
            (m for m in self.operations if isinstance(m, Map) and m.fused and m.target == op.target), None
        )
        if fused is None:
            return f"[&](int j, V sum) {{ return sum{bias}; }}"
        code = to_cpp([("return", fused.expression)])
        return f"[&](int j, V sum) {{ const V b{fused.sources[0]} = sum{bias};\n{code} }}"

    def _forward(self, op: Linear | Map | Norm) -> str:
        match op:
            case Linear():
                source, target = self.buffers[op.source], self.buffers[op.target]
                return (
                    f"    product<false>(shared[{op.weight}], {op.row}, {op.column}, {source.width}, "
                    f"{self._at(op.source)}, {self._at(op.target)}, {target.width}, nv, {self._finish(op)});"
                )
            case Norm():
                width = self.buffers[op.source].width
                return f"    standardise({self._at(op.source)}, {self._at(op.target)}, {width}, nv, T({op.eps!r}));"
            case Map(fused=True):
                return ""
        reads = self._reads(op)
        code = to_cpp([(f"act[({self.buffers[op.target].offset} + j) * NV + c] =", op.expression)])
        return self._loop(op.target, reads + code)

    def _reads(self, op: Map) -> str:
        return "".join(
            f"    const V b{s} = act[({self.buffers[s].offset} + j) * NV + c];\n" for s in op.sources
        )

    def _loop(self, buffer: int, body: str) -> str:
        return (
            f"    for (int j = 0; j < {self.buffers[buffer].width}; j++)\n"
            f"      for (int c = 0; c < nv; c++) {{\n{body}\n      }}"
        )

    def _backward(self, op: Linear | Map | Norm, written: set[int], wanted: Mapping[int, int]) -> str:
        """From the cotangent of the target to those of the sources, which are set first and added to later."""
        if op.target not in written:
            return ""  # it is not used
        match op:
            case Linear():
                add, width = op.source in written, self.buffers[op.source].width
                written.add(op.source)
                return (
                    f"    product<{str(add).lower()}>(shared[{op.weight}], {op.column}, {op.row}, "
                    f"{self.buffers[op.target].width}, {self._at(op.target, 'bar')}, {self._at(op.source, 'bar')}, "
                    f"{width}, nv, [](int, V sum) {{ return sum; }});"
                )
            case Norm():
                add, width = op.source in written, self.buffers[op.source].width
                written.add(op.source)
                return (
                    f"    standardise_vjp<{str(add).lower()}>({self._at(op.source)}, {self._at(op.target)}, "
                    f"{self._at(op.target, 'bar')}, {self._at(op.source, 'bar')}, {width}, nv, T({op.eps!r}));"
                )
        if not isinstance(op.expression, Node):
            return ""
        below = in_order([op.expression])
        leaves = [self.graph.input(f"b{s}") for s in op.sources]
        vectors = [v for v in below if self._vectors.get(v, -1) in wanted]
        bar = self.graph.input("bar_out")
        gradients = self.graph.gradient([op.expression], [bar], [*leaves, *vectors])
        results: list[tuple[str, Node | float]] = []
        for s, gradient in zip(op.sources, gradients, strict=False):
            place = op.target if op.fused else s
            assign = "+=" if s in written and not op.fused else "="
            written.add(s)
            results.append((f"bar[({self.buffers[place].offset} + j) * NV + c] {assign}", gradient))
        for v, gradient in zip(vectors, gradients[len(leaves) :], strict=True):
            j = "j" if "[j]" in v.name else "0"
            results.append((f"by_shared[{wanted[self._vectors[v]]} + {j}] +=", gradient))
        known = {op.expression: f"act[({self.buffers[op.target].offset} + j) * NV + c]"}
        for leaf in leaves:
            known.pop(leaf, None)
        reads = "" if op.fused else self._reads(op)
        given = f"    const V bar_out = bar[({self.buffers[op.target].offset} + j) * NV + c];\n"
        return self._loop(op.target, reads + given + to_cpp(results, known))

    def _weights(self, op: Linear, wanted: Mapping[int, int]) -> str:
        source, target = self.buffers[op.source], self.buffers[op.target]
        lines = []
        if op.gathered:
            turned = str(self.bar_turned(op)).lower()
            lines.append(
                f"    outer<{turned}>({self._at(op.target, 'bar')}, {self._at(op.source)}, {target.width}, "
                f"{source.width}, nv, turned, by_shared + {op.gathered});"
            )
        if op.bias is not None and op.bias in wanted:
            lines.append(
                f"    add_sums({self._at(op.target, 'bar')}, nv, by_shared + {wanted[op.bias]}, {target.width});"
            )
        return "\n".join(lines)

    def bar_turned(self, op: Linear) -> bool:
        """Whether the cotangent is the wider of the product's two sides."""
        return self.buffers[op.target].width > self.buffers[op.source].width

    def linears(self) -> list[Linear]:
        """The matrix products."""
        return [op for op in self.operations if isinstance(op, Linear)]

    def room(self, op: Linear) -> str:
        """C++ for the number of vectors in which the gradient of a product's matrix gathers."""
        sides = self.buffers[op.source].width, self.buffers[op.target].width
        return f"{min(sides)} * vectors_for({max(sides)})"

    def spread(self, op: Linear) -> str:
        """C++ that adds what has gathered to the gradient of a product's matrix, ``to``."""
        rows, columns = self.buffers[op.target].width, self.buffers[op.source].width
        narrow, wide = ("k", "j") if self.bar_turned(op) else ("j", "k")
        across = f"vectors_for({max(rows, columns)})"
        return (
            f"  if (T* to = by[{op.weight}])\n    for (int j = 0; j < {rows}; j++)\n"
            f"      for (int k = 0; k < {columns}; k++)\n"
            f"        to[g * SIZES[{op.weight}] + j * {op.row} + k * {op.column}] += "
            f"gathered[{op.gathered} + {narrow} * {across} + {wide} / LANES][{wide} % LANES];"
        )


def _flat(values: Any) -> list[Any]:
    flat = []
    for value in values:
        flat += _flat(value) if isinstance(value, (list, tuple)) else [value]
    return flat
