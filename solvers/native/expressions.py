"""Scalar expression graphs: built from numbers and inputs, differentiated in reverse, printed as C++."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

Operand = "Node | float"


@dataclass(frozen=True, eq=False)
class Node:
    """An operation on nodes and numbers; ``input`` nodes carry the C++ name they are read from.

    ``number`` counts the nodes of a graph as they are made.
    """

    op: str
    args: tuple[Node | float, ...]
    name: str = ""
    number: int = 0


class Graph:
    """Makes nodes: equal ones once, with constants folded."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Node] = {}

    def input(self, name: str) -> Node:
        """A value that the C++ code reads from ``name``."""
        return self._intern("input", (), name)

    def apply(self, op: str, *args: Node | float) -> Node | float:
        """The operation's result, simplified where that changes no value."""
        if all(not isinstance(a, Node) for a in args) and op in _FOLD:
            try:
                return float(_FOLD[op](*args))
            except (ArithmeticError, ValueError):
                pass  # the C++ code will produce the NaN or the infinity
        match op, args:
            case ("add", (a, 0.0)) | ("add", (0.0, a)) | ("sub", (a, 0.0)) | ("mul", (a, 1.0)):
                return a
            case ("mul", (1.0, a)) | ("div", (a, 1.0)):
                return a
            case ("sub", (0.0, a)):
                return self.apply("neg", a)
            case ("neg", (Node(op="neg", args=(a,)),)):
                return a
        if op in ("add", "mul"):
            # In an order of its own, so that the same function always gives the same source and the same bits.
            args = tuple(sorted(args, key=lambda a: a.number if isinstance(a, Node) else -1))
        return self._intern(op, args)

    def zero_product(self, a: Node | float, b: Node | float) -> Node | float:
        """``a · b`` where a factor of exactly zero is known to be meant as "no term" (cotangents)."""
        if (not isinstance(a, Node) and a == 0.0) or (not isinstance(b, Node) and b == 0.0):
            return 0.0
        return self.apply("mul", a, b)

    def _intern(self, op: str, args: tuple[Node | float, ...], name: str = "") -> Node:
        key = (op, name, *(("node", a.number) if isinstance(a, Node) else a for a in args))
        if key not in self._known:
            self._known[key] = Node(op, args, name, len(self._known))
        return self._known[key]

    def gradient(
        self, outputs: Sequence[Node | float], cotangents: Sequence[Node], inputs: Sequence[Node]
    ) -> list[Node | float]:
        """``sum_i cotangents[i] · d outputs[i] / d inputs[j]`` for every j, by reverse accumulation."""
        total: dict[int, Node | float] = {}

        def add(node: Node | float, term: Node | float) -> None:
            if isinstance(node, Node) and not (not isinstance(term, Node) and term == 0.0):
                total[id(node)] = self.apply("add", total.get(id(node), 0.0), term)

        for output, cotangent in zip(outputs, cotangents, strict=True):
            add(output, cotangent)
        for node in reversed(in_order([o for o in outputs if isinstance(o, Node)])):
            bar = total.get(id(node))
            if bar is None or node.op in ("input", *_FLAT):
                continue
            for arg, term in zip(node.args, _DERIVATIVES[node.op](self, bar, node, *node.args), strict=True):
                add(arg, term)
        return [total.get(id(node), 0.0) for node in inputs]


def in_order(roots: Sequence[Node], stop: Container[Node] = ()) -> list[Node]:
    """All nodes below the roots, arguments before their users; nothing below the nodes in ``stop``."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            if node not in stop:
                stack.extend((a, False) for a in reversed(node.args) if isinstance(a, Node))
    return order


EXPENSIVE = ("sin", "cos", "tan", "exp", "log", "sqrt", "tanh", "atan", "pow", "div")
"""Operations whose result is worth keeping for the backward pass."""


def to_cpp(results: Sequence[tuple[str, Node | float]], known: Mapping[Node, str] | None = None) -> str:
    """Statements that assign every result to its C++ name (``"gx[0] ="`` or ``"gp[0] +="``).

    ``known`` nodes are read by their names instead of being computed.
    """
    known = known or {}
    nodes = in_order([node for _, node in results if isinstance(node, Node)], stop=known)
    names: dict[int, str] = {id(node): name for node, name in known.items()}
    lines: list[str] = []

    def text(value: Node | float) -> str:
        return names[id(value)] if isinstance(value, Node) else literal(value)

    for node in nodes:
        if id(node) in names:
            continue
        if node.op == "input":
            names[id(node)] = node.name
            continue
        names[id(node)] = f"n{len(lines)}"
        lines.append(f"const auto n{len(lines)} = {_CPP[node.op](*map(text, node.args))};")
    lines += [f"{target} {text(node)};" for target, node in results if not _adds_nothing(target, node)]
    return "\n".join("    " + line for line in lines)


def literal(value: float) -> str:
    """A number as a C++ constant of the kernel's vector type."""
    if math.isnan(value):
        return "splat(std::numeric_limits<T>::quiet_NaN())"
    if math.isinf(value):
        return f"splat({'-' if value < 0 else ''}std::numeric_limits<T>::infinity())"
    return f"splat(T({value!r}))"


