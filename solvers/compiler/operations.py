"""The operations of expressions: the one table of what each is in C++, its derivative and its value on numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Operand = Any
"""A node or a constant of ``solvers.compiler.ir``, which stands above this table."""


class Graph(Protocol):
    """What derivatives are written with; ``solvers.compiler.ir.Graph`` is one."""

    def apply(self, op: str, *args: Operand) -> Operand:
        """The result of an operation."""

    def zero_product(self, a: Operand, b: Operand) -> Operand:
        """``a · b``, zero where a factor is the constant zero."""


Derivative = Callable[..., tuple[Operand, ...]]
"""``(graph, bar, out, *args) -> terms``: ``bar · d out / d arg`` for every argument."""


@dataclass(frozen=True)
class Operation:
    """An operation on numbers.

    Attributes:
        cpp: the C++ expression of its operands' C++ names, which are vectors of type ``V`` (``vectors.h``).
        derivative: see :data:`Derivative`; None where it is zero almost everywhere, so that no gradient passes.
        fold: its value on numbers; None if it is never computed while compiling.
        costly: whether its result is worth keeping for the backward pass.
        boolean: whether its result is a mask.
    """

    cpp: Callable[..., str]
    derivative: Derivative | None = None
    fold: Callable[..., float] | None = None
    costly: bool = False
    boolean: bool = False


def _call(name: str) -> Callable[..., str]:
    return lambda *args: f"{name}({', '.join(args)})"


def _infix(symbol: str) -> Callable[..., str]:
    return lambda a, b: f"{a} {symbol} {b}"


def _function(name: str, fold: Callable[..., float], derivative: Derivative) -> Operation:
    return Operation(_call(f"v_{name}"), derivative, fold, costly=True)


def _rounding(name: str, fold: Callable[..., float]) -> Operation:
    return Operation(_call(f"v_{name}"), None, fold)


def _comparison(symbol: str, fold: Callable[..., float]) -> Operation:
    return Operation(_infix(symbol), None, fold, boolean=True)


def _d_extremum(g: Graph, bar: Operand, out: Operand, a: Operand, b: Operand) -> tuple[Operand, ...]:
    # As torch does: half to each where they are equal.
    half = g.apply("mul", 0.5, bar)
    tie = g.apply("eq", a, b)

    def side(chosen: Operand) -> Operand:
        return g.apply("where", tie, half, g.apply("where", g.apply("eq", out, chosen), bar, 0.0))

    return side(a), side(b)


def _d_power(g: Graph, bar: Operand, out: Operand, a: Operand, b: Operand) -> tuple[Operand, ...]:
    by_a = g.zero_product(bar, g.apply("mul", b, g.apply("pow", a, g.apply("sub", b, 1.0))))
    if isinstance(b, (int, float)):
        return by_a, 0.0
    # At a base of zero the derivative by the exponent is zero, not 0 · -inf.
    logarithm = g.apply("where", g.apply("eq", a, 0.0), 0.0, g.apply("log", a))
    return by_a, g.zero_product(bar, g.apply("mul", out, logarithm))


def _cosine_of_asin(g: Graph, a: Operand) -> Operand:
    return g.apply("sqrt", g.apply("sub", 1.0, g.apply("mul", a, a)))


def _d_atan2(g: Graph, bar: Operand, out: Operand, y: Operand, x: Operand) -> tuple[Operand, ...]:
    square = g.apply("add", g.apply("mul", y, y), g.apply("mul", x, x))
    return (
        g.apply("div", g.zero_product(bar, x), square),
        g.apply("neg", g.apply("div", g.zero_product(bar, y), square)),
    )


def _sign(a: float) -> float:
    return float((a > 0) - (a < 0))


OPERATIONS: dict[str, Operation] = {
    "add": Operation(_infix("+"), lambda g, bar, out, a, b: (bar, bar), lambda a, b: a + b),
    "sub": Operation(_infix("-"), lambda g, bar, out, a, b: (bar, g.apply("neg", bar)), lambda a, b: a - b),
    "mul": Operation(
        _infix("*"),
        lambda g, bar, out, a, b: (g.zero_product(bar, b), g.zero_product(bar, a)),
        lambda a, b: a * b,
    ),
    "div": Operation(
        _infix("/"),
        lambda g, bar, out, a, b: (
            g.apply("div", bar, b),
            g.apply("neg", g.zero_product(bar, g.apply("div", out, b))),
        ),
        lambda a, b: a / b,
        costly=True,
    ),
    "neg": Operation(lambda a: f"-{a}", lambda g, bar, out, a: (g.apply("neg", bar),), lambda a: -a),
    "sin": _function("sin", math.sin, lambda g, bar, out, a: (g.zero_product(bar, g.apply("cos", a)),)),
    "cos": _function(
        "cos", math.cos, lambda g, bar, out, a: (g.apply("neg", g.zero_product(bar, g.apply("sin", a))),)
    ),
    "tan": _function(
        "tan",
        math.tan,
        lambda g, bar, out, a: (g.zero_product(bar, g.apply("add", 1.0, g.apply("mul", out, out))),),
    ),
    "exp": _function("exp", math.exp, lambda g, bar, out, a: (g.zero_product(bar, out),)),
    "log": _function("log", math.log, lambda g, bar, out, a: (g.apply("div", bar, a),)),
    "sqrt": _function(
        "sqrt", math.sqrt, lambda g, bar, out, a: (g.apply("div", g.apply("mul", 0.5, bar), out),)
    ),
    "tanh": _function(
        "tanh",
        math.tanh,
        lambda g, bar, out, a: (g.zero_product(bar, g.apply("sub", 1.0, g.apply("mul", out, out))),),
    ),
    "atan": _function(
        "atan",
        math.atan,
        lambda g, bar, out, a: (g.apply("div", bar, g.apply("add", 1.0, g.apply("mul", a, a))),),
    ),
    "asin": _function(
        "asin", math.asin, lambda g, bar, out, a: (g.apply("div", bar, _cosine_of_asin(g, a)),)
    ),
    "acos": _function(
        "acos",
        math.acos,
        lambda g, bar, out, a: (g.apply("neg", g.apply("div", bar, _cosine_of_asin(g, a))),),
    ),
    "atan2": _function("atan2", math.atan2, _d_atan2),
    "pow": _function("pow", math.pow, _d_power),
    "abs": Operation(_call("v_abs"), lambda g, bar, out, a: (g.zero_product(bar, g.apply("sign", a)),), abs),
    "sign": _rounding("sign", _sign),
    "floor": _rounding("floor", math.floor),
    "ceil": _rounding("ceil", math.ceil),
    "trunc": _rounding("trunc", math.trunc),
    "round": _rounding("round", round),
    "min": Operation(_call("v_minimum"), _d_extremum, min),
    "max": Operation(_call("v_maximum"), _d_extremum, max),
    "detach": Operation(lambda a: a, None, lambda a: a),
    "where": Operation(
        lambda c, a, b: f"{c} ? {a} : {b}",
        lambda g, bar, out, c, a, b: (0.0, g.apply("where", c, bar, 0.0), g.apply("where", c, 0.0, bar)),
    ),
    "lt": _comparison("<", lambda a, b: a < b),
    "le": _comparison("<=", lambda a, b: a <= b),
    "gt": _comparison(">", lambda a, b: a > b),
    "ge": _comparison(">=", lambda a, b: a >= b),
    "eq": _comparison("==", lambda a, b: a == b),
    "ne": _comparison("!=", lambda a, b: a != b),
    "and": Operation(_infix("&"), boolean=True),
    "or": Operation(_infix("|"), boolean=True),
    "not": Operation(lambda a: f"~{a}", None, lambda a: not a, boolean=True),
}
"""By name.  An operation of another package is added by :func:`solvers.compiler.rules.register`."""
