"""The forward march of a solve: a step size, an event time and an outcome for every rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from solvers.events import EventFinder
from solvers.failure import Failure
from solvers.outputs import Outputs, output_times
from solvers.problem import Problem
from solvers.solution import no_steps


@dataclass(frozen=True)
class Stride:
    """One attempt of the whole batch, as the backward pass repeats it.

    Attributes:
        leg: the leg it belongs to.
        t, x: where every rollout stood, ``[*batch]`` and ``[*batch, n]``; None unless states are kept.
        h: how far every rollout went, ``[*batch]``; 0 where the step was rejected or the rollout is finished,
            so that repeating the step changes nothing there.
        to_target: rollouts that went exactly to the end of the leg, ``[*batch]``.
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


@dataclass
class Track:
    """What a march leaves behind.

    ``safe`` is a state at which every rollout's vector field is known to be finite: failed rollouts wait
    there while the others' steps are repeated.
    """

    strides: list[Stride] = field(default_factory=list)
    status: Tensor = None  # type: ignore[assignment]
    stopped: Tensor = None  # type: ignore[assignment]
    t: Tensor = None  # type: ignore[assignment]
    x: Tensor = None  # type: ignore[assignment]
    last_step: Tensor = None  # type: ignore[assignment]
    accepted: Tensor = None  # type: ignore[assignment]
    rejected: Tensor = None  # type: ignore[assignment]
    outputs: Outputs = None  # type: ignore[assignment]
    safe: Tensor = None  # type: ignore[assignment]


