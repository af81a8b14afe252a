"""Work of fixed shapes as one CUDA graph: a GPU needs microseconds for what takes the host milliseconds to launch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from diffsim.rollouts.cuda_graph import recorded

logger = logging.getLogger("diffsim")

_MOST = 4
"""Shapes of arguments that are kept; the oldest is dropped first."""


class Recorded:
    """``function(*tensors)``, recorded at its first call with tensors of these shapes and repeated from then on.

    A repetition runs the same kernels on the same memory, so it leaves the same bits as the function.  Where the
    function cannot be recorded, it is called, and a line in the log says so.

    Args:
        function: on tensors; it changes ``state`` and returns nothing.
        state: the tensors that it changes.  They stay as they are while it is recorded; where they have moved in
            memory, it is recorded anew.
    """

    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    """Types of devices that have graphs.  Elsewhere a recording is the function itself, which tests make use of."""

    def __init__(self, function: Callable[..., None], state: Callable[[], Sequence[Tensor]]) -> None:
        self.function, self.state = function, state
        self._kept: dict[object, tuple[list[Tensor], Callable[[], None]]] = {}
        self._fails = False

    def __call__(self, *given: Tensor) -> None:
        if given[0].device.type not in self.devices or self._fails:
            self.function(*given)
            return
        state = list(self.state())
        key = tuple((q.shape, q.dtype) for q in given), tuple(q.data_ptr() for q in state)
        if key not in self._kept:
            try:
                made = self._recording(given, state)
            except Exception as error:  # what cannot be recorded has many classes
                logger.warning("not recorded as a CUDA graph: %s: %s", type(error).__name__, error)
                self._fails = True
                self.function(*given)
                return
            while len(self._kept) >= _MOST:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = made
        held, replay = self._kept[key]
        torch._foreach_copy_(held, list(given))
        replay()
        torch.autograd.graph.increment_version(state)  # torch does not know what a graph writes

    def _recording(
        self, given: Sequence[Tensor], state: list[Tensor]
    ) -> tuple[list[Tensor], Callable[[], None]]:
        """Where the arguments are read, and what repeats the function on them."""
        held = [q.detach().clone() for q in given]
        before = [q.detach().clone() for q in state]
        try:
            replay = recorded(lambda: self.function(*held), given[0].device)
        finally:
            with torch.no_grad():
                torch._foreach_copy_(state, before)  # recording calls the function
        return held, replay
