"""From a torch function to scalar expressions: its ATen operations, interpreted on arrays of nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from solvers.native.expressions import Graph, Node

aten = torch.ops.aten


class NativeUnsupportedError(RuntimeError):
    """The function holds something that has no expression here; the message names it."""


def trace(function: Callable[..., Tensor], examples: Sequence[Tensor]) -> fx.GraphModule:
    """The function's ATen operations.  Examples must be distinct tensors: equal ones would be taken for one."""
    try:
        return make_fx(function)(*[e.detach().clone() for e in examples])
    except Exception as error:
        raise NativeUnsupportedError(f"the function could not be traced: {error}") from error


def interpret(
    module: fx.GraphModule,
    graph: Graph,
    arguments: Sequence[np.ndarray],
    constant: Callable[[Tensor], np.ndarray],
) -> np.ndarray:
    """The function's result as an array of nodes and numbers.

    Args:
        arguments: an array of nodes for every argument.
        constant: an array for every tensor that the function holds itself.
    """
    values: dict[fx.Node, Any] = {}
    placeholders = iter(arguments)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(placeholders)
        elif node.op == "get_attr":
            values[node] = constant(getattr(module, node.target))
        elif node.op == "output":
            (result,) = fx.map_arg(node.args, values.__getitem__)
            return np.asarray(result, dtype=object)
        elif node.op == "call_function":
            args = fx.map_arg(node.args, values.__getitem__)
            kwargs = fx.map_arg(node.kwargs, values.__getitem__)
            rule = _RULES.get(node.target) or _RULES.get(getattr(node.target, "overloadpacket", None))
            if rule is None:
                where = (node.stack_trace or "").strip().splitlines()
                raise NativeUnsupportedError(
                    f"no C++ for the operation {node.target}" + (f" ({where[-1].strip()})" if where else "")
                )
            values[node] = rule(graph, *args, **kwargs)
    raise NativeUnsupportedError("the function returns nothing")


_MASKS = ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not")


def _elementwise(op: str, count: int) -> Callable[..., np.ndarray]:
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
        return graph.apply("where", value, 1.0, 0.0) if value.op in _MASKS else value
    return float(value)


_add, _sub, _mul, _div = (_elementwise(op, 2) for op in ("add", "sub", "mul", "div"))
_neg, _exp, _log, _sqrt = (_elementwise(op, 1) for op in ("neg", "exp", "log", "sqrt"))
_min, _max, _where = _elementwise("min", 2), _elementwise("max", 2), _elementwise("where", 3)
_gt = _elementwise("gt", 2)


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
    return _elementwise("pow", 2)(g, a, b)


def _clamp(g: Graph, a: Any, low: Any = None, high: Any = None) -> np.ndarray:
    # As torch's gradient: a bound that is met lets it pass, so comparisons and not min and max.
    if low is not None:
        a = _where(g, _elementwise("lt", 2)(g, a, low), low, a)
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
    return _add(g, 0.5, _mul(g, 0.5, _elementwise("tanh", 1)(g, _mul(g, 0.5, a))))


def _slice(g: Graph, a: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> np.ndarray:
    index: list[Any] = [slice(None)] * a.ndim
    index[dim] = slice(start, end, step)
    return a[tuple(index)]


def _select(g: Graph, a: Any, dim: int, index: int) -> np.ndarray:
    return np.asarray(np.take(a, index, axis=dim), object)


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


def _full(value: float | None) -> Callable[..., np.ndarray]:
    def rule(g: Graph, like: Any, *args: Any, **_: Any) -> np.ndarray:
        shape = np.shape(like) if isinstance(like, np.ndarray) else tuple(like)
        return np.full(shape, float(args[0] if value is None else value), dtype=object)

    return rule


def _same(g: Graph, a: Any, *_: Any, **__: Any) -> np.ndarray:
    return np.asarray(a, object)


_RULES: dict[Any, Callable[..., Any]] = {
    operator.getitem: lambda g, a, i: a[i],
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
    aten.relu: lambda g, a: _where(g, _gt(g, a, 0.0), a, 0.0),
    aten.maximum: _max,
    aten.minimum: _min,
    aten.clamp: _clamp,
    aten.clamp_min: lambda g, a, low: _clamp(g, a, low),
    aten.clamp_max: lambda g, a, high: _clamp(g, a, None, high),
    aten.where: _where,
    aten.logical_and: _elementwise("and", 2),
    aten.bitwise_and: _elementwise("and", 2),
    aten.logical_or: _elementwise("or", 2),
    aten.bitwise_or: _elementwise("or", 2),
    aten.logical_not: _elementwise("not", 1),
    aten.bitwise_not: _elementwise("not", 1),
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
    aten.cat: lambda g, parts, dim=0: np.concatenate(parts, dim),
    aten.stack: lambda g, parts, dim=0: np.stack(parts, dim),
    aten.unbind: _unbind,
    aten.split: _split,
    aten.split_with_sizes: _split,
    aten.clone: _same,
    aten.detach: _same,
    aten.alias: _same,
    aten.lift_fresh_copy: _same,
    aten._to_copy: _same,
    aten.zeros_like: _full(0.0),
    aten.ones_like: _full(1.0),
    aten.full_like: _full(None),
    aten.zeros: _full(0.0),
    aten.ones: _full(1.0),
    aten.full: _full(None),
    **{getattr(aten, op): _elementwise(op, 2) for op in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{
        getattr(aten, op): _elementwise(op, 1)
        for op in ("sin", "cos", "tan", "exp", "log", "tanh", "atan", "abs")
    },
    aten.sign: _elementwise("sign", 1),
}
