"""The engine of torchdiffeq's methods: one call of torchdiffeq from control switch to control switch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from solvers.adjoints.base import Adjoint
from solvers.adjoints.continuous import ContinuousAdjoint
from solvers.engines.base import Engine, read_at_switches
from solvers.failure import SolveError
from solvers.marching.inspection import check_field
from solvers.marching.problem import Problem
from solvers.methods.torchdiffeq_methods import TorchdiffeqSolver
from solvers.solution import Solution, Statistics, no_steps


class TorchdiffeqSteps(Engine):
    """torchdiffeq's own steps and adjoint, of which a failure concerns the whole batch."""

    def solve(self, problem: Problem, adjoint: Adjoint) -> Solution:
        """The solution, for the adjoints ``backprop`` and ``adjoint``."""
        check_field(
            problem,
            adjoint.name,
            sees_captured=adjoint.sees_captured,
            per_rollout=problem.method.rollout_times,
            recomputed=adjoint.repeats_steps or problem.method.rollout_times,
        )
        problem.f.calls = 0
        x0 = problem.x0
        none = no_steps(x0.shape[:-1], x0.device)
        status = none
        counts: dict[str, Any] = {}
        try:
            xs, counts = _integrate_legs(problem, continuous=isinstance(adjoint, ContinuousAdjoint))
        except SolveError as error:
            if problem.on_failure == "raise":
                raise
            status = error.status
            xs = torch.cat(
                (x0.unsqueeze(0), x0.detach().new_full((len(problem.ts) - 1, *x0.shape), torch.nan))
            )
        accepted, rejected = (none + counts.get(key, 0) for key in ("accepted", "rejected"))
        statistics = Statistics(problem.f.calls, accepted, rejected)
        xs = read_at_switches(problem, xs)
        return Solution(problem.requested, xs, status, none.bool(), None, statistics)


def _integrate_legs(problem: Problem, *, continuous: bool) -> tuple[Tensor, dict[str, Any]]:
    """All legs of the grid: ``xs [T, *batch, n]`` and counts; ``continuous``: whether by the adjoint equation."""
    method, grid = problem.method, problem.grid
    assert isinstance(method, TorchdiffeqSolver)
    xs: list[Tensor] = [problem.x0] * len(problem.ts)
    x, begin = problem.x0, grid.start
    counts: dict[str, Any] = {}
    for leg, output in enumerate(grid.at_target):
        inside, u = grid.inside[leg], problem.held(leg)
        ts = torch.stack((begin, *(problem.ts[i] for i in inside), grid.targets[leg]))
        own = None
        if continuous:
            own = tuple(q for q in tree_leaves((u, problem.p)) if isinstance(q, Tensor) and q.requires_grad)
            own += problem.leaves.parameters
        states = method.integrate(
            problem.f, x, ts, u, problem.p, problem.tolerances, dt=problem.dt, adjoint=own, counts=counts
        )
        for i, state in zip(inside, states[1:-1], strict=True):
            xs[i] = state
        x, begin = states[-1], grid.targets[leg]
        if output >= 0:
            xs[output] = x
    return torch.stack(xs), counts
