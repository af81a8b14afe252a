"""The steps that a march has taken, and the states at the requested times and the events that it has found."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from solvers.marching.problem import Problem

Kept = Literal["states", "steps", "nothing"]
"""What a track holds of the steps taken."""


class Outputs(NamedTuple):
    """The states of a solve at the requested times and at the events.

    Attributes:
        xs: the states at the requested times, ``[T, *batch, n]``; NaN where a rollout did not get there.
        event_times: the times of the events, ``[k, *batch]``; inf where there was none.
        event_states: the states before the events' jumps, ``[k, *batch, n]``; NaN where there was none.
    """

    xs: Tensor
    event_times: Tensor
    event_states: Tensor


@dataclass(frozen=True)
class Stride:
    """One attempted step of the whole batch, with what is needed to repeat it.

    Attributes:
        leg: the leg of the grid that it belongs to; a control is held over a leg.
        t, x: time and state at the start, ``[*batch]`` and ``[*batch, n]``; None unless states are kept.
        h: the length of the step, ``[*batch]``; 0 where it was rejected or the rollout has finished,
            so that repeating the step changes nothing there.
        to_target: rollouts whose step ended at the end of the leg, ``[*batch]``.
        event: the event that fired at the end of the step, ``[*batch]``, -1 for none; None if none fired.
        slot: how many events each rollout had before.
        inside: outputs that some rollout passed, and which rollouts passed them, ``[len, *batch]``.
    """

    leg: int
    t: Tensor | None
    x: Tensor | None
    h: Tensor
    to_target: Tensor
    event: Tensor | None = None
    slot: Tensor | None = None
    inside: tuple[list[int], Tensor] | None = None


class OutputRecorder:
    """Collects :class:`Outputs` step by step; differentiable if the states given to it are."""

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

    def outputs(self) -> Outputs:
        """What was collected."""
        xs = torch.stack(self.xs)
        if not self.event_times:
            return Outputs(xs, xs.new_zeros((0, *xs.shape[1:-1])), xs.new_zeros((0, *xs.shape[1:])))
        return Outputs(xs, torch.stack(self.event_times), torch.stack(self.event_states))


@dataclass
class Track:
    """The steps of a solve, as a march without a graph has taken them.

    Attributes:
        strides: the attempts in order, as far as they were kept.
        status, stopped: status of every rollout, and whether a terminal event ended it.
        t, x, last_step: time and state at which every rollout ended, and its last step size.
        seen: up to which time the outputs of every rollout are known; before t just after an event.
        accepted, rejected: counts of steps.
        recorder: the outputs and events that the march has collected.
        safe: a state at which every rollout's vector field is known to be finite: failed rollouts are kept there
            while the others' steps are repeated.
    """

    strides: list[Stride]
    status: Tensor
    stopped: Tensor
    t: Tensor
    x: Tensor
    seen: Tensor
    last_step: Tensor
    accepted: Tensor
    rejected: Tensor
    recorder: OutputRecorder
    safe: Tensor

    @functools.cached_property
    def outputs(self) -> Outputs:
        """The outputs, as constants."""
        return self.recorder.outputs()

    def ends_leg(self, k: int) -> bool:
        """Whether stride k is the last of its leg."""
        return k + 1 == len(self.strides) or self.strides[k + 1].leg != self.strides[k].leg

    def start(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """The time ``[*batch]`` and state at which repeating the strides starts; ``safe`` for failed rollouts."""
        failed = (self.status != 0).unsqueeze(-1)
        x = torch.where(failed, self.safe, problem.x0)
        return problem.grid.start.to(x.dtype).expand(x.shape[:-1]), x

    def without_failed(self) -> Track:
        """The track with steps of length zero for the failed rollouts, so that they do not enter a gradient."""
        failed = self.status != 0
        if not bool(failed.any()):
            return self
        lost = failed.unsqueeze(-1)
        strides = [
            replace(
                s,
                x=None if s.x is None else torch.where(lost, self.safe, s.x),
                h=torch.where(failed, 0.0, s.h),
                to_target=s.to_target & ~failed,
                event=None if s.event is None else torch.where(failed, -1, s.event),
                inside=None if s.inside is None else (s.inside[0], s.inside[1] & ~failed),
            )
            for s in self.strides
        ]
        return replace(self, strides=strides)


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