def _adds_nothing(target: str, node: Node | float) -> bool:
    return target.endswith("+=") and not isinstance(node, Node) and node == 0.0


def _sign(a: float) -> float:
    return float((a > 0) - (a < 0))


_FOLD: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "atan": math.atan,
    "abs": abs,
    "sign": _sign,
    "min": min,
    "max": max,
    "pow": math.pow,
}

# Piecewise constant: no gradient passes.
_FLAT = ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "sign", "floor")


def _d_extremum(
    g: Graph, bar: Node | float, out: Node, a: Node | float, b: Node | float
) -> tuple[Node | float, ...]:
    # As torch does: half to each where they are equal.
    half = g.apply("mul", 0.5, bar)
    tie = g.apply("eq", a, b)

    def side(chosen: Node | float) -> Node | float:
        return g.apply("where", tie, half, g.apply("where", g.apply("eq", out, chosen), bar, 0.0))

    return side(a), side(b)


def _d_power(
    g: Graph, bar: Node | float, out: Node, a: Node | float, b: Node | float
) -> tuple[Node | float, ...]:
    by_a = g.zero_product(bar, g.apply("mul", b, g.apply("pow", a, g.apply("sub", b, 1.0))))
    if not isinstance(b, Node):
        return by_a, 0.0
    # At a base of zero the derivative by the exponent is zero, not 0 · -inf.
    logarithm = g.apply("where", g.apply("eq", a, 0.0), 0.0, g.apply("log", a))
    return by_a, g.zero_product(bar, g.apply("mul", out, logarithm))


_DERIVATIVES: dict[str, Callable[..., tuple[Node | float, ...]]] = {
    "add": lambda g, bar, out, a, b: (bar, bar),
    "sub": lambda g, bar, out, a, b: (bar, g.apply("neg", bar)),
    "mul": lambda g, bar, out, a, b: (g.zero_product(bar, b), g.zero_product(bar, a)),
    "div": lambda g, bar, out, a, b: (
        g.apply("div", bar, b),
        g.apply("neg", g.zero_product(bar, g.apply("div", out, b))),
    ),
    "neg": lambda g, bar, out, a: (g.apply("neg", bar),),
    "sin": lambda g, bar, out, a: (g.zero_product(bar, g.apply("cos", a)),),
    "cos": lambda g, bar, out, a: (g.apply("neg", g.zero_product(bar, g.apply("sin", a))),),
    "tan": lambda g, bar, out, a: (g.zero_product(bar, g.apply("add", 1.0, g.apply("mul", out, out))),),
    "exp": lambda g, bar, out, a: (g.zero_product(bar, out),),
    "log": lambda g, bar, out, a: (g.apply("div", bar, a),),
    "sqrt": lambda g, bar, out, a: (g.apply("div", g.apply("mul", 0.5, bar), out),),
    "tanh": lambda g, bar, out, a: (g.zero_product(bar, g.apply("sub", 1.0, g.apply("mul", out, out))),),
    "atan": lambda g, bar, out, a: (g.apply("div", bar, g.apply("add", 1.0, g.apply("mul", a, a))),),
    "abs": lambda g, bar, out, a: (g.zero_product(bar, g.apply("sign", a)),),
    "min": _d_extremum,
    "max": _d_extremum,
    "pow": _d_power,
    "where": lambda g, bar, out, c, a, b: (0.0, g.apply("where", c, bar, 0.0), g.apply("where", c, 0.0, bar)),
}


def _call(name: str) -> Callable[..., str]:
    return lambda *args: f"{name}({', '.join(args)})"


def _infix(symbol: str) -> Callable[..., str]:
    return lambda a, b: f"{a} {symbol} {b}"


_CPP: dict[str, Callable[..., str]] = {
    "add": _infix("+"),
    "sub": _infix("-"),
    "mul": _infix("*"),
    "div": _infix("/"),
    "neg": lambda a: f"-{a}",
    "lt": _infix("<"),
    "le": _infix("<="),
    "gt": _infix(">"),
    "ge": _infix(">="),
    "eq": _infix("=="),
    "ne": _infix("!="),
    "and": _infix("&"),
    "or": _infix("|"),
    "not": lambda a: f"~{a}",
    "where": lambda c, a, b: f"{c} ? {a} : {b}",
    **{op: _call(f"v_{op}") for op in ("sin", "cos", "tan", "exp", "log", "sqrt", "tanh", "atan", "pow")},
    **{op: _call(f"v_{op}") for op in ("abs", "sign", "floor", "min", "max")},
}
