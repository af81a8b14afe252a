"""The interface of an engine: what takes the steps of a checked problem."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from solvers.adjoints.base import Adjoint
from solvers.failure import SolveError, describe
from solvers.marching.problem import Problem
from solvers.solution import Solution


class Engine(abc.ABC):
    """Takes the steps of a problem; :func:`solvers.ivp.engine_for` chooses one."""

    @abc.abstractmethod
    def solve(self, problem: Problem, adjoint: Adjoint) -> Solution:
        """The solution, differentiable by the adjoint.

        Raises:
            ValueError, TypeError: f cannot be solved.
            SolveError: some rollout failed, and ``problem.on_failure`` is "raise".
        """


def failure(problem: Problem, status: Tensor, t: Tensor, last_step: Tensor) -> SolveError:
    """The error for failed rollouts, at the problem's own times t."""
    adaptive = problem.controller is not None
    return SolveError(describe(status, problem.sign * t, last_step, adaptive=adaptive), status)


def read_at_switches(problem: Problem, xs: Tensor) -> Tensor:
    """Outputs at the time of a switch, made to depend on the output's time instead of the switch's.

    Adds ``f (t_output - t_switch)``, which is zero, with the control before the switch.
    """
    grid, switches = problem.grid, problem.control_times
    if not grid.on_switch or switches is None or not (problem.ts.requires_grad or switches.requires_grad):
        return xs
    rows = list(xs)
    for output, switch in grid.on_switch.items():
        leg = grid.at_target.index(output)
        t, x = grid.targets[leg].detach().expand(xs.shape[1:-1]), rows[output].detach()
        with torch.no_grad():
            slope = problem.f(t, x, problem.held(leg), problem.p)
        rows[output] = rows[output] + slope * (problem.ts[output] - switches[switch])
    return torch.stack(rows)
