"""A switch for calls whose numbers do not matter, only which results there are and what they depend on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_only = ContextVar("structure_only", default=False)


@contextmanager
def structure_only() -> Iterator[None]:
    """Inside, fixed points take one step, settled or not, and fields of robots are not computed again."""
    token = _only.set(True)
    try:
        yield
    finally:
        _only.reset(token)


def is_structure_only() -> bool:
    """Whether the caller is inside :func:`structure_only`."""
    return _only.get()
