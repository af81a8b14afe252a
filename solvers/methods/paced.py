"""A Rosenbrock method for stiff problems whose Jacobian is known in closed form, without data-dependent branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers.methods.base import Solver, State, VectorField
from solvers.validation import whole_number

# The method ROS3 in the variables of Hairer and Wanner, Solving ODEs II, section IV.7, eq. 7.25.
_GAMMA = 0.43586652150845899942
_C21, _C31, _C32 = -1.0156171083877702, 4.0759956452537700, 9.2076794298330791
_M2, _M3 = 6.1697947043828246, -0.42772256543218573


class PacedRosenbrock(Solver):
    """The Rosenbrock method ROS3 (order 3, L-stable) in a fixed number of substeps of state-dependent size.

    Sandu, Verwer, Blom, Spee, Carmichael, Potra, Benchmarking stiff ODE solvers for atmospheric chemistry
    problems II, Atmospheric Environment 31 (1997): two evaluations of f and three linear solves with one matrix.
    It has no iteration and no branch, so that a step can be compiled.  f must not depend on the time (autonomous form).

    A substep is at most a quarter of ``dt`` and at most ``1 / pace``.  Once they add up to ``dt``, the others have
    length zero; the last one always ends at ``dt``.  Gradients flow through the lengths of the substeps too.

    Args:
        resolvent: ``right -> (I - h df/dx)^-1 right`` at ``(x, h [B], p)``, with the exact Jacobian df/dx.
        pace: the smallest number of substeps per unit of time, ``[B]`` from ``(x, dx/dt, p)``.
        steps: the number of substeps, at least 4.
    """

    order = 3

    def __init__(
        self,
        resolvent: Callable[[Tensor, Tensor, Any], Callable[[Tensor], Tensor]],
        pace: Callable[[Tensor, Tensor, Any], Tensor],
        steps: int,
    ) -> None:
        self.resolvent, self.pace = resolvent, pace
        self.steps = whole_number("steps", steps, least=4)

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``."""
        left = torch.ones_like(x[..., 0]) * dt
        for i in range(self.steps):
            slope = f(t, x, u, p)
            length = left
            if i < self.steps - 1:
                length = torch.minimum(left, dt / (dt * self.pace(x, slope, p)).clamp_min(4.0))
            left = left - length
            h = length.unsqueeze(-1)
            solve = self.resolvent(x, _GAMMA * length, p)
            first = solve(_GAMMA * (h * slope))
            slope = f(t, x + first, u, p)
            second = solve(_GAMMA * (h * slope + _C21 * first))
            third = solve(_GAMMA * (h * slope + _C31 * first + _C32 * second))
            x = x + first + _M2 * second + _M3 * third
        return x
