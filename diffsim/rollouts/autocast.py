"""The state of ``torch.autocast``, so that backward computes steps again in the precision of the forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

State = tuple[tuple[str, torch.dtype], ...]
"""The types of devices for which autocast is on, and the dtype that each casts to; empty where it is off."""


AS_IT_IS = contextlib.nullcontext()
"""In the place of :func:`autocast_as` where autocast is off: entering that takes longer."""


def _kinds(device: torch.device) -> tuple[str, ...]:
    return ("cpu",) if device.type in ("cpu", "meta") else ("cpu", device.type)


def autocast_state(device: torch.device) -> State:
    """The present state for the CPU and for ``device``."""
    if device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return ()
    return tuple(
        (kind, torch.get_autocast_dtype(kind)) for kind in _kinds(device) if torch.is_autocast_enabled(kind)
    )


@contextlib.contextmanager
def autocast_as(state: State, device: torch.device) -> Iterator[None]:
    """Compute as under ``state``, without autocast's cache of cast weights.

    The cache would hand weights that were cast without a graph (a rollout's forward pass builds none) to later
    computations, whose gradients would not reach the weights.
    """
    if not state and not autocast_state(device):
        yield
        return
    on = dict(state)
    with contextlib.ExitStack() as stack:
        for kind in _kinds(device):
            dtype = on.get(kind, torch.get_autocast_dtype(kind))
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=kind in on, cache_enabled=False))
        yield
