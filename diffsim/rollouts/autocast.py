"""The state of ``torch.autocast``, so that backward computes steps again in the precision of the forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

State = tuple[tuple[str, bool, torch.dtype], ...]
"""For each type of device: whether autocast is on, and the dtype that it casts to."""


def autocast_state(device: torch.device) -> State:
    """The present state for the CPU and for ``device``."""
    kinds = ("cpu",) if device.type in ("cpu", "meta") else ("cpu", device.type)
    return tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)


def is_on(state: State) -> bool:
    """Whether anything is cast."""
    return any(enabled for _, enabled, _ in state)


@contextlib.contextmanager
def autocast_as(state: State, device: torch.device) -> Iterator[None]:
    """Compute as under ``state``, without autocast's cache of cast weights.

    The cache would hand weights that were cast without a graph (a rollout's forward pass builds none) to later
    computations, whose gradients would not reach the weights.
    """
    if not is_on(state) and autocast_state(device) == state:
        yield
        return
    with contextlib.ExitStack() as stack:
        for kind, enabled, dtype in state:
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
        yield
