"""Scalar expression graphs: built from numbers and inputs, differentiated in reverse, printed as C++."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

Operand = "Node | float"


@dataclass(frozen=True, eq=False)
class Node:
    """An operation on nodes and numbers; ``input`` nodes carry the C++ name they are read from.

    A ``call`` stands for a C++ function of its arguments, called ``name``, with ``size`` results; a ``result`` node
    is one of them.  ``number`` counts the nodes of a graph as they are made.
    """

    op: str
    args: tuple[Node | float, ...]
    name: str = ""
    number: int = 0
    size: int = 0


class Graph:
    """Makes nodes: equal ones once, with constants folded."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Node] = {}

    def input(self, name: str) -> Node:
        """A value that the C++ code reads from ``name``."""
        return self._intern("input", (), name)

    def call(self, name: str, args: Sequence[Node | float], size: int) -> list[Node]:
        """The ``size`` results of the C++ function ``name(in, args, results)``."""
        call = self._intern("call", tuple(args), name, size)
        return [self._intern("result", (call,), str(k)) for k in range(size)]

    def apply(self, op: str, *args: Node | float) -> Node | float:
        """The operation's result, simplified where that changes no value."""
        if all(not isinstance(a, Node) for a in args) and op in _FOLD:
            try:
                value = _FOLD[op](*args)
                return value if isinstance(value, bool) else float(value)
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
            case ("where", (bool(c), a, b)):
                return a if c else b
            case ("where", (_, a, b)) if a is b or (not isinstance(a, Node) and a == b):
                return a
            case ("and", (bool(c), a)) | ("and", (a, bool(c))):
                return a if c else False
            case ("or", (bool(c), a)) | ("or", (a, bool(c))):
                return True if c else a
        if op in ("add", "mul"):
            # In an order of its own, so that the same function always gives the same source and the same bits.
            args = tuple(sorted(args, key=lambda a: a.number if isinstance(a, Node) else -1))
        return self._intern(op, args)

    def zero_product(self, a: Node | float, b: Node | float) -> Node | float:
        """``a · b`` where a factor of exactly zero is known to be meant as "no term" (cotangents)."""
        if (not isinstance(a, Node) and a == 0.0) or (not isinstance(b, Node) and b == 0.0):
            return 0.0
        return self.apply("mul", a, b)

    def _intern(self, op: str, args: tuple[Node | float, ...], name: str = "", size: int = 0) -> Node:
        # The sign bit too: 0.0 == -0.0, but 1/0.0 is not 1/-0.0.
        key = (op, name, *(("node", a.number) if isinstance(a, Node) else (a, str(a)[:1]) for a in args))
        if key not in self._known:
            self._known[key] = Node(op, args, name, len(self._known), size)
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
        calls: dict[int, list[Node | float]] = {}
        for node in reversed(in_order([o for o in outputs if isinstance(o, Node)])):
            if node.op == "call":
                # Its results came before it in this order, so all their cotangents are known.
                terms: Sequence[Node | float] = self.call(
                    f"{node.name}_vjp",
                    (*node.args, *calls.get(id(node), [0.0] * node.size)),
                    len(node.args),
                )
            elif (bar := total.get(id(node))) is None or node.op in ("input", *_FLAT):
                continue
            elif node.op == "result":
                (call,) = node.args
                assert isinstance(call, Node)
                calls.setdefault(id(call), [0.0] * call.size)[int(node.name)] = bar
                continue
            else:
                terms = _DERIVATIVES[node.op](self, bar, node, *node.args)
            for arg, term in zip(node.args, terms, strict=True):
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


_FUNCTIONS = ("sin", "cos", "tan", "exp", "log", "sqrt", "tanh", "atan", "asin", "acos", "atan2", "pow")
_ROUNDING = ("floor", "ceil", "trunc", "round")

EXPENSIVE = (*_FUNCTIONS, "div")
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

    both = {
        (node.op, node.args[0]): node for node in nodes if node.op in ("sin", "cos") and node not in known
    }
    for node in nodes:
        if id(node) in names:
            continue
        if node.op == "input":
            names[id(node)] = node.name
            continue
        if node.op == "result":
            names[id(node)] = f"{text(node.args[0])}[{node.name}]"
            continue
        name = names[id(node)] = f"n{len(lines)}"
        if node.op == "call":
            arguments = ", ".join(map(text, node.args))
            lines.append(
                f"const V {name}a[] = {{{arguments}}}; V {name}[{node.size}]; {node.name}(in, {name}a, {name});"
            )
        elif (other := both.get(({"sin": "cos", "cos": "sin"}.get(node.op, ""), node.args[0]))) is not None:
            # The two together cost little more than one.
            names[id(other)] = f"{name}o"
            sine, cosine = (name, f"{name}o") if node.op == "sin" else (f"{name}o", name)
            lines.append(f"V {sine}, {cosine}; v_sincos({text(node.args[0])}, {sine}, {cosine});")
        else:
            lines.append(f"const auto {name} = {_CPP[node.op](*map(text, node.args))};")
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
    "clip": lambda a: min(max(a, -1.0), 1.0),
    "asin": math.asin,
    "acos": math.acos,
    "atan2": math.atan2,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
    "round": round,
    "detach": lambda a: a,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "not": lambda a: not a,
}

# Piecewise constant: no gradient passes.
_FLAT = ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "sign", "detach", *_ROUNDING)


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


def _d_projected_clip(g: Graph, bar: Node | float, out: Node, a: Node | float) -> tuple[Node | float, ...]:
    # The clamp to [-1, 1] whose gradient is that of the projected step: only what leads further outside is cut.
    inside = g.apply("lt", g.apply("abs", a), 1.0)
    back = g.apply("gt", g.apply("mul", a, bar), 0.0)
    return (g.apply("where", g.apply("or", inside, back), bar, 0.0),)


def _cosine_of_asin(g: Graph, a: Node | float) -> Node | float:
    return g.apply("sqrt", g.apply("sub", 1.0, g.apply("mul", a, a)))


def _d_atan2(
    g: Graph, bar: Node | float, out: Node, y: Node | float, x: Node | float
) -> tuple[Node | float, ...]:
    square = g.apply("add", g.apply("mul", y, y), g.apply("mul", x, x))
    return (
        g.apply("div", g.zero_product(bar, x), square),
        g.apply("neg", g.apply("div", g.zero_product(bar, y), square)),
    )


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
    "asin": lambda g, bar, out, a: (g.apply("div", bar, _cosine_of_asin(g, a)),),
    "acos": lambda g, bar, out, a: (g.apply("neg", g.apply("div", bar, _cosine_of_asin(g, a))),),
    "atan2": _d_atan2,
    "abs": lambda g, bar, out, a: (g.zero_product(bar, g.apply("sign", a)),),
    "clip": _d_projected_clip,
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
    **{op: _call(f"v_{op}") for op in (*_FUNCTIONS, *_ROUNDING, "abs", "sign", "clip")},
    "min": _call("v_minimum"),
    "max": _call("v_maximum"),
    "detach": lambda a: a,
}
