"""Arithmetic on scalars that are Python floats where the structure of the robot fixes them, else tensors ``[B]``.

A factor of exactly 0 or 1 leaves no operation behind, so that a planar robot costs what planar dynamics costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Scalar = float | Tensor
Vec = Sequence[Scalar]
"""Three scalars."""
Mat = Sequence[Sequence[Scalar]]
"""Rows of scalars."""

ZERO: tuple[float, float, float] = (0.0, 0.0, 0.0)
IDENTITY: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def is_zero(a: Scalar) -> bool:
    """Whether a scalar is zero by structure."""
    return isinstance(a, float) and a == 0.0


def add(a: Scalar, b: Scalar) -> Scalar:
    return b if is_zero(a) else a if is_zero(b) else a + b


def sub(a: Scalar, b: Scalar) -> Scalar:
    return a if is_zero(b) else neg(b) if is_zero(a) else a - b


def neg(a: Scalar) -> Scalar:
    return 0.0 if is_zero(a) else -a


def mul(a: Scalar, b: Scalar) -> Scalar:
    if is_zero(a) or is_zero(b):
        return 0.0
    for one, other in ((a, b), (b, a)):
        if isinstance(one, float):
            if one == 1.0:
                return other
            if one == -1.0:
                return neg(other)
    return a * b


def total(terms: Iterable[Scalar]) -> Scalar:
    """The sum of terms."""
    result: Scalar = 0.0
    for term in terms:
        result = add(result, term)
    return result


def dot(a: Vec, b: Vec) -> Scalar:
    return total(mul(x, y) for x, y in zip(a, b, strict=True))


def vadd(a: Vec, b: Vec) -> list[Scalar]:
    return [add(x, y) for x, y in zip(a, b, strict=True)]


def vsub(a: Vec, b: Vec) -> list[Scalar]:
    return [sub(x, y) for x, y in zip(a, b, strict=True)]


def scale(s: Scalar, a: Vec) -> list[Scalar]:
    return [mul(s, x) for x in a]


def cross(a: Vec, b: Vec) -> list[Scalar]:
    return [
        sub(mul(a[1], b[2]), mul(a[2], b[1])),
        sub(mul(a[2], b[0]), mul(a[0], b[2])),
        sub(mul(a[0], b[1]), mul(a[1], b[0])),
    ]


def apply(m: Mat, a: Vec) -> list[Scalar]:
    """Matrix times vector."""
    return [dot(row, a) for row in m]


def product(a: Mat, b: Mat) -> list[list[Scalar]]:
    """Matrix times matrix."""
    columns = transpose(b)
    return [[dot(row, column) for column in columns] for row in a]


def transpose(a: Mat) -> list[list[Scalar]]:
    return [list(column) for column in zip(*a, strict=True)]


def clamp(a: Scalar, low: float, high: float) -> Scalar:
    return a.clamp(low, high) if isinstance(a, Tensor) else min(max(a, low), high)


def larger(a: Scalar, b: Scalar) -> Scalar:
    """The larger of two; where they are equal, each gets half of the gradient."""
    if isinstance(a, Tensor):
        return torch.maximum(a, b) if isinstance(b, Tensor) else a.clamp_min(b)
    return b.clamp_min(a) if isinstance(b, Tensor) else max(a, b)


def sine_and_cosine(angle: Scalar) -> tuple[Scalar, Scalar]:
    if isinstance(angle, Tensor):
        return torch.sin(angle), torch.cos(angle)
    return math.sin(angle), math.cos(angle)


def absolute(a: Scalar) -> Scalar:
    return a.abs() if isinstance(a, Tensor) else abs(a)


def below(a: Scalar, b: Scalar) -> Any:
    """Whether ``a < b``: a bool, or a mask ``[B]``."""
    return a < b


def where(condition: Any, a: Scalar, b: Scalar, like: Scalar | None = None) -> Scalar:
    """``a`` where a mask or a bool holds, else ``b``; two floats come in the dtype of ``like``, which they need."""
    if isinstance(condition, bool):
        return a if condition else b
    if isinstance(a, float) and isinstance(b, float):
        if a == b:
            return a
        if not isinstance(like, Tensor):
            raise TypeError(
                f"{a} and {b} would come in torch's default dtype: say which tensor they are like"
            )
        return torch.where(condition, torch.full_like(like, a), b)
    return torch.where(condition, a, b)


def both(a: Any, b: Any) -> Any:
    """The conjunction of masks or bools."""
    if isinstance(a, bool):
        return b if a else False
    if isinstance(b, bool):
        return a if b else False
    return a & b


def cut(a: Scalar) -> Scalar:
    """Without a derivative."""
    return a.detach() if isinstance(a, Tensor) else a


def inverse_length(square: Scalar, least: float = 1e-24) -> Scalar:
    """``1 / sqrt(square)``, with squares below ``least`` raised to it."""
    if isinstance(square, float):
        return 1.0 / math.sqrt(max(square, least))
    return torch.rsqrt(square.clamp_min(least))


def unit(a: Vec) -> list[Scalar]:
    """A vector of length 1."""
    if sorted(abs(x) for x in a if isinstance(x, float)) == [0.0, 0.0, 1.0]:
        return list(a)
    return scale(inverse_length(dot(a, a)), a)


def columns(x: Tensor) -> list[Scalar]:
    """The components of ``x [..., n]``."""
    return list(x.unbind(-1))


def stack(scalars: Iterable[Scalar], like: Tensor) -> Tensor:
    """Scalars as ``[..., n]``, constants in the shape of ``like``."""
    return torch.stack([s if isinstance(s, Tensor) else torch.full_like(like, s) for s in scalars], -1)
