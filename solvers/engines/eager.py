"""The engines that take steps by torch's operations, one by one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from solvers.adjoints.base import Adjoint
from solvers.engines.base import Engine, failure, read_at_switches
from solvers.failure import SolveError
from solvers.marching.inspection import check_field
from solvers.marching.march import march
from solvers.marching.problem import Counted, Problem
from solvers.marching.track import Track
from solvers.solution import EventLog, Solution, Statistics, no_steps


class EqualSteps(Engine):
    """All rollouts take the same steps of fixed length; the adjoint takes them."""

    def solve(self, problem: Problem, adjoint: Adjoint) -> Solution:
        """The solution, for adjoints that take equal steps."""
        _check(problem, adjoint)
        problem.f.calls = 0
        try:
            xs = adjoint.equal_steps(problem)
            healthy = bool(torch.isfinite(xs[-1]).all())
        except SolveError:
            healthy = False
        calls = problem.f.calls
        if not healthy:
            raise _find_failure(problem)
        none = no_steps(problem.x0.shape[:-1], problem.x0.device)
        statistics = Statistics(calls, none + len(problem.grid.controls), none)
        xs = xs if adjoint.by_output_times else read_at_switches(problem, xs)
        return Solution(problem.requested, xs, none, none.bool(), None, statistics)


class RolloutSteps(Engine):
    """Every rollout has its own steps: a march without a graph finds them, then the adjoint differentiates them."""

    def solve(self, problem: Problem, adjoint: Adjoint) -> Solution:
        """The solution, with a status and events for every rollout."""
        captured = _check(problem, adjoint)
        wants_gradient = torch.is_grad_enabled() and (
            captured or any(q.requires_grad for q in problem.inputs())
        )
        problem.f.calls = 0
        keep = adjoint.keeps if wants_gradient else "nothing"
        track = march(problem, keep=keep, stop_at_failure=problem.on_failure == "raise")
        statistics = Statistics(problem.f.calls, track.accepted, track.rejected)
        any_failed = bool((track.status != 0).any())
        if any_failed and problem.on_failure == "raise":
            raise failure(problem, track.status, track.t, track.last_step)
        xs, times, states = track.outputs
        if wants_gradient:
            xs, times, states = adjoint.outputs(problem, track.without_failed())
        beyond = _beyond_the_end(problem, track)
        if problem.events:
            xs = torch.where(beyond & track.stopped.unsqueeze(-1), xs[-1], xs)
        if any_failed:
            failed, known = track.status != 0, track.outputs
            lost = failed.unsqueeze(-1)
            xs = torch.where(lost, torch.where(beyond, torch.nan, known.xs), xs)
            if len(times):
                times = torch.where(failed, known.event_times, times)
                states = torch.where(lost, known.event_states, states)
        log = _event_log(problem, track, times, states) if problem.events else None
        xs = xs if adjoint.by_output_times else read_at_switches(problem, xs)
        return Solution(problem.requested, xs, track.status, track.stopped, log, statistics)


def _check(problem: Problem, adjoint: Adjoint) -> bool:
    """:func:`check_field`, as these engines evaluate f; whether f captures a tensor to differentiate by."""
    solved_per_rollout = problem.per_rollout or not adjoint.takes_equal_steps
    # Newton's iterations and Jacobians evaluate f again; so does a march that is repeated for its gradient.
    per_rollout = solved_per_rollout or problem.method.rollout_times
    return check_field(
        problem,
        adjoint.name,
        sees_captured=adjoint.sees_captured,
        per_rollout=per_rollout,
        recomputed=per_rollout or adjoint.repeats_steps,
    )


def _find_failure(problem: Problem) -> SolveError:
    """The failure of equal steps: a march with a status per rollout finds it again; f still gets a scalar time."""
    plain = problem.f
    if not problem.method.rollout_times:
        problem = replace(problem, f=Counted(lambda t, x, u, p: plain(t.amax(), x, u, p)))
    track = march(problem, keep="nothing")
    return failure(problem, track.status, track.t, track.last_step)


def _beyond_the_end(problem: Problem, track: Track) -> Tensor:
    """The outputs after the end of a rollout, ``[T, *batch, 1]``."""
    ts, batch = problem.ts.detach(), track.status.shape
    each = ts.reshape(len(ts), *([1] * len(batch)) if ts.ndim == 1 else batch)
    return (each > track.seen).unsqueeze(-1)


def _event_log(problem: Problem, track: Track, times: Tensor, states: Tensor) -> EventLog:
    which, batch = track.recorder.event_which, track.status.shape
    numbers = torch.stack(which) if which else no_steps(batch, times.device).new_zeros((0, *batch))
    return EventLog(torch.where(torch.isfinite(times), problem.sign * times, times), states, numbers)
