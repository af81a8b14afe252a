"""The engine that runs a whole solve in compiled code."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from solvers.adjoints.base import Adjoint, attach_gradient
from solvers.engines.base import Engine, failure, read_at_switches
from solvers.marching.problem import Problem
from solvers.methods.runge_kutta import ExplicitRungeKutta
from solvers.native.adaptive import Kernel, Run
from solvers.solution import Solution, Statistics


class NativeSteps(Engine):
    """The steps of a kernel made from the field, and their gradient, which is that of ``checkpoint``."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def solve(self, problem: Problem, adjoint: Adjoint) -> Solution:
        """The solution."""
        run = Run(problem, problem.leaves, self.kernel)
        wants_gradient = torch.is_grad_enabled() and any(q.requires_grad for q in problem.inputs())
        xs = run.forward(wants_gradient)
        if problem.on_failure == "raise" and bool((run.status != 0).any()):
            raise failure(problem, run.status, run.failed_at, run.last_step)
        if wants_gradient:
            (xs,) = attach_gradient(problem, (xs,), functools.partial(_pulled_back, problem, run))
        attempts = int((run.accepted + run.rejected).max())
        assert isinstance(problem.method, ExplicitRungeKutta)
        calls = 2 + attempts * (len(problem.method.tableau.b) - 1)
        statistics = Statistics(calls, run.accepted, run.rejected)
        stopped = torch.zeros_like(run.status).bool()
        xs = read_at_switches(problem, xs)
        return Solution(problem.requested, xs, run.status, stopped, None, statistics)


def _pulled_back(problem: Problem, run: Run, kept: tuple[()], by_xs: Tensor) -> list[Tensor]:
    """Gradients by the problem's inputs; those of failed rollouts are zero."""
    by_x0, by_leaves, by_start, by_targets, by_ts = run.backward(by_xs)
    by_x0 = by_x0 + torch.where((run.status == 0).unsqueeze(-1), by_xs[0], 0.0)
    dtypes = [q.dtype for q in problem.leaves.tensors()]
    by_leaves = [gradient.to(dtype) for gradient, dtype in zip(by_leaves, dtypes, strict=True)]
    return [by_x0, by_start, by_targets, by_ts, *by_leaves]
