"""Numbers as arguments: Python's, NumPy's and zero-dimensional arrays of them are accepted alike; bools are not."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """``value`` as a Python integer in ``[least, most]``.

    Accepted is what ``operator.index`` accepts (``int``, NumPy integers, integer tensors of no dimension); booleans
    and floats are not.

    Raises:
        ValueError: something else, or outside the range; the message holds ``name``, the value and the range.
    """
    try:
        is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
        number = None if is_bool else operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number < least or (most is not None and number > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {_power(most)}"
        raise ValueError(f"{name} = {value!r}: must be a whole number {allowed}")
    return number


def _power(number: int) -> str:
    """``2**64 - 1`` instead of its twenty digits."""
    bits = number.bit_length()
    return f"2**{bits} - 1" if bits >= 31 and number == 2**bits - 1 else str(number)


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
