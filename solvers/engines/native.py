"""The engine that runs a whole solve in compiled code."""

from __future__ import annotations

import torch

from solvers.adjoints.base import Adjoint
from solvers.engines.base import Engine, failure, read_at_switches
from solvers.marching.problem import Problem
from solvers.methods.runge_kutta import ExplicitRungeKutta
from solvers.native.adaptive import Kernel, NativeMarch, Run
from solvers.solution import Solution, Statistics


class NativeSteps(Engine):
    """The steps of a kernel made from the field, and their gradient, which is that of ``checkpoint``."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def solve(self, problem: Problem, adjoint: Adjoint) -> Solution:
        """The solution."""
        leaves = problem.leaves
        run = Run(problem, leaves, self.kernel)
        inputs = problem.inputs()
        wants_gradient = torch.is_grad_enabled() and any(q.requires_grad for q in inputs)
        xs = run.forward(wants_gradient)
        if problem.on_failure == "raise" and bool((run.status != 0).any()):
            raise failure(problem, run.status, run.failed_at, run.last_step)
        if wants_gradient:
            xs = NativeMarch.apply(run, leaves, xs, *inputs)
        attempts = int((run.accepted + run.rejected).max())
        assert isinstance(problem.method, ExplicitRungeKutta)
        calls = 2 + attempts * (len(problem.method.tableau.b) - 1)
        statistics = Statistics(calls, run.accepted, run.rejected)
        stopped = torch.zeros_like(run.status).bool()
        xs = read_at_switches(problem, xs)
        return Solution(problem.requested, xs, run.status, stopped, None, statistics)
