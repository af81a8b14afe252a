"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from solvers.failure import Failure


@dataclass(frozen=True)
class Statistics:
    """The work of a forward solve.

    Attributes:
        evaluations: calls of ``f``, each for the whole batch (what a backward pass adds is not counted).
        accepted: steps of every rollout that were kept, ``[*batch]``.
        rejected: attempts of every rollout that were repeated with a smaller step, ``[*batch]``.
    """

    evaluations: int
    accepted: Int[Tensor, "*batch"]
    rejected: Int[Tensor, "*batch"]


@dataclass(frozen=True)
class EventLog:
    """The events of every rollout in the order they happened; k counts them.

    Attributes:
        times: when, ``[k, *batch]``; infinite where a rollout had fewer events.
        states: the state just before the event's jump, ``[k, *batch, n]``; NaN where there was none.
        which: index of the event that fired, ``[k, *batch]``; -1 where there was none.
    """

    times: Float[Tensor, "k ..."]
    states: Float[Tensor, "k ... n"]
    which: Int[Tensor, "k ..."]


@dataclass(frozen=True)
class Solution:
    """The result of :func:`solvers.solve`.

    Attributes:
        ts: the requested times, ``[T]`` or ``[T, *batch]``.
        xs: the states at those times, ``[T, *batch, n]``; ``xs[0]`` is the initial state.  After a terminal
            event it is the state at the event; where a rollout failed before that time, it is NaN.
        status: the :class:`~solvers.failure.Failure` of every rollout, int64 ``[*batch]``; 0 is success.
        stopped: rollouts that a terminal event ended, ``[*batch]``.
        events: what happened, in order; None if the solve had no events.
        statistics: the work of the forward solve.
    """

    ts: Tensor
    xs: Float[Tensor, "T *batch n"]
    status: Int[Tensor, "*batch"]
    stopped: Bool[Tensor, "*batch"]
    events: EventLog | None
    statistics: Statistics

    @property
    def ok(self) -> Bool[Tensor, "*batch"]:
        """Which rollouts succeeded, ``[*batch]``."""
        return self.status == Failure.NONE

    def at_end(self) -> Float[Tensor, "*batch n"]:
        """The states at the last requested time, ``[*batch, n]``."""
        return self.xs[-1]


def no_steps(batch: torch.Size, device: torch.device) -> Tensor:
    """A zero count for every rollout."""
    return torch.zeros(batch, dtype=torch.int64, device=device)
