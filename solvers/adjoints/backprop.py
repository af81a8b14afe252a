"""The adjoint ``backprop``: the steps are recorded by autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.adjoints.base import Adjoint
from solvers.marching.problem import Problem
from solvers.marching.track import OutputRecorder, Outputs, Stride, Track, between, output_times
from solvers.modes import without_second_derivatives


class Backprop(Adjoint):
    """Records every operation: exact for the discrete solution, at the memory of a graph per step."""

    name = "backprop"
    keeps = "steps"
    repeats_steps = False
    sees_captured = True

    def equal_steps(self, problem: Problem) -> Tensor:
        """The steps with a graph."""
        outputs = [x for leg, x in problem.equal_steps() if problem.grid.at_target[leg] >= 0]
        return torch.stack((problem.x0, *outputs))

    def outputs(self, problem: Problem, track: Track) -> Outputs:
        """Repeat all strides with a graph."""
        t, x = track.start(problem)
        recorder = OutputRecorder(problem, x)
        for k, stride in enumerate(track.strides):
            step = advance(problem, stride, t, x)
            if stride.inside is not None:
                assert step.inside is not None
                recorder.put(*stride.inside, step.inside)
            if stride.event is not None:
                assert step.event_state is not None
                assert stride.slot is not None
                recorder.event(stride.event, stride.slot, step.t, step.event_state)
            t, x = step.t, step.x
            if track.ends_leg(k):
                recorder.at_target(stride.leg, x)
        return recorder.outputs()


class Implicit(Backprop):
    """``backprop`` of implicit methods, whose stages have the gradient of the implicit function theorem."""

    name = "implicit"
    repeats_steps = True  # Newton's iteration evaluates f again


@dataclass(frozen=True)
class Advanced:
    """The result of a stride.

    Attributes:
        t, x: the time ``[*batch]`` and the state ``[*batch, n]`` at its end, after the jump of an event.
        inside: the outputs inside it, ``[len, *batch, n]``; None without.
        event_state: the state before the jump of the event at its end; None without.
    """

    t: Tensor
    x: Tensor
    inside: Tensor | None
    event_state: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Those that are not None, in order."""
        return [q for q in (self.t, self.x, self.inside, self.event_state) if q is not None]


@dataclass(frozen=True)
class StrideInputs:
    """What a stride depends on besides the time and the state at its start.

    Attributes:
        target: the end of its leg, ``[*batch]``.
        times: the times of the outputs inside it, ``[len, *batch]``; None without.
        u, p: the control that is held over it, and the parameters.
    """

    target: Tensor
    times: Tensor | None
    u: Any
    p: Any


def advance(
    problem: Problem, stride: Stride, t: Tensor, x: Tensor, inputs: StrideInputs | None = None
) -> Advanced:
    """Repeat a stride from (t, x), with a graph where gradients are enabled.

    Step sizes chosen by the controller are constants, as in every discrete adjoint; a step that ends at a
    target or at an event has the length that follows from it, and gradients flow through that length.

    Args:
        inputs: what to take instead of the problem's own.
    """
    if inputs is None:
        target = problem.grid.targets[stride.leg].expand(t.shape)
        times = None if stride.inside is None else output_times(problem.ts, stride.inside[0], t)
        inputs = StrideInputs(target, times, problem.held(stride.leg), problem.p)
    target, u, p = inputs.target, inputs.u, inputs.p
    h = torch.where(stride.to_target, target - t, stride.h)
    if stride.event is not None:
        h = _time_to_event(problem, stride, t, x, h, u, p)
    attempt = problem.method.attempt(problem.f, t, x, u, p, h)
    t_new = torch.where(stride.to_target, target, t + h)
    x_new = attempt.x
    inside = None
    if stride.inside is not None:
        assert inputs.times is not None
        assert attempt.dense is not None
        inside = between(inputs.times, stride.inside[1], t, h, attempt.dense)
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
