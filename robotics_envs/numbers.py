"""Whole numbers as arguments: Python's, NumPy's and zero-dimensional arrays of them are accepted alike."""

from __future__ import annotations

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