@torch.no_grad()
def march(
    problem: Problem,
    *,
    keep_states: bool,
    stop_at_failure: bool,
    resting: Tensor | None = None,
    visit: Callable[[Stride], object] | None = None,
) -> Track:
    """Go through the grid once, without a graph.

    Every rollout has its own time and step size; rollouts that are done wait with a step of length zero.
    Nothing is computed across rollouts but "is anyone still going?".  ``resting`` rollouts do not move.
    Every stride goes to ``visit``; by default into the track.
    """
    method, grid, controller, f = problem.method, problem.grid, problem.controller, problem.f
    x = problem.x0.detach()
    batch = x.shape[:-1]
    t = grid.start.detach().to(x.dtype).expand(batch)
    track = Track()
    visit = track.strides.append if visit is None else visit
    status, accepted, rejected = (no_steps(batch, x.device) for _ in range(3))
    resting = torch.zeros(batch, dtype=torch.bool, device=x.device) if resting is None else resting
    live = ~resting
    stopped = torch.zeros_like(live)
    count = no_steps(batch, x.device)
    last_step = torch.zeros_like(t)
    last_error = torch.ones_like(t)
    proposal: Tensor | None = None
    finder = EventFinder(problem.events, problem.event_samples) if problem.events else None
    held = torch.zeros((len(problem.events), *batch), dtype=torch.bool, device=x.device)
    # Asking whether anyone is still going waits for the device: on a GPU every eighth attempt will do.
    patience = 1 if x.device.type == "cpu" else 8
    resolution = 4 * torch.finfo(x.dtype).eps
    previous_control = None
    outputs = Outputs(problem, x)

    for leg in range(len(grid.controls)):
        target = grid.targets[leg].detach().to(x.dtype).expand(batch)
        u = problem.held(leg)
        if grid.controls[leg] != previous_control:
            slope = None
            previous_control = grid.controls[leg]
        started = t
        wants_slope = controller is not None or finder is not None
        attempts = 0
        while True:
            active = live & (t < target)
            if attempts % patience == 0:
                failed_now = stop_at_failure and bool((status != Failure.NONE).any())
                if failed_now or not bool(active.any()):
                    break
            attempts += 1
            if slope is None and wants_slope:
                slope = f(t, x, u, problem.p)
            remaining = target - t
            if controller is not None:
                if proposal is None:
                    assert slope is not None
                    proposal = controller.first(f, t, x, u, problem.p, slope, remaining, method.error_order)
                if controller.max_step is not None:
                    proposal = proposal.clamp_max(controller.max_step)
                to_target = active & (proposal >= remaining)
                h = torch.where(active, torch.where(to_target, remaining, proposal), 0.0)
            else:
                to_target = active
                h = torch.where(active, remaining, 0.0)

            attempt = method.attempt(f, t, x, u, problem.p, h, slope)
            finite = torch.isfinite(attempt.x).all(-1)
            if attempt.converged is not None:
                finite = finite & attempt.converged
            if controller is not None:
                assert attempt.error is not None
                assert proposal is not None
                error = controller.scaled_error(attempt.error, x, attempt.x)
                finite = finite & torch.isfinite(error)
                step_stands = active & finite & (error <= 1.0)
                factor = controller.factor(
                    torch.where(finite, error, torch.inf), last_error, method.error_order
                )
                last_error = torch.where(step_stands & ~to_target, error, last_error)
                # A step cut short by the target says nothing against the longer one that was proposed.
                grown = torch.where(to_target & step_stands, torch.maximum(h * factor, proposal), h * factor)
                proposal = torch.where(active, grown, proposal)
                shortest = torch.maximum(resolution * t.abs(), 1e-25 * (target - started))
                unresolved = active & ~step_stands & (proposal <= shortest)
                status = torch.where(
                    unresolved, torch.where(finite, Failure.STEP_UNDERFLOW, Failure.NOT_FINITE), status
                )
            else:
                step_stands = active & finite
                lost = torch.full_like(status, Failure.NOT_FINITE)
                if attempt.converged is not None:
                    lost = torch.where(attempt.converged, lost, Failure.NEWTON)
                status = torch.where(active & ~finite, lost, status)
            tried = accepted + rejected + active
            there = step_stands & to_target & (leg == len(grid.controls) - 1)
            exhausted = active & (tried >= problem.max_steps) & ~there & (status == Failure.NONE)
            status = torch.where(exhausted, Failure.MAX_STEPS, status)
            last_step = torch.where(active, h, last_step)

            t_new = torch.where(step_stands, torch.where(to_target, target, t + h), t)
            x_new = torch.where(step_stands.unsqueeze(-1), attempt.x, x)
            event = slot = None
            if finder is not None:
                assert slope is not None
                which, when = finder.first_crossing(
                    method, f, t, x, u, problem.p, h, attempt.x, slope, held, step_stands
                )
                held = held & ~step_stands
                fired = which >= 0
                if bool(fired.any()):
                    over = fired & (count >= problem.max_events)
                    status = torch.where(over, Failure.MAX_EVENTS, status)
                    fired = fired & ~over
                    step_stands = step_stands & ~over
                    event, slot = torch.where(fired, which, -1), count
                    h = torch.where(fired, when, h)
                    to_target = to_target & ~fired
                    t_new = torch.where(over, t, torch.where(fired, t + when, t_new))
                    attempt = method.attempt(f, t, x, u, problem.p, h)
                    before = after = attempt.x
                    for index, one in enumerate(problem.events):
                        here = fired & (which == index)
                        jumped = one.after(t_new, before, u, problem.p)
                        after = torch.where(here.unsqueeze(-1), jumped, after)
                        held[index] |= here
                        if one.terminal:
                            stopped = stopped | here
                    x_new = torch.where(fired.unsqueeze(-1), after, torch.where(over.unsqueeze(-1), x, x_new))
                    outputs.event(event, slot, t_new, before)
                    count = count + fired
            h = torch.where(step_stands, h, 0.0)
            to_target = to_target & step_stands
            inside = _outputs_inside(problem, leg, t, t_new, step_stands)
            if inside is not None:
                assert attempt.dense is not None
                outputs.inside(inside, t, h, attempt.dense)
            kept_t, kept_x = (t, x) if keep_states else (None, None)
            visit(Stride(leg, kept_t, kept_x, h, to_target, event, slot, inside))
            accepted = accepted + step_stands
            rejected = rejected + (active & ~step_stands)
            live = (status == Failure.NONE) & ~stopped & ~resting
            if event is not None or attempt.end_slope is None:
                slope = None
            elif slope is not None:
                slope = torch.where(step_stands.unsqueeze(-1), attempt.end_slope, slope)
            t, x = t_new, x_new
        outputs.at_target(leg, x)

    track.status, track.stopped, track.t, track.last_step = status, stopped, t, last_step
    track.accepted, track.rejected, track.outputs = accepted, rejected, outputs
    track.x = x
    track.safe = _safe_states(problem.x0.detach(), accepted > 0)
    return track


def _outputs_inside(
    problem: Problem, leg: int, t: Tensor, t_new: Tensor, stands: Tensor
) -> tuple[list[int], Tensor] | None:
    outputs = problem.grid.inside[leg]
    if not outputs:
        return None
    times = output_times(problem.ts, outputs, t)
    passed = stands & (times > t) & (times <= t_new)
    some = passed.flatten(1).any(1) if passed.ndim > 1 else passed
    index = some.nonzero().reshape(-1)
    if not len(index):
        return None
    return [outputs[i] for i in index.tolist()], passed[index]


def _safe_states(x0: Tensor, moved: Tensor) -> Tensor:
    """x0 where the first step succeeded; elsewhere the start of some rollout whose step did."""
    if bool(moved.all()) or not bool(moved.any()):
        return x0
    donor = x0[moved][0]
    return torch.where(moved.unsqueeze(-1), x0, donor)
