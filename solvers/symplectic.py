"""Methods for mechanical systems ``x = [q, v]`` with ``dq/dt = v``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers.base import Solver, State, VectorField


class SemiImplicitEuler(Solver):
    """Semi-implicit (symplectic) Euler: ``v' = v + dt·a(q, v)``, then ``q' = q + dt·v'``. Order 1.

    Hairer, Lubich, Wanner, Geometric Numerical Integration, §I.1.2.  The first half of the state is
    the position, the second the velocity; only the velocity half of ``f`` is used.

    Args:
        project_velocity: applied to ``v'`` before the position moves (a speed limit, a constraint).
            Where it is flat, as a clamp is beyond its limits, it cuts the gradient.
    """

    order = 1

    def __init__(self, project_velocity: Callable[[Tensor], Tensor] | None = None) -> None:
        self.project_velocity = project_velocity

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``; one evaluation of ``f``.

        Raises:
            ValueError: the state has an odd number of components.
        """
        if x.shape[-1] % 2:
            raise ValueError(
                f"semi-implicit Euler needs x = [q, v] of even length, got {x.shape[-1]} components"
            )
        q, v = x.chunk(2, dim=-1)
        acceleration = f(t, x, u, p).chunk(2, dim=-1)[1]
        v = v + dt * acceleration
        if self.project_velocity is not None:
            v = self.project_velocity(v)
        return torch.cat((q + dt * v, v), dim=-1)
