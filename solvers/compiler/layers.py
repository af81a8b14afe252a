"""Networks as layers over blocks of rollouts, recognised while a module is traced.

A module is split into scalar expressions before its layers (observation, normalisation), the layers, and scalar
expressions after them (noise, squash).  A layer works on *features*, a buffer of ``width`` vectors; everything
elementwise between two matrix products becomes one loop over features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from solvers.compiler.differentiate import gradient
from solvers.compiler.ir import Affine, Graph, Node, Operand, Place, Store, in_order
from solvers.compiler.limits import SMALL_MATRIX
from solvers.compiler.rules import ELEMENTWISE, RULES, NoRuleError
from solvers.compiler.slots import array_of

aten = torch.ops.aten


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
        nodes = [self.graph.input("shared", j, self.slot) for j in range(int(np.prod(stored)))]
        array = array_of(nodes, stored)
        return array.T if self.turned else array


@dataclass(frozen=True, eq=False)
class Features:
    """``width`` numbers of every rollout, each ``expression`` of the same feature of buffers."""

    width: int
    expression: Operand

    @property
    def shape(self) -> tuple[int, int]:
        return 1, self.width


@dataclass
class Buffer:
    """Room for ``width`` features; ``stored`` holds the scalar expressions that fill it, for an input."""

    width: int
    offset: int = 0
    stored: list[Operand] | None = None


@dataclass
class Linear:
    """``out[j] = sum_k w[j, k] in[k] + bias[j]``; ``row`` and ``column`` are the strides of w."""

    source: int
    target: int
    weight: int
    row: int
    column: int
    bias: int | None


@dataclass
class Map:
    """``out = expression`` of the same feature of ``sources`` and of held vectors."""

    sources: list[int]
    target: int
    expression: Operand
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
    """A traced network.  ``name`` is that of its C++ struct (``solvers.compiler.print_layers``)."""

    name: str
    graph: Graph
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
        found = {packet: self._wrap(packet, own.get(packet), rule) for packet, rule in RULES.items()}
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
            leaf = self.graph.input("vector", Affine(0) if size > 1 else 0, value.slot)
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
                self.raw[buffer, j] = self.graph.input("raw", len(self.raw))
            nodes[0, j] = self.raw[buffer, j]
        return nodes

    def _buffer(self, value: Features) -> int:
        """The buffer that holds these features."""
        expression = value.expression
        if isinstance(expression, Node) and expression in self._leaves:
            return self._leaves[expression]
        if isinstance(expression, Node) and expression in self._made:
            return self._made[expression]
        below = in_order([expression])
        sources = sorted({self._leaves[node] for node in below if node in self._leaves})
        target = self._new(value.width)
        self.operations.append(Map(sources, target, expression))
        if isinstance(expression, Node):
            self._made[expression] = target
        return target

    def _new(self, width: int, stored: list[Operand] | None = None) -> int:
        self.buffers.append(Buffer(width, stored=stored))
        return len(self.buffers) - 1

    def _features(self, buffer: int) -> Features:
        leaf = self.leaf(buffer)
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
            if w.shape[0] * w.shape[1] <= SMALL_MATRIX:
                return None
            stored = list(a.reshape(-1))
            if any(n.op == "input" and n.place.space == "raw" for n in in_order(stored)):
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
        leaf, bar = self.leaf(op.sources[0]), self.graph.input("bar_out")
        leaves = [leaf, *self.vectors_below(expression)]
        gradients, _ = gradient(self.graph, [expression], [bar], leaves)
        return leaf in in_order(gradients, stop={expression}) and leaf is not expression

    def leaf(self, buffer: int) -> Node:
        """The feature at hand of a buffer, in expressions of maps."""
        return self.graph.input("feature", None, buffer)

    def vectors_below(self, expression: Node) -> list[Node]:
        """What an expression of a map reads of held vectors."""
        return [node for node in in_order([expression]) if node in self._vectors]

    def prologue(self) -> list[Store]:
        """The scalar expressions that fill the inputs."""
        return [
            Store(Place("stored", buffer.offset + j), node)
            for buffer in self.buffers
            for j, node in enumerate(buffer.stored or ())
        ]

    def cotangents(self) -> list[Node]:
        """The cotangents of the results of ``prologue``, in its order."""
        return [
            self.graph.input("by_stored", buffer.offset + j)
            for buffer in self.buffers
            for j in range(len(buffer.stored or ()))
        ]

    def linears(self) -> list[Linear]:
        """The matrix products."""
        return [op for op in self.operations if isinstance(op, Linear)]


def _flat(values: Any) -> list[Any]:
    flat = []
    for value in values:
        flat += _flat(value) if isinstance(value, (list, tuple)) else [value]
    return flat
