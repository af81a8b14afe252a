"""Equality of nested states to the last bit, types and order of keys included."""

from typing import Any

import torch


def same(a: Any, b: Any) -> bool:
    """Whether two states of tensors, numbers, strings, dicts and lists are equal bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
