"""Repeating the steps of a march with a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.first_order import without_second_derivatives
from solvers.marching.march import Stride, Track
from solvers.marching.outputs import Outputs, between, output_times
from solvers.marching.problem import Problem


@dataclass(frozen=True)
class Advanced:
    """The result of a stride: the new time and state, the outputs inside it, the state before the event at its end."""

    t: Tensor
    x: Tensor
    inside: Tensor | None
    event_state: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Those that are not None, in order."""
        return [q for q in (self.t, self.x, self.inside, self.event_state) if q is not None]


def advance(
    problem: Problem,
    stride: Stride,
    t: Tensor,
    x: Tensor,
    target: Tensor,
    outputs: Tensor | None,
    u: Any,
    p: Any,
) -> Advanced:
    """Repeat a stride from (t, x).

    Step sizes chosen by the controller are constants, as in every discrete adjoint; a step that ends at a
    target or at an event has the length that follows from it, and gradients flow through that length.
    ``outputs`` are the times of the outputs inside the stride, ``[len, *batch]``.
    """
    method = problem.method
    h = torch.where(stride.to_target, target - t, stride.h)
    if stride.event is not None:
        h = _time_to_event(problem, stride, t, x, h, u, p)
    attempt = method.attempt(problem.f, t, x, u, p, h)
    t_new = torch.where(stride.to_target, target, t + h)
    x_new = attempt.x
    inside = None
    if stride.inside is not None:
        assert outputs is not None
        assert attempt.dense is not None
        inside = between(outputs, stride.inside[1], t, h, attempt.dense)
    event_state = None
    if stride.event is not None:
        event_state = x_new
        for index, event in enumerate(problem.events):
            here = stride.event == index
            if bool(here.any()):
                x_new = torch.where(
                    here.unsqueeze(-1), event.after_those(here, t_new, event_state, u, p), x_new
                )
    return Advanced(t_new, x_new, inside, event_state)


def _time_to_event(
    problem: Problem, stride: Stride, t: Tensor, x: Tensor, h: Tensor, u: Any, p: Any
) -> Tensor:
    """``h``, now depending on t, x, u and p as the root of the event function does.

    One Newton correction of length zero, ``h - (g - g_detached) / (dg/dh)``, whose derivative is that of the
    implicit function theorem.
    """
    assert stride.event is not None
    which = stride.event
    fired = which >= 0

    def value(t: Tensor, x: Tensor, h: Tensor) -> Tensor:
        end = problem.method.attempt(problem.f, t, x, u, p, h).x
        total = torch.zeros_like(h)
        for index, event in enumerate(problem.events):
            here = torch.eq(which, index)
            total = torch.where(here, event.value_of_those(here, t + h, end, u, p), total)
        return total

    if not torch.is_grad_enabled():
        return h
    free = h.detach().requires_grad_(True)
    (speed,) = torch.autograd.grad(value(t.detach(), x.detach(), free).sum(), free)
    now = value(t, x, h)
    correction = (now - now.detach()) / torch.where(fired, speed, 1.0)
    return without_second_derivatives(torch.where(fired, h - correction, h))


def replay(problem: Problem, track: Track) -> Outputs:
    """Repeat all strides with a graph."""
    x, t = start_of(problem, track)
    outputs = Outputs(problem, x)
    for k, stride in enumerate(track.strides):
        target = problem.grid.targets[stride.leg].expand(t.shape)
        times = None if stride.inside is None else output_times(problem.ts, stride.inside[0], t)
        step = advance(problem, stride, t, x, target, times, problem.held(stride.leg), problem.p)
        if stride.inside is not None:
            assert step.inside is not None
            outputs.put(*stride.inside, step.inside)
        if stride.event is not None:
            assert step.event_state is not None
            assert stride.slot is not None
            outputs.event(stride.event, stride.slot, step.t, step.event_state)
        t, x = step.t, step.x
        if ends_leg(track, k):
            outputs.at_target(stride.leg, x)
    return outputs


def ends_leg(track: Track, k: int) -> bool:
    """Whether stride k is the last of its leg."""
    return k + 1 == len(track.strides) or track.strides[k + 1].leg != track.strides[k].leg


def start_of(problem: Problem, track: Track) -> tuple[Tensor, Tensor]:
    """The initial state and time; failed rollouts start at a state where the vector field is finite, and stay there."""
    failed = (track.status != 0).unsqueeze(-1)
    x = torch.where(failed, track.safe, problem.x0)
    return x, problem.grid.start.to(x.dtype).expand(x.shape[:-1])


def without_failed(track: Track) -> Track:
    """The track with steps of length zero for the failed rollouts, so that they do not enter a gradient."""
    failed = track.status != 0
    if not bool(failed.any()):
        return track
    strides = []
    for s in track.strides:
        strides.append(
            Stride(
                s.leg,
                s.t,
                None if s.x is None else torch.where(failed.unsqueeze(-1), track.safe, s.x),
                torch.where(failed, 0.0, s.h),
                s.to_target & ~failed,
                None if s.event is None else torch.where(failed, -1, s.event),
                s.slot,
                None if s.inside is None else (s.inside[0], s.inside[1] & ~failed),
            )
        )
    return Track(**{**vars(track), "strides": strides})
