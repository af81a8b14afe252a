"""What every ATen operation does to arrays of nodes: the one table of what can be compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from solvers.compiler.ir import Graph, Node
from solvers.compiler.operations import OPERATIONS, Operation

aten = torch.ops.aten


class NoRuleError(NotImplementedError):
    """These arguments of an operation have no rule; the message says which."""


def elementwise(op: str, count: int) -> Callable[..., np.ndarray]:
    """The rule of an operation on ``count`` operands, element by element with broadcasting."""

    def rule(graph: Graph, *args: Any, **_: Any) -> np.ndarray:
        def scalar(*operands: Any) -> Node | float:
            keep = len(operands) if op in ("and", "or", "not") else 1 if op == "where" else 0
            return graph.apply(
                op, *operands[:keep], *(_number(graph, operand) for operand in operands[keep:])
            )

        return np.asarray(np.frompyfunc(scalar, count, 1)(*args[:count]), object)

    return rule


def _number(graph: Graph, value: Any) -> Node | float:
    """An operand of arithmetic: a comparison counts as 1 where it holds."""
    if isinstance(value, Node):
        known = OPERATIONS.get(value.op)
        return graph.apply("where", value, 1.0, 0.0) if known and known.boolean else value
    return float(value)


_add, _sub, _mul, _div = (elementwise(op, 2) for op in ("add", "sub", "mul", "div"))
_neg, _exp, _log, _sqrt = (elementwise(op, 1) for op in ("neg", "exp", "log", "sqrt"))
_min, _max, _where = elementwise("min", 2), elementwise("max", 2), elementwise("where", 3)
_gt = elementwise("gt", 2)


def _scaled(rule: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """add and sub take ``alpha``, a factor of the second operand."""

    def scaled(g: Graph, a: Any, b: Any, alpha: float = 1) -> np.ndarray:
        return rule(g, a, b if alpha == 1 else _mul(g, b, alpha))

    return scaled


def _power(g: Graph, a: Any, b: Any) -> np.ndarray:
    if isinstance(b, (int, float)):
        if b == 0.5:
            return _sqrt(g, a)
        if float(b).is_integer() and 1 <= abs(b) <= 8:
            product = a
            for _ in range(int(abs(b)) - 1):
                product = _mul(g, product, a)
            return product if b > 0 else _div(g, 1.0, product)
    return elementwise("pow", 2)(g, a, b)


def _clamp(g: Graph, a: Any, low: Any = None, high: Any = None) -> np.ndarray:
    # As torch's gradient: a bound that is met lets it pass, so comparisons and not min and max.
    if low is not None:
        a = _where(g, elementwise("lt", 2)(g, a, low), low, a)
    if high is not None:
        a = _where(g, _gt(g, a, high), high, a)
    return a


def _sum(g: Graph, a: Any, dims: Any = None, keepdim: bool = False, **_: Any) -> np.ndarray:
    a = np.asarray(a, object)
    dims = tuple(range(a.ndim)) if dims is None or (not isinstance(dims, int) and not len(dims)) else dims
    axes = tuple(d % a.ndim for d in ((dims,) if isinstance(dims, int) else dims)) if a.ndim else ()
    moved = np.moveaxis(a, axes, range(len(axes))).reshape(
        -1, *[s for i, s in enumerate(a.shape) if i not in axes]
    )
    total = moved[0]
    for term in moved[1:]:
        total = _add(g, total, term)
    return np.asarray(np.expand_dims(total, axes) if keepdim else total, object)


def _mean(g: Graph, a: Any, dims: Any = None, keepdim: bool = False, **_: Any) -> np.ndarray:
    total = _sum(g, a, dims, keepdim)
    return _div(g, total, float(np.size(a) // max(1, np.size(total))))


def _matmul(g: Graph, a: Any, b: Any) -> np.ndarray:
    a, b = np.asarray(a, object), np.asarray(b, object)
    left = a[..., :, None] if b.ndim > 1 else a
    return _sum(g, _mul(g, left, b[..., None, :, :] if b.ndim > 1 else b), -2 if b.ndim > 1 else -1)


def _addmm(g: Graph, bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> np.ndarray:
    return _add(g, _mul(g, bias, beta), _mul(g, _matmul(g, a, b), alpha))


def _sigmoid(g: Graph, a: Any) -> np.ndarray:
    # By tanh, which does not overflow.
    return _add(g, 0.5, _mul(g, 0.5, elementwise("tanh", 1)(g, _mul(g, 0.5, a))))


def _slice(g: Graph, a: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> np.ndarray:
    index: list[Any] = [slice(None)] * a.ndim
    index[dim] = slice(start, end, step)
    return a[tuple(index)]


def _select(g: Graph, a: Any, dim: int, index: int) -> np.ndarray:
    index %= a.shape[dim]
    return np.squeeze(
        _slice(g, a, dim % a.ndim, index, index + 1), dim
    )  # a view, so that it can be written into


def _view(g: Graph, a: Any, shape: Sequence[int], *_: Any) -> np.ndarray:
    return np.asarray(a, object).reshape(shape)


def _expand(g: Graph, a: Any, shape: Sequence[int], **_: Any) -> np.ndarray:
    a = np.asarray(a, object)
    lead = len(shape) - a.ndim
    return np.broadcast_to(a, [a.shape[i - lead] if s == -1 else s for i, s in enumerate(shape)])


def _squeeze(g: Graph, a: Any, dims: Any = None) -> np.ndarray:
    dims = range(a.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    return np.squeeze(a, tuple(d for d in dims if a.shape[d] == 1))


def _unbind(g: Graph, a: Any, dim: int = 0) -> list[np.ndarray]:
    return [np.asarray(part, object) for part in np.moveaxis(a, dim, 0)]


def _split(g: Graph, a: Any, size: Any, dim: int = 0) -> list[np.ndarray]:
    if isinstance(size, int):
        return np.split(a, range(size, a.shape[dim], size), axis=dim)
    return np.split(a, np.cumsum(size)[:-1], axis=dim)


def _remainder(g: Graph, a: Any, b: Any) -> np.ndarray:
    return _sub(g, a, _mul(g, b, elementwise("floor", 1)(g, _div(g, a, b))))


def _norm(
    g: Graph, a: Any, order: float = 2, dims: Any = None, keepdim: bool = False, **_: Any
) -> np.ndarray:
    if order == 2:
        total = _sum(g, _mul(g, a, a), dims, keepdim)
        zero = elementwise("eq", 2)(g, total, 0.0)  # where torch's gradient is zero
        return _where(g, zero, 0.0, _sqrt(g, _where(g, zero, 1.0, total)))
    if order == 1:
        return _sum(g, elementwise("abs", 1)(g, a), dims, keepdim)
    raise NoRuleError(f"the norm of order {order}")


def _variance(
    g: Graph, a: Any, dims: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> np.ndarray:
    centred = _sub(g, a, _mean(g, a, dims, True))
    total = _sum(g, _mul(g, centred, centred), dims, keepdim)
    return _div(g, total, float(np.size(a) // max(1, np.size(total)) - correction))


def _extreme(rule: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """amax and amin over one dimension or all; at a tie the gradient is shared in halves, pair by pair."""

    def extreme(g: Graph, a: Any, dims: Any = (), keepdim: bool = False) -> np.ndarray:
        dims = (dims,) if isinstance(dims, int) else tuple(dims) or tuple(range(a.ndim))
        axes = tuple(d % a.ndim for d in dims)
        moved = np.moveaxis(a, axes, range(len(axes)))
        moved = moved.reshape(-1, *moved.shape[len(axes) :])
        best = moved[0]
        for other in moved[1:]:
            best = rule(g, best, other)
        return np.asarray(np.expand_dims(best, axes) if keepdim else best, object)

    return extreme


def _together(op: str) -> Callable[..., np.ndarray]:
    """``all`` and ``any``, over one dimension, several or all."""
    together, differ = _extreme(elementwise(op, 2)), elementwise("ne", 2)
    return lambda g, a, dims=(), keepdim=False: together(
        g, differ(g, a, 0.0), () if dims is None else dims, keepdim
    )


def _cumulative(g: Graph, a: Any, dim: int, **_: Any) -> np.ndarray:
    parts = [np.take(a, 0, axis=dim)]
    for k in range(1, a.shape[dim]):
        parts.append(_add(g, parts[-1], np.take(a, k, axis=dim)))
    return np.stack(parts, dim)


def _product(g: Graph, a: Any, dim: int | None = None, keepdim: bool = False, **_: Any) -> np.ndarray:
    moved = np.ravel(a) if dim is None else np.moveaxis(a, dim, 0)
    total = moved[0]
    for factor in moved[1:]:
        total = _mul(g, total, factor)
    return np.asarray(np.expand_dims(total, dim) if keepdim and dim is not None else total, object)


def _pad(g: Graph, a: Any, pads: Sequence[int], value: float = 0.0) -> np.ndarray:
    widths = [(0, 0)] * a.ndim
    for k in range(len(pads) // 2):
        widths[a.ndim - 1 - k] = (pads[2 * k], pads[2 * k + 1])
    if any(low < 0 or high < 0 for low, high in widths):
        raise NoRuleError("padding by a negative width")
    return np.pad(a, widths, constant_values=float(value))


def _softplus(g: Graph, a: Any, beta: float = 1, threshold: float = 20) -> np.ndarray:
    scaled = _mul(g, a, float(beta))
    inside = _where(g, _gt(g, scaled, float(threshold)), 0.0, scaled)  # no overflow where it is not used
    soft = _div(g, _log(g, _add(g, 1.0, _exp(g, inside))), float(beta))
    return _where(g, _gt(g, scaled, float(threshold)), a, soft)


def _elu(g: Graph, a: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> np.ndarray:
    positive = _gt(g, a, 0.0)
    inside = _mul(g, _where(g, positive, 0.0, a), float(input_scale))
    negative = _mul(g, float(alpha * scale), _sub(g, _exp(g, inside), 1.0))
    return _where(g, positive, _mul(g, a, float(scale)), negative)


def _gelu(g: Graph, a: Any, approximate: str = "none") -> np.ndarray:
    if approximate != "tanh":
        raise NoRuleError("gelu without approximate='tanh'")
    inner = _mul(g, math.sqrt(2 / math.pi), _add(g, a, _mul(g, 0.044715, _power(g, a, 3))))
    return _mul(g, _mul(g, 0.5, a), _add(g, 1.0, elementwise("tanh", 1)(g, inner)))


def _cross(g: Graph, a: Any, b: Any, *, dim: int = -1) -> np.ndarray:
    a, b = np.broadcast_arrays(a, b)
    (a1, a2, a3), (b1, b2, b3) = np.moveaxis(a, dim, 0), np.moveaxis(b, dim, 0)
    pairs = ((a2, b3, a3, b2), (a3, b1, a1, b3), (a1, b2, a2, b1))
    return np.stack([_sub(g, _mul(g, p, q), _mul(g, r, s)) for p, q, r, s in pairs], dim)


def _index(g: Graph, a: Any, indices: Sequence[Any]) -> np.ndarray:
    chosen: list[Any] = []
    for index in indices:
        if index is not None and any(isinstance(i, (Node, bool)) for i in index.flat):
            raise NoRuleError("an index that depends on the state")
        chosen.append(slice(None) if index is None else index.astype(int))
    return np.asarray(a[tuple(chosen)], object)


def _index_select(g: Graph, a: Any, dim: int, index: Any) -> np.ndarray:
    return _index(g, a, [None] * (dim % a.ndim) + [index])


def _solve(g: Graph, a: Any, b: Any, *, left: bool = True, **_: Any) -> list[np.ndarray]:
    """Gaussian elimination with partial pivoting, written out; of the results only the solution is used."""
    if not left:
        raise NoRuleError("a solve from the right")
    vector = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    n = a.shape[-1]
    rows = [
        np.concatenate((a[..., i, :], (b[..., i, None] if vector else b[..., i, :])), -1) for i in range(n)
    ]
    for k in range(n):
        for i in range(k + 1, n):  # the largest of the column comes up
            larger = _gt(g, *(elementwise("abs", 1)(g, rows[r][..., k : k + 1]) for r in (i, k)))
            rows[k], rows[i] = _where(g, larger, rows[i], rows[k]), _where(g, larger, rows[k], rows[i])
        for i in range(k + 1, n):
            factor = _div(g, rows[i][..., k : k + 1], rows[k][..., k : k + 1])
            rows[i] = _sub(g, rows[i], _mul(g, factor, rows[k]))
    solution: list[Any] = [None] * n
    for i in reversed(range(n)):
        rest = rows[i][..., n:]
        for j in range(i + 1, n):
            rest = _sub(g, rest, _mul(g, rows[i][..., j : j + 1], solution[j]))
        solution[i] = _div(g, rest, rows[i][..., i : i + 1])
    x = np.stack(solution, -2)
    x = x[..., 0] if vector else x
    return [
        x,
        np.full(a.shape, math.nan, object),
        np.full(a.shape[:-1], 0, object),
        np.full(a.shape[:-2], 0, object),
    ]


def _cholesky(g: Graph, a: Any, *, upper: bool = False, **_: Any) -> list[np.ndarray]:
    n = a.shape[-1]
    lower = np.full(a.shape, 0.0, object)
    for j in range(n):
        for i in range(j, n):
            rest = a[..., i, j]
            for k in range(j):
                rest = _sub(g, rest, _mul(g, lower[..., i, k], lower[..., j, k]))
            lower[..., i, j] = _sqrt(g, rest) if i == j else _div(g, rest, lower[..., j, j])
    return [np.swapaxes(lower, -1, -2) if upper else lower, np.full(a.shape[:-2], 0, object)]


def _triangular(g: Graph, a: Any, b: Any, upper: bool, unit: bool = False) -> np.ndarray:
    n = a.shape[-1]
    solution: list[Any] = [None] * n
    for i in reversed(range(n)) if upper else range(n):
        rest = b[..., i, :]
        for j in range(i + 1, n) if upper else range(i):
            rest = _sub(g, rest, _mul(g, a[..., i, j : j + 1], solution[j]))
        solution[i] = rest if unit else _div(g, rest, a[..., i, i : i + 1])
    return np.stack(solution, -2)


def _solve_triangular(
    g: Graph, a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> np.ndarray:
    if not left:
        raise NoRuleError("a solve from the right")
    return _triangular(g, a, b, upper, unitriangular)


def _cholesky_solve(g: Graph, b: Any, factor: Any, upper: bool = False) -> np.ndarray:
    lower = np.swapaxes(factor, -1, -2) if upper else factor
    return _triangular(g, np.swapaxes(lower, -1, -2), _triangular(g, lower, b, upper=False), upper=True)


def _same(g: Graph, a: Any, *_: Any, **__: Any) -> np.ndarray:
    return np.asarray(a, object)


RULES: dict[Any, Callable[..., Any]] = {
    aten.add: _scaled(_add),
    aten.sub: _scaled(_sub),
    aten.rsub: lambda g, a, b, alpha=1: _scaled(_sub)(g, b, a, alpha),
    aten.mul: _mul,
    aten.div: _div,
    aten.neg: _neg,
    aten.reciprocal: lambda g, a: _div(g, 1.0, a),
    aten.pow: _power,
    aten.square: lambda g, a: _mul(g, a, a),
    aten.sqrt: _sqrt,
    aten.rsqrt: lambda g, a: _div(g, 1.0, _sqrt(g, a)),
    aten.sinh: lambda g, a: _mul(g, 0.5, _sub(g, _exp(g, a), _exp(g, _neg(g, a)))),
    aten.cosh: lambda g, a: _mul(g, 0.5, _add(g, _exp(g, a), _exp(g, _neg(g, a)))),
    aten.sigmoid: _sigmoid,
    aten.silu: lambda g, a: _mul(g, a, _sigmoid(g, a)),
    aten.relu: lambda g, a: _where(g, elementwise("le", 2)(g, a, 0.0), 0.0, a),  # a NaN stays
    aten.maximum: _max,
    aten.minimum: _min,
    aten.clamp: _clamp,
    aten.clamp_min: lambda g, a, low: _clamp(g, a, low),
    aten.clamp_max: lambda g, a, high: _clamp(g, a, None, high),
    aten.where: _where,
    aten.remainder: _remainder,
    aten.fmod: lambda g, a, b: _sub(g, a, _mul(g, b, elementwise("trunc", 1)(g, _div(g, a, b)))),
    aten.softplus: _softplus,
    aten.elu: _elu,
    aten.gelu: _gelu,
    aten.leaky_relu: lambda g, a, slope=0.01: _where(g, _gt(g, a, 0.0), a, _mul(g, a, float(slope))),
    aten.hardtanh: lambda g, a, low=-1.0, high=1.0: _clamp(g, a, low, high),
    aten.log1p: lambda g, a: _log(g, _add(g, 1.0, a)),
    aten.expm1: lambda g, a: _sub(g, _exp(g, a), 1.0),
    aten.lerp: lambda g, a, b, w: _add(g, a, _mul(g, w, _sub(g, b, a))),
    aten.addcmul: lambda g, a, b, c, value=1: _add(g, a, _mul(g, float(value), _mul(g, b, c))),
    aten.addcdiv: lambda g, a, b, c, value=1: _add(g, a, _mul(g, float(value), _div(g, b, c))),
    aten.linalg_cross: _cross,
    aten.linalg_vector_norm: _norm,
    aten.norm: _norm,
    aten.var: _variance,
    aten.amax: _extreme(_max),
    aten.amin: _extreme(_min),
    aten.all: _together("and"),
    aten.any: _together("or"),
    aten._linalg_solve_ex: _solve,
    aten.linalg_cholesky_ex: _cholesky,
    aten.linalg_solve_triangular: _solve_triangular,
    aten.cholesky_solve: _cholesky_solve,
    aten.cumsum: _cumulative,
    aten.prod: _product,
    aten.logical_and: elementwise("and", 2),
    aten.bitwise_and: elementwise("and", 2),
    aten.logical_or: elementwise("or", 2),
    aten.bitwise_or: elementwise("or", 2),
    aten.logical_not: elementwise("not", 1),
    aten.bitwise_not: elementwise("not", 1),
    aten.sum: _sum,
    aten.mean: _mean,
    aten.mm: _matmul,
    aten.bmm: _matmul,
    aten.mv: _matmul,
    aten.dot: _matmul,
    aten.addmm: _addmm,
    aten.select: _select,
    aten.slice: _slice,
    aten.view: _view,
    aten._unsafe_view: _view,
    aten.reshape: _view,
    aten.expand: _expand,
    aten.unsqueeze: lambda g, a, dim: np.expand_dims(a, dim),
    aten.squeeze: _squeeze,
    aten.permute: lambda g, a, dims: np.transpose(a, dims),
    aten.transpose: lambda g, a, i, j: np.swapaxes(a, i, j),
    aten.t: lambda g, a: np.transpose(a),
    aten.movedim: lambda g, a, i, j: np.moveaxis(a, i, j),
    aten.diagonal: lambda g, a, offset=0, dim1=0, dim2=1: np.diagonal(a, offset, dim1, dim2),
    aten.flip: lambda g, a, dims: np.flip(a, tuple(dims)),
    aten.roll: lambda g, a, shifts, dims=(): np.roll(a, tuple(shifts), tuple(dims) or None),
    aten.constant_pad_nd: _pad,
    aten.index: _index,
    aten.index_select: _index_select,
    aten.cat: lambda g, parts, dim=0: np.concatenate(parts, dim),
    aten.stack: lambda g, parts, dim=0: np.stack(parts, dim),
    aten.unbind: _unbind,
    aten.split: _split,
    aten.split_with_sizes: _split,
    aten.clone: lambda g, a, **_: np.array(a, object),
    aten._to_copy: lambda g, a, **_: np.array(a, object),
    aten.alias: _same,
    aten.detach: elementwise("detach", 1),
    aten.zeros_like: lambda g, a, **_: np.full(a.shape, 0.0, object),
    aten.ones_like: lambda g, a, **_: np.full(a.shape, 1.0, object),
    aten.empty_like: lambda g, a, **_: np.full(a.shape, 0.0, object),
    aten.full_like: lambda g, a, value, **_: np.full(a.shape, float(value), object),
    aten.new_zeros: lambda g, a, shape, **_: np.full(tuple(shape), 0.0, object),
    aten.new_ones: lambda g, a, shape, **_: np.full(tuple(shape), 1.0, object),
    aten.new_empty: lambda g, a, shape, **_: np.full(tuple(shape), 0.0, object),
    aten.new_full: lambda g, a, shape, value, **_: np.full(tuple(shape), float(value), object),
    aten.copy: lambda g, a, b, *_: np.broadcast_to(b, a.shape),
    aten.fill: lambda g, a, value: np.broadcast_to(value, a.shape),
    aten.zero: lambda g, a: np.full(a.shape, 0.0, object),
    **{getattr(aten, op): elementwise(op, 2) for op in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{
        getattr(aten, op): elementwise(op, 1)
        for op in (
            "sin",
            "cos",
            "tan",
            "exp",
            "log",
            "tanh",
            "atan",
            "abs",
            "floor",
            "ceil",
            "trunc",
            "round",
        )
    },
    **{getattr(aten, op): elementwise(op, 1) for op in ("asin", "acos")},
    aten.atan2: elementwise("atan2", 2),
    aten.sgn: elementwise("sign", 1),
    aten.sign: elementwise("sign", 1),
}

ELEMENTWISE = {
    getattr(aten, name)
    for name in (
        "add", "sub", "rsub", "mul", "div", "neg", "reciprocal", "pow", "square", "sqrt", "rsqrt", "sinh", "cosh",
        "sigmoid", "silu", "relu", "maximum", "minimum", "clamp", "clamp_min", "clamp_max", "where", "remainder",
        "softplus", "elu", "gelu", "leaky_relu", "hardtanh", "log1p", "expm1", "lerp", "addcmul", "addcdiv",
        "logical_and", "logical_or", "logical_not", "lt", "le", "gt", "ge", "eq", "ne", "sin", "cos", "tan", "exp",
        "log", "tanh", "atan", "asin", "acos", "atan2", "abs", "sign", "sgn", "floor", "ceil", "trunc", "round",
        "clone", "detach", "alias", "_to_copy",
    )
}  # fmt: skip
"""Operations that act on every element by itself, so that their rules hold for a feature of a layer too."""


def register(packet: Any, name: str, operation: Operation, operands: int = 1, in_layers: bool = True) -> None:
    """Let kernels compute a torch operation of another package, element by element with broadcasting.

    ::

        register(torch.ops.mine.cube, "cube", Operation(
            cpp=lambda a: f"{a} * {a} * {a}",
            derivative=lambda g, bar, out, a: (g.apply("mul", bar, g.apply("mul", 3.0, g.apply("mul", a, a))),),
        ))

    Args:
        packet: the operation, such as ``torch.ops.mine.cube``, made with ``torch.library``.
        name: its name in expressions, which no other operation has.
        operands: how many tensors it takes; they are its first arguments.
        in_layers: whether it may stand between the layers of a network too, in a loop over features.
    """
    if name in OPERATIONS:
        raise ValueError(f"there is an operation {name!r} already; give this one another name")
    OPERATIONS[name] = operation
    RULES[packet] = elementwise(name, operands)
    if in_layers:
        ELEMENTWISE.add(packet)
