"""Numbers given by a caller: Python's or NumPy's, never a bool."""

from __future__ import annotations

import math
import numbers
from typing import Any


def whole_number(name: str, value: Any, *, minimum: int) -> int:
    """``value`` as an int.

    Raises:
        ValueError: it is no whole number (Python's or NumPy's), or is less than ``minimum``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} must be at least {minimum} and an integer, got {value!r}")
    return int(value)


def real_number(
    name: str, value: Any, *, positive: bool = False, infinite: bool = False, wanted: str | None = None
) -> float:
    """``value`` as a float.

    Args:
        positive: it must be greater than 0; otherwise 0 is allowed, and negative numbers never are.
        infinite: whether infinity is allowed.
        wanted: what the message asks for.

    Raises:
        ValueError: it is no real number (Python's or NumPy's), is NaN, or is out of range.
    """
    number = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
    fits = number > 0 if positive else number >= 0
    if not fits or (math.isinf(number) and not infinite):
        wanted = wanted or ("be positive" if positive else "be a number >= 0")
        raise ValueError(f"{name} must {wanted}, got {value!r}")
    return number
