"""The states at the requested times and the events, collected while steps are taken."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from solvers.marching.problem import Problem


class Outputs:
    """Collects ``xs`` and events; differentiable if the states given to it are."""

    def __init__(self, problem: Problem, x0: Tensor) -> None:
        self.problem = problem
        blank = torch.full_like(x0, torch.nan).detach()
        self.xs: list[Tensor] = [x0] + [blank] * (len(problem.ts) - 1)
        self.blank = blank
        self.event_times: list[Tensor] = []
        self.event_states: list[Tensor] = []
        self.event_which: list[Tensor] = []

    def inside(
        self, passed: tuple[list[int], Tensor], t: Tensor, h: Tensor, dense: Callable[[Tensor], Tensor]
    ) -> None:
        """Outputs inside a step from t of length h."""
        times = output_times(self.problem.ts, passed[0], t)
        self.put(*passed, between(times, passed[1], t, h, dense))

    def put(self, indices: list[int], passed: Tensor, states: Tensor) -> None:
        """States of the outputs with these indices, for the rollouts that passed them, ``[len, *batch]``."""
        for i, mask, state in zip(indices, passed, states, strict=True):
            self.xs[i] = torch.where(mask.unsqueeze(-1), state, self.xs[i])

    def at_target(self, leg: int, x: Tensor) -> None:
        """The state at the end of a leg, if that is an output."""
        index = self.problem.grid.at_target[leg]
        if index >= 0:
            self.xs[index] = x

    def event(self, which: Tensor, slot: Tensor, t: Tensor, x: Tensor) -> None:
        """Store events: index (-1 for none), number of earlier events of the rollout, time, state before the jump."""
        fired = which >= 0
        for k in torch.unique(slot[fired]).tolist():
            if k == len(self.event_times):
                self.event_times.append(torch.full_like(t, torch.inf).detach())
                self.event_states.append(self.blank)
                self.event_which.append(torch.full_like(which, -1))
            here = fired & (slot == k)
            self.event_times[k] = torch.where(here, t, self.event_times[k])
            self.event_states[k] = torch.where(here.unsqueeze(-1), x, self.event_states[k])
            self.event_which[k] = torch.where(here, which, self.event_which[k])

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """``xs [T, *batch, n]``, the events' times ``[k, *batch]`` and states ``[k, *batch, n]``."""
        xs = torch.stack(self.xs)
        if not self.event_times:
            return xs, xs.new_zeros((0, *xs.shape[1:-1])), xs.new_zeros((0, *xs.shape[1:]))
        return xs, torch.stack(self.event_times), torch.stack(self.event_states)


def output_times(ts: Tensor, outputs: list[int], t: Tensor) -> Tensor:
    """The requested times with these indices, ``[len, *batch]``."""
    times = ts[outputs]
    if times.ndim == 1:
        times = times.reshape(len(outputs), *([1] * t.ndim))
    return times.expand(len(outputs), *t.shape)


def between(times: Tensor, passed: Tensor, t: Tensor, h: Tensor, dense: Callable[[Tensor], Tensor]) -> Tensor:
    """The states at ``times [len, *batch]`` from a step's dense output; at t for rollouts that did not pass."""
    length = torch.where(h > 0, h, 1.0)
    return dense(torch.where(passed, (times - t) / length, 0.0))
