"""The forward pass of a solve with a step size, an event time and a status for every rollout."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from solvers.failure import Failure
from solvers.marching.events import EventFinder, coincidence, resolved
from solvers.marching.problem import Problem
from solvers.marching.track import Kept, OutputRecorder, Stride, Track, output_times
from solvers.methods.base import Attempt
from solvers.solution import no_steps


@torch.no_grad()
def march(
    problem: Problem,
    *,
    keep: Kept = "states",
    stop_at_failure: bool = True,
    frozen: Tensor | None = None,
    visit: Callable[[Stride], object] | None = None,
) -> Track:
    """Take all steps of the grid once, without a graph: leg after leg, until every rollout is at the end or has failed.

    Every rollout has its own time and step size; those that have finished take steps of length zero.  Nothing is
    computed across rollouts except whether any of them is active.

    Args:
        keep: what the track holds: "states" (every stride, with the times and states at its start), "steps" (every
            stride, without those) or "nothing" (no strides).
        stop_at_failure: whether the march ends at the first failure of some rollout.
        frozen: rollouts that take no step, ``[*batch]``.
        visit: what every stride is given to, instead of appending it to the track.
    """
    strides: list[Stride] = []
    if visit is None:
        visit = _forget if keep == "nothing" else strides.append
    rollouts = _Rollouts(problem, frozen, keep == "states")
    # Asking whether any rollout is active waits for the device: on a GPU only at every eighth attempt.
    interval = 1 if problem.x0.device.type == "cpu" else 8
    for leg in range(len(problem.grid.controls)):
        rollouts.enter(leg)
        for attempt in itertools.count():
            active = rollouts.active()
            if attempt % interval == 0 and rollouts.are_done(active, stop_at_failure):
                break
            visit(rollouts.stride(active))
        rollouts.recorder.at_target(leg, rollouts.x)
    return rollouts.track(strides)


def _forget(stride: Stride) -> None:
    """What is done with a stride that is not kept."""


class _Rollouts:
    """The state of all rollouts between two attempts."""

    def __init__(self, problem: Problem, frozen: Tensor | None, keep_states: bool) -> None:
        self.problem, self.keep_states = problem, keep_states
        self.x = problem.x0.detach()
        batch, device = self.x.shape[:-1], self.x.device
        self.t = problem.grid.start.detach().to(self.x.dtype).expand(batch)
        self.seen = self.t
        none = torch.zeros(batch, dtype=torch.bool, device=device)
        self.frozen = none if frozen is None else frozen
        self.stopped = none
        self.pending = none  # an event fired at the end of the leg: a step of length zero remains
        self.status, self.accepted, self.rejected, self.fired = (no_steps(batch, device) for _ in range(4))
        self.last_step, self.last_error = torch.zeros_like(self.t), torch.ones_like(self.t)
        self.proposal: Tensor | None = None  # the next step's length, for adaptive methods
        self.slope: Tensor | None = None  # f at the present state, where it is known
        self.finder = EventFinder(problem.events, problem.event_samples) if problem.events else None
        self.held = none.expand(len(problem.events), *batch)
        self.recorder = OutputRecorder(problem, self.x)

    def enter(self, leg: int) -> None:
        """Begin a leg of the grid."""
        grid = self.problem.grid
        self.leg, self.u = leg, self.problem.held(leg)
        self.target = grid.targets[leg].detach().to(self.x.dtype).expand(self.t.shape)
        self.started = self.t
        if leg and grid.controls[leg] != grid.controls[leg - 1]:
            self.slope = None

    def active(self) -> Tensor:
        """The rollouts that have not reached the end of the leg, stopped or failed, ``[*batch]``."""
        live = (self.status == Failure.SUCCESS) & ~self.stopped & ~self.frozen
        return live & ((self.t < self.target) | self.pending)

    def are_done(self, active: Tensor, stop_at_failure: bool) -> bool:
        """Whether the leg is over."""
        failed = stop_at_failure and bool((self.status != Failure.SUCCESS).any())
        return failed or not bool(active.any())

    def track(self, strides: list[Stride]) -> Track:
        """The result, when all legs are over."""
        safe = _safe_states(self.problem.x0.detach(), self.accepted > 0)
        return Track(
            strides, self.status, self.stopped, self.t, self.x, self.seen, self.last_step, self.accepted,
            self.rejected, self.recorder, safe,
        )  # fmt: skip

    def stride(self, active: Tensor) -> Stride:
        """One attempt of all rollouts; advances those whose step is accepted."""
        problem, t, x = self.problem, self.t, self.x
        if self.slope is None and (problem.controller is not None or self.finder is not None):
            self.slope = problem.f(t, x, self.u, problem.p)
        h, to_target = self._length(active)
        attempt = problem.method.attempt(problem.f, t, x, self.u, problem.p, h, self.slope)
        accepted = self._judge(active, h, to_target, attempt)
        self.last_step = torch.where(active, h, self.last_step)

        t_new = torch.where(accepted, torch.where(to_target, self.target, t + h), t)
        x_new = torch.where(accepted.unsqueeze(-1), attempt.x, x)
        event = slot = None
        end_slope = attempt.end_slope
        if self.finder is not None:
            which, when, tied = self._first_events(h, attempt, accepted)
            if bool((which >= 0).any()):
                fits = (which < 0) | (self.fired < problem.max_events)
                self.status = torch.where(fits, self.status, Failure.MAX_EVENTS)
                accepted = accepted & fits
                fired = (which >= 0) & fits
                event, slot, end_slope = torch.where(fired, which, -1), self.fired, None
                same_time = coincidence(t, h)
                h, to_target = torch.where(fired, when, h), to_target & ~fired
                attempt = problem.method.attempt(problem.f, t, x, self.u, problem.p, h)
                t_new = torch.where(fits, torch.where(fired, t + when, t_new), t)
                after = self._jump(event, tied, t_new, attempt.x)
                x_new = torch.where(fired.unsqueeze(-1), after, torch.where(fits.unsqueeze(-1), x_new, x))
                self.recorder.event(event, slot, t_new, attempt.x)
                self.fired = self.fired + fired
        h, to_target = torch.where(accepted, h, 0.0), to_target & accepted
        seen = torch.where(accepted, t_new, self.seen)
        if self.finder is not None:
            self.pending = self.pending & ~to_target
        if event is not None:
            # An output at the time of the event shows the state after it: the next step gives it.
            seen = torch.where(fired, torch.maximum(self.seen, t_new - same_time), seen)
            self.pending = self.pending | (fired & (t_new >= self.target))
        inside = _outputs_inside(problem, self.leg, t, self.seen, seen, accepted)
        self.seen = seen
        if inside is not None:
            if attempt.dense is None:
                raise TypeError(
                    f"solver {problem.name!r} has no dense output for the requested times between its steps: let its "
                    "attempt return one (Attempt.dense), or give dt"
                )
            self.recorder.inside(inside, t, h, attempt.dense)
        self.accepted = self.accepted + accepted
        self.rejected = self.rejected + (active & ~accepted)
        if end_slope is None or self.slope is None:
            self.slope = None
        else:
            self.slope = torch.where(accepted.unsqueeze(-1), end_slope, self.slope)
        self.t, self.x = t_new, x_new
        return Stride(
            self.leg,
            t if self.keep_states else None,
            x if self.keep_states else None,
            h,
            to_target,
            event,
            slot,
            inside,
        )

    def _length(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """The step size to attempt, and for which rollouts it reaches the end of the leg."""
        problem, remaining = self.problem, self.target - self.t
        controller = problem.controller
        if controller is None:
            return torch.where(active, remaining, 0.0), active
        if self.proposal is None:
            assert self.slope is not None
            order = problem.method.error_order
            self.proposal = controller.first(
                problem.f, self.t, self.x, self.u, problem.p, self.slope, remaining, order
            )
        longest = getattr(controller, "max_step", None)
        if longest is not None:
            self.proposal = self.proposal.clamp_max(longest)
        to_target = active & (self.proposal >= remaining)
        return torch.where(active, torch.where(to_target, remaining, self.proposal), 0.0), to_target

    def _judge(self, active: Tensor, h: Tensor, to_target: Tensor, attempt: Attempt) -> Tensor:
        """Which rollouts' steps are accepted; sets the next proposal, and the status of those that fail."""
        problem = self.problem
        controller = problem.controller
        good = torch.isfinite(attempt.x).all(-1)
        if controller is None:
            reason = torch.full_like(self.status, Failure.NOT_FINITE)
            if attempt.converged is not None:
                good, reason = (
                    good & attempt.converged,
                    torch.where(attempt.converged, reason, Failure.NEWTON),
                )
            accepted, failed = active & good, active & ~good
        else:
            if attempt.error is None:
                raise TypeError(
                    f"solver {problem.name!r} calls itself adaptive, but its attempt returns no error estimate "
                    "(Attempt.error)"
                )
            assert self.proposal is not None
            error = controller.scaled_error(attempt.error, self.x, attempt.x)
            good = good & torch.isfinite(error)
            accepted = active & good & (error <= 1.0)
            error = torch.where(good, error, torch.inf)
            factor = controller.factor(error, self.last_error, problem.method.error_order)
            self.last_error = torch.where(accepted & ~to_target, error, self.last_error)
            # A step shortened to end at the target is no reason to propose less than before.
            cut = to_target & accepted
            grown = torch.where(cut, torch.maximum(h * factor, self.proposal), h * factor)
            self.proposal = torch.where(active, grown, self.proposal)
            resolution = 4 * torch.finfo(self.x.dtype).eps * self.t.abs()
            shortest = torch.maximum(resolution, 1e-25 * (self.target - self.started))
            failed = active & ~accepted & (self.proposal <= shortest)
            failed = failed | (active & ~to_target & (self.t + h == self.t))
            reason = torch.where(good, Failure.STEP_UNDERFLOW, Failure.NOT_FINITE)
        self.status = torch.where(failed, reason, self.status)
        tried = self.accepted + self.rejected + active
        arrived = accepted & to_target & (self.leg == len(problem.grid.controls) - 1)
        exhausted = active & (tried >= problem.max_steps) & ~arrived & (self.status == Failure.SUCCESS)
        self.status = torch.where(exhausted, Failure.MAX_STEPS, self.status)
        return accepted

    def _first_events(self, h: Tensor, attempt: Attempt, accepted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`EventFinder.first_crossing` of the present step."""
        problem = self.problem
        assert self.finder is not None
        assert self.slope is not None
        found = self.finder.first_crossing(
            problem.method,
            problem.f,
            self.t,
            self.x,
            self.u,
            problem.p,
            h,
            attempt.x,
            self.slope,
            self.held,
            accepted,
            self.accepted == 0,
        )
        self.held = self.held & ~(accepted & resolved(self.t, h))
        return found

    def _jump(self, event: Tensor, tied: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """The states after the events; remembers which events hold now, and which rollouts have stopped."""
        u, p = self.u, self.problem.p
        after, held = x, []
        for index, one in enumerate(self.problem.events):
            here = event == index
            after = torch.where(here.unsqueeze(-1), one.after_those(here, t, x, u, p), after)
            # It holds unless the jump moved the function away from zero by more than rounding.
            scale = one.value(self.t, self.x, u, p).abs() * 64 * torch.finfo(x.dtype).eps
            near = one.value(t, after, u, p).abs() <= 8 * one.value(t, x, u, p).abs() + scale
            held.append(self.held[index] | ((here | (tied[index] & (event >= 0))) & near))
            if one.terminal:
                self.stopped = self.stopped | here
        self.held = torch.stack(held)
        return after


def _outputs_inside(
    problem: Problem, leg: int, t: Tensor, seen: Tensor, seen_now: Tensor, accepted: Tensor
) -> tuple[list[int], Tensor] | None:
    """The outputs inside a leg that a step makes known, and for which rollouts."""
    outputs = problem.grid.inside[leg]
    if not outputs:
        return None
    times = output_times(problem.ts, outputs, t)
    passed = accepted & (times > seen) & (times <= seen_now)
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
