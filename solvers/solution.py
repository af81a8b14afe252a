"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from solvers.failure import Failure


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return (
            f"Statistics(evaluations={self.evaluations}, accepted={_range(self.accepted)}, "
            f"rejected={_range(self.rejected)})"
        )


@dataclass(frozen=True, repr=False)
class EventLog:
    """The events of every rollout in the order they fired; the first index counts them.

    Attributes:
        times: time of the event, ``[k, *batch]``; infinite where a rollout had fewer events.
        states: the state just before the event's jump, ``[k, *batch, n]``; NaN where there was none.
        which: index of the event that fired, ``[k, *batch]``; -1 where there was none.
    """

    times: Float[Tensor, "k ..."]
    states: Float[Tensor, "k ... n"]
    which: Int[Tensor, "k ..."]

    def __repr__(self) -> str:
        fired = self.which >= 0
        per_rollout = fired.sum(0) if len(fired) else fired.new_zeros(fired.shape[1:], dtype=torch.int64)
        return f"EventLog({int(fired.sum())} events, {_range(per_rollout)} per rollout)"


@dataclass(frozen=True, repr=False)
class Solution:
    """The result of :func:`solvers.solve`.

    Attributes:
        ts: the requested times, ``[T]`` or ``[T, *batch]``.
        xs: the states at those times, ``[T, *batch, n]``; ``xs[0]`` is the initial state.  At the time of an event it
            is the state after the jump, after a terminal event the state at the event; NaN where a rollout failed
            before that time.
        status: the :class:`~solvers.failure.Failure` of every rollout, int64 ``[*batch]``; 0 is success.
        stopped: rollouts that a terminal event ended, ``[*batch]``.
        events: the events that fired, in order; None if the solve was given none.
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
        return self.status == Failure.SUCCESS

    def __repr__(self) -> str:
        ts, shape = self.ts.detach(), ", ".join(map(str, self.xs.shape))
        ended = f", {int(self.stopped.sum())} ended by a terminal event" if bool(self.stopped.any()) else ""
        events = "" if self.events is None else f"{self.events!r}, "
        return (
            f"Solution(xs [{shape}] {str(self.xs.dtype).removeprefix('torch.')}, t from {_range(ts[0])} to "
            f"{_range(ts[-1])}, {int(self.ok.sum())} of {self.ok.numel()} rollouts succeeded{ended},\n"
            f"         {events}{self.statistics!r})"
        )

    def at_end(self) -> Float[Tensor, "*batch n"]:
        """The states at the last requested time, ``[*batch, n]``."""
        return self.xs[-1]


def no_steps(batch: torch.Size, device: torch.device) -> Tensor:
    """A zero count for every rollout."""
    return torch.zeros(batch, dtype=torch.int64, device=device)


def _range(values: Tensor) -> str:
    """One number if all are equal, else the smallest and the largest."""
    low, high = float(values.detach().min()), float(values.detach().max())
    return f"{low:g}" if low == high else f"{low:g}..{high:g}"
