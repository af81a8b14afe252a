"""What a kernel reads at run time: tensors of the traced functions and named values, each in a slot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from solvers.compiler.ir import Graph, Node
from solvers.compiler.trace import NativeUnsupportedError


@dataclass(frozen=True)
class Slot:
    """An input of a kernel.

    Attributes:
        source: the tensor, or a name that the caller knows it by.
        size: how many numbers it has, of one rollout.
        wanted: whether its gradient is.
        own: every rollout has its own values; otherwise they are the same for all.
        held: there is a block of values for every control interval.
    """

    source: Any
    size: int
    wanted: bool
    own: bool = False
    held: bool = False


@dataclass
class Slots:
    """The slots of one kernel, filled while functions are traced.

    Numbers of a slot are inputs of space ``"shared"``, by slot and index; those of slots with own values are of space
    ``"own"``, by their index among all of these.

    Attributes:
        trainable: tensors whose gradient is known to be wanted.
        unknown: the message where another tensor requires a gradient.
        gradient: whether any gradient is wanted.
        fixed: tensors that require a gradient which is known not to be wanted.
    """

    graph: Graph
    trainable: Iterable[Tensor]
    unknown: str
    gradient: bool = True
    fixed: Iterable[Tensor] = ()
    slots: list[Slot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._known: dict[int, int] = {}
        self._trainable = {id(q) for q in self.trainable}
        self._not_wanted = {id(q) for q in self.fixed}
        self._compiled_in: list[tuple[Tensor, int]] = []

    def add(self, source: Any, size: int, wanted: bool, own: bool = False, held: bool = False) -> int:
        """A new slot; its number."""
        self.slots.append(Slot(source, size, wanted and self.gradient, own, held))
        return len(self.slots) - 1

    def nodes(self, slot: int) -> list[Node]:
        """The numbers of a slot."""
        size = self.slots[slot].size
        if not self.slots[slot].own:
            return [self.graph.input("shared", j, slot) for j in range(size)]
        before = sum(s.size for s in self.slots[:slot] if s.own)
        return [self.graph.input("own", before + j) for j in range(size)]

    def array(self, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        """The numbers of a slot in the shape of its tensor."""
        return array_of(self.nodes(slot), shape)

    def captured(self, tensor: Tensor) -> int | np.ndarray:
        """The slot of a tensor that a function holds; for whole numbers, which are compiled in, their array.

        Raises:
            NativeUnsupportedError: it requires a gradient that nobody would receive.
        """
        if not tensor.is_floating_point():
            self._compiled_in.append((tensor, -1 if tensor.is_inference() else tensor._version))
            return tensor.detach().cpu().numpy().astype(object)
        wanted = tensor.requires_grad and id(tensor) not in self._not_wanted
        if wanted and id(tensor) not in self._trainable:
            raise NativeUnsupportedError(self.unknown)
        if id(tensor) not in self._known:
            self._known[id(tensor)] = self.add(tensor, tensor.numel(), wanted)
        return self._known[id(tensor)]

    def stale(self) -> bool:
        """Whether a tensor that was compiled in has been changed since."""
        return any(version >= 0 and tensor._version != version for tensor, version in self._compiled_in)


def array_of(nodes: Iterable[Any], shape: Iterable[int]) -> np.ndarray:
    """Nodes as an array of objects."""
    listed = list(nodes)
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array.reshape(tuple(shape))
